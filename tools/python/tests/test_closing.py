"""After the end: what is closed says so, and nothing crashes."""

from __future__ import annotations

import gc
import os
import pickle
import threading
import time
from typing import Callable, List

import pytest
from conftest import PROMPT, Run

import yuan


def test_use_after_close_is_an_error(model: str) -> None:
    engine = yuan.Engine(model, threads=1)
    session, sampler = engine.session(), yuan.Sampler()
    tokenizer, pieces = engine.tokenizer, engine.session().stream(prompt=PROMPT)
    next(pieces)
    sampler.close()
    with pytest.raises(yuan.ClosedError, match="sampler is closed"):
        session.generate(5, sampler, prompt=PROMPT)
    engine.close()
    engine.close()
    assert engine.closed and session.closed and "closed" in repr(engine) and "closed" in repr(session) and "closed" in repr(sampler)
    uses: List[Callable[[], object]] = [
        lambda: session.generate(3), lambda: session.tokens, lambda: session.logits_list(), lambda: session.eval([1]), lambda: session.save("x"),
        lambda: list(session.stream(3)), lambda: session.cancel(), lambda: session.note, lambda: engine.session(), lambda: engine.generate(PROMPT),
        lambda: engine.generate_many([PROMPT]), lambda: tokenizer.encode("春"), lambda: engine.describe(), lambda: next(pieces),
        lambda: engine.restore("x"),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(ValueError, match="closed"):
            use()
    session.close()


def test_closing_stops_what_runs(model: str) -> None:
    engine = yuan.Engine(model, threads=1)
    session, found = engine.session(shift=4), []

    def endless() -> None:
        try:
            session.generate(-1, ignore_eod=True, prompt=PROMPT)
        except ValueError as error:
            found.append(error)

    thread = threading.Thread(target=endless)
    thread.start()
    time.sleep(0.1)
    engine.close()
    thread.join(10)
    assert not thread.is_alive() and isinstance(found[0], yuan.ClosedError)


def test_nothing_is_left_behind(model: str) -> None:
    gc.collect()
    before = yuan.live_handles()
    engine = yuan.Engine(model, threads=1)
    engine.generate(PROMPT, 5)
    next(engine.stream(PROMPT))
    engine.generate_many([PROMPT] * 5, 5)
    assert yuan.live_handles() == before + 1
    del engine
    gc.collect()
    assert yuan.live_handles() == before


def test_handles_are_of_one_process(engine: yuan.Engine, python: Run) -> None:
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(engine)
    if not hasattr(os, "fork"):
        return
    program = """
import os
child = os.fork()
if child == 0:
    try:
        engine.generate("春", 3)
    except yuan.ClosedError as error:
        os._exit(7 if "another process" in str(error) else 8)
    os._exit(9)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), engine.generate("春", 3).finish)
"""
    done = python(program)
    assert done.stdout == "7 length\n", done


@pytest.mark.parametrize(
    "program",
    [
        "pieces = engine.stream('春', -1, ignore_eod=True)\nnext(pieces)",
        "import threading\nsession = engine.session(shift=4)\nthreading.Thread(target=lambda: session.generate(-1, ignore_eod=True, prompt='春'), daemon=True).start()\nimport time\ntime.sleep(0.1)",
        "import asyncio\nasync def leave():\n    async for piece in engine.astream('春', 900, ignore_eod=True):\n        break\nasyncio.run(leave())",
        "engine.close()\nsession = None",
        "session = engine.session()\nsession.generate(3, prompt='春')",
    ],
)
def test_a_program_may_end_at_any_time(program: str, python: Run) -> None:
    done = python(program + "\nprint('the end')")
    assert done.returncode == 0 and done.stdout == "the end\n" and done.stderr == "", done
