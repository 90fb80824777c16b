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
import sys, time, threading, asyncio, yuan
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
