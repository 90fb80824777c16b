"""Ctrl-C: KeyboardInterrupt within a second, wherever a program is, and what was interrupted can be used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BEGIN = """
import signal, sys, time, threading, asyncio, yuan
# Whoever runs this in the background may have it ignore the signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
engine = yuan.Engine(sys.argv[1], threads=1)
session = engine.session(shift=4)
endless = dict(max_tokens=-1, ignore_eod=True, prompt="春日山中 李白<sep>")
before = session.generate(5, prompt="春")
async def many():
    await asyncio.gather(*(engine.agenerate("春", 900, ignore_eod=True) for _ in range(200)))
def ready(*_):
    print("ready", flush=True)
threading.Timer(0.2, ready).start()
try:
    {body}
    print("it was not interrupted")
except KeyboardInterrupt:
    print("KeyboardInterrupt", flush=True)
print(session.generate(5, prompt="春") == before, flush=True)
print(engine.generate("春", 5) == before, flush=True)
"""
BODIES = {
    "generate": "session.generate(**endless)",
    "generate with a callback": "session.generate(on_text=lambda piece: None, **endless)",
    "stream": "[None for piece in session.stream(**endless)]",
    "stream, in the loop": "[time.sleep(0.01) for piece in session.stream(**endless)]",
    "score": "[session.score(engine.tokenize('春') * 1000, top=top) for top in range(1000)]",
    "sync": "[session.sync([i] + engine.tokenize('春') * 1000) for i in range(1, 1000)]",
    "generate_many": "engine.generate_many(['春'] * 200, 900, ignore_eod=True)",
    "asyncio": "asyncio.run(many())",
    "open": "[yuan.Engine(sys.argv[1], threads=1, paging='streamed').close() for _ in range(10000)]",
}


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("what", list(BODIES))
def test_control_c(what: str, model: str, tmp_path: Path) -> None:
    program = BEGIN.replace("{body}", BODIES[what])
    with (tmp_path / "errors").open("w+", encoding="utf-8") as errors:
        process = subprocess.Popen([sys.executable, "-c", program, model], stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8")
        assert process.stdout is not None
        ready = process.stdout.readline()
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        line = process.stdout.readline()
        took = time.monotonic() - begin
        rest, code = process.stdout.read(), process.wait(60)
        errors.seek(0)
        assert (ready, line, rest, code) == ("ready\n", "KeyboardInterrupt\n", "True\nTrue\n", 0), errors.read()
    assert took < 1, f"{what} went on for {took:.2f} s"


MOMENTS = """
import random, signal, sys, yuan
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
engine = yuan.Engine(sys.argv[1], threads=1)
session = engine.session(shift=4)
before = session.generate(5, prompt="春")
prompt = engine.tokenize("春日") * 100
random = random.Random(7)
calls = [
    lambda: session.generate(30, prompt="春日", ignore_eod=True),
    lambda: list(session.stream(30, prompt="春日", ignore_eod=True)),
    lambda: session.sync([random.randrange(9, 999)] + prompt),
    lambda: session.score(prompt, top=2),
    lambda: session.generate(30, None, lambda piece: None, prompt="春", json_schema=True, timeout=60),
]
interrupted = 0
while interrupted < 60:
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0003, 0.03))
        random.choice(calls)()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupted += 1
    assert session.generate(5, prompt="春") == before
print("the same")
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_interrupts_at_any_moment(model: str) -> None:
    done = subprocess.run([sys.executable, "-c", MOMENTS, model], capture_output=True, text=True, encoding="utf-8", timeout=100)
    assert done.stdout == "the same\n", done.stderr
