"""Ray Serve: texts as those of one engine, under many clients while a replica goes away; conversations that go on; what is refused."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import aiohttp
import pytest
from conftest import POETS
from ray import serve
from ray.cluster_utils import Cluster

import yuan
import yuan.ray.serve

SEQUENCES, CLIENTS = 4, 16
Body = Dict[str, Any]


def application(model: str, replicas: int, folder: Path) -> serve.Application:
    settings = yuan.ray.serve.Settings(model=model, replicas=replicas, sequences=SEQUENCES, queue=-1, sessions=str(folder / "sessions"), conversations=2)
    return yuan.ray.serve.app(settings)


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def address(cluster: Cluster) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def handle(address: str, model: str, sessions: Path) -> Any:
    return serve.run(application(model, 2, sessions), route_prefix="/")


def body(poet: str, seed: int, **more: Any) -> Body:
    return {"messages": [{"role": "user", "content": f"春日山中 {poet}"}], "max_tokens": 24, "seed": seed, **more}


def of_engine(engine: yuan.Engine, asked: Body) -> yuan.Answer:
    return engine.chat(asked["messages"], asked["max_tokens"], temperature=1.0, seed=asked["seed"])


async def streamed(client: aiohttp.ClientSession, url: str, asked: Body) -> Tuple[str, Body]:
    """A streamed answer, and its last chunk."""
    text, last = "", {}
    async with client.post(f"{url}/v1/chat/completions", json={**asked, "stream": True}) as response:
        assert response.status == 200, await response.text()
        lines = [line.decode().strip() async for line in response.content]
    events = [line[len("data: ") :] for line in lines if line]
    assert events[-1] == "[DONE]"
    for event in events[:-1]:
        last = json.loads(event)
        assert "error" not in last, last
        text += last["choices"][0]["delta"].get("content", "")
    return text, last


def test_answers_are_those_of_an_engine(handle: Any, address: str, engine: yuan.Engine) -> None:
    async def go() -> None:
        async with aiohttp.ClientSession() as client:
            for number, poet in enumerate(POETS):
                asked = body(poet, number)
                whole = of_engine(engine, asked)
                async with client.post(f"{address}/v1/chat/completions", json=asked) as response:
                    said = await response.json()
                assert said["choices"][0]["message"]["content"] == whole and said["usage"]["completion_tokens"] == len(whole.tokens)
                text, last = await streamed(client, address, asked)
                assert text == whole and last["usage"] == said["usage"] and last["choices"][0]["finish_reason"] == said["choices"][0]["finish_reason"]
            for path, status in [("/v1/models", 200), ("/health", 200), ("/v1/nothing", 404)]:
                async with client.get(address + path) as response:
                    assert response.status == status
            wrong = [({}, "messages"), (body("", 0, temperature="hot"), "temperature"), (body("", 0, tools=[{}]), "yuan serve"), (body("", 0, max_tokens=-2), "max_tokens")]
            wrong += [({**body("", 0), "messages": [{"role": "user", "content": "春" * 2000}]}, "tokens"), (body("", 0, n=2), "n is 1")]
            for asked, named in wrong:
                for stream in (False, True):
                    async with client.post(f"{address}/v1/chat/completions", json={**asked, "stream": stream}) as response:
                        assert response.status == 400 and named in (await response.json())["error"]["message"]

    asyncio.run(go())
    assert handle.generate.remote("春", 8).result() == engine.generate("春", 8)
    assert "".join(handle.options(stream=True).stream.remote("春", 8)) == engine.generate("春", 8)


def test_conversations_go_on(handle: Any, engine: yuan.Engine, sessions: Path) -> None:
    asked: Dict[str, Any] = {"temperature": 0.9, "seed": 5}
    talks: Dict[str, List[Any]] = {f"talk-{number}": [] for number in range(5)}
    # More conversations than replicas keep: each turn of some goes on from a file.
    for turn in range(3):
        for number, (name, messages) in enumerate(talks.items()):
            messages.append({"role": "user", "content": f"{turn}日山中 {POETS[number % 4]}"})
            told = handle.options(multiplexed_model_id=name)
            answer = told.generate.remote(messages, 16, **asked).result()
            assert answer == engine.chat(messages, 16, temperature=0.9, seed=5)
            messages.append({"role": "assistant", "content": str(answer)})
    assert list((sessions / "sessions").glob("talk-*.session"))
    with pytest.raises(ValueError, match="letters, digits"):
        handle.options(multiplexed_model_id="../elsewhere").generate.remote("春", 4).result()


def test_16_clients_while_a_replica_is_drained(handle: Any, address: str, model: str, engine: yuan.Engine, sessions: Path) -> None:
    async def go() -> List[Tuple[Body, str]]:
        done: List[Tuple[Body, str]] = []
        is_over = asyncio.Event()
        timeout = aiohttp.ClientTimeout(total=300)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as client:

            async def ask(number: int) -> None:
                asked_for = 0
                while not is_over.is_set() or asked_for < 2:
                    asked = body(POETS[number % 4], number * 100 + asked_for, max_tokens=200)
                    done.append((asked, (await streamed(client, address, asked))[0]))
                    asked_for += 1

            clients = [asyncio.create_task(ask(number)) for number in range(CLIENTS)]
            await asyncio.sleep(1)
            assert replicas() == {"RUNNING": 2}
            # One of two goes away: it ends what it has begun, and is seen to do so.
            seen: List[Dict[str, int]] = []
            change = asyncio.create_task(asyncio.to_thread(serve.run, application(model, 1, sessions), route_prefix="/"))
            while not change.done() or replicas() != {"RUNNING": 1}:
                seen.append(replicas())
                await asyncio.sleep(0.05)
            assert {"RUNNING": 1, "STOPPING": 1} in seen, seen
            is_over.set()
            await asyncio.gather(*clients)
        return done

    begin = time.monotonic()
    done = asyncio.run(go())
    assert len(done) >= 2 * CLIENTS
    for asked, text in done:
        assert text == of_engine(engine, asked)
    print(f"{len(done)} streams of {CLIENTS} clients in {time.monotonic() - begin:.0f} s; no one has lost a piece")


def replicas() -> Dict[str, int]:
    """How many there are of each state."""
    states = serve.status().applications["default"].deployments["yuan"].replica_states
    return {state: count for state, count in states.items() if count}
