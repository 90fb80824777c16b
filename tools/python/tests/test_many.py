"""Many answers at once: those of lone calls, in shared passes; errors, tasks that are cancelled, loops that are left."""

from __future__ import annotations

import asyncio
import re
import time

import pytest
from conftest import PROMPT

import yuan

POETS = ["李白", "杜甫", "王维", "孟浩然"]
PROMPTS = [f"{season}日山中 {poet}<sep>" for season in "春夏秋冬" for poet in POETS] + [f"Psalms {n}:1-4<sep>" for n in range(101, 117)]


def test_32_at_once_are_32_alone(engine: yuan.Engine) -> None:
    assert len(PROMPTS) == 32
    alone = [engine.generate(prompt, 20, temperature=0.9, seed=4) for prompt in PROMPTS]

    async def answers() -> list[yuan.Answer]:
        return list(await asyncio.gather(*(engine.agenerate(prompt, 20, temperature=0.9, seed=4) for prompt in PROMPTS)))

    before = engine.statistics()["loop"]
    together = asyncio.run(answers())
    after = engine.statistics()["loop"]
    assert together == alone and [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    # They share passes: alone each token is a pass.
    assert after["most_sequences"] >= 16, after
    assert after["passes"] - before["passes"] < 32 * 20 / 4, (before, after)
    assert engine.generate_many(PROMPTS, 20, temperature=0.9, seed=4) == alone

    async def streamed(prompt: str) -> str:
        return "".join([piece async for piece in engine.astream(prompt, 20, temperature=0.9, seed=4)])

    async def all_streamed() -> list[str]:
        return list(await asyncio.gather(*map(streamed, PROMPTS)))

    assert asyncio.run(all_streamed()) == alone


def test_a_session_goes_on_in_asyncio(engine: yuan.Engine) -> None:
    asked = {"temperature": 0.9, "seed": 4}

    async def go() -> None:
        with engine.session() as session:
            first = await session.agenerate(12, prompt=PROMPT, **asked)  # type: ignore[arg-type]
            assert first == engine.generate(PROMPT, 12, temperature=0.9, seed=4) and session.finish == "length"
            pieces = [piece async for piece in session.astream(12, prompt=session.tokens, **asked)]  # type: ignore[arg-type]
            assert "".join(pieces) == engine.generate(session.tokens[:-12], 12, temperature=0.9, seed=4)
            # Stopped or left, it is free at once.
            endless = asyncio.create_task(session.agenerate(900, prompt=PROMPT, ignore_eod=True))
            await asyncio.sleep(0.1)
            endless.cancel()
            with pytest.raises(asyncio.CancelledError):
                await endless
            left = session.astream(900, prompt=PROMPT, ignore_eod=True)
            await left.__anext__()
            await left.aclose()
            assert session.generate(12, prompt=PROMPT, **asked) == first  # type: ignore[arg-type]
            with pytest.raises(yuan.BusyError):
                await asyncio.gather(*(session.agenerate(50, prompt=PROMPT) for _ in range(8)))

    asyncio.run(go())


def test_no_more_than_parallel_at_once(model: str) -> None:
    with yuan.Engine(model, threads=1, parallel=3) as engine:
        engine.generate_many(PROMPTS[:9], 6)
        assert engine.statistics()["loop"]["most_sequences"] <= 3
    with pytest.raises(ValueError, match="parallel"):
        yuan.Engine(model, parallel=0)


def test_fewer_at_once_where_memory_is_short(model: str, engine: yuan.Engine) -> None:
    prompts = ["春日山中" * 100 + poet for poet in POETS * 2]
    asked = {"ignore_eod": True, "temperature": 0.9, "seed": 4}
    how = {"threads": 1, "paging": "streamed", "context": 600}
    with pytest.raises(MemoryError) as caught:
        yuan.Engine(model, memory="1M", **how)  # type: ignore[arg-type]
    least = re.search(r"--memory (\d+)", str(caught.value))
    assert least
    with yuan.Engine(model, memory=str(int(least[1]) + 300_000), **how) as tight:  # type: ignore[arg-type]
        found = tight.generate_many(prompts, 12, **asked)  # type: ignore[call-overload]
        assert tight.statistics()["loop"]["panics"] == 0
        # One alone that does not fit is an error.
        with tight.session(context=600) as taken, pytest.raises(MemoryError):
            taken.eval(tight.tokenize("秋" * 590))
            tight.generate_many(prompts[:1], 12, **asked)  # type: ignore[call-overload]
    assert found == engine.generate_many(prompts, 12, **asked)  # type: ignore[call-overload]


def test_errors_stop_all_or_take_their_place(engine: yuan.Engine) -> None:
    too_long = engine.tokenize("春") * 2000
    with pytest.raises(yuan.ContextFullError):
        engine.generate_many([PROMPT, too_long, PROMPT], 10)
    found = engine.generate_many([PROMPT, too_long, PROMPT], 10, return_exceptions=True)
    assert found[0] == found[2] == engine.generate(PROMPT, 10) and isinstance(found[1], yuan.ContextFullError)
    with pytest.raises(TypeError, match="share a sampler"):
        engine.generate_many([PROMPT], sampler=yuan.Sampler())  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="one text"):
        engine.generate_many(PROMPT)
    assert engine.generate_many([]) == []


def test_tasks_that_are_cancelled_stop(engine: yuan.Engine) -> None:
    async def go() -> None:
        endless = [asyncio.create_task(engine.agenerate(prompt, 900, ignore_eod=True)) for prompt in PROMPTS * 2]
        await asyncio.sleep(0.1)
        begin = time.monotonic()
        for task in endless:
            task.cancel()
        found = await asyncio.gather(*endless, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in found)
        # The threads are free at once.
        assert await engine.agenerate(PROMPT, 5) == engine.generate(PROMPT, 5)
        assert time.monotonic() - begin < 5
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.agenerate(PROMPT, 900, ignore_eod=True), 0.05)
        with pytest.raises(yuan.TimeLimitError):
            await engine.agenerate(PROMPT, 900, ignore_eod=True, timeout=0.05)

    asyncio.run(go())


def test_leaving_a_loop_stops_its_answer(engine: yuan.Engine) -> None:
    async def go() -> None:
        shown = ""
        pieces = engine.astream(PROMPT, 900, ignore_eod=True)
        async for piece in pieces:
            shown += piece
            if len(shown) > 5:
                break
        await pieces.aclose()
        assert engine.generate(PROMPT, 20).startswith(shown)
        with pytest.raises(yuan.ContextFullError):
            async for _ in engine.astream(engine.tokenize("春") * 2000):
                pass

    asyncio.run(go())
    until = time.monotonic() + 5
    while not all(session.closed for session in list(engine._sessions)) and time.monotonic() < until:
        time.sleep(0.01)
    assert all(session.closed for session in engine._sessions)
