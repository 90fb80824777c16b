"""An engine as an actor: answers, streams, errors, cancelling."""

from __future__ import annotations

import time
from typing import Any

import pytest
import ray
from conftest import PROMPTS
from ray.cluster_utils import Cluster

import yuan
import yuan.ray


@pytest.fixture(scope="module")
def actor(cluster: Cluster, model: str) -> Any:
    return yuan.ray.Actor.options(num_cpus=1).remote(model)


def test_answers_are_those_of_an_engine(actor: Any, engine: yuan.Engine) -> None:
    asked = {"temperature": 0.9, "seed": 4}
    answers = ray.get([actor.generate.remote(prompt, 16, **asked) for prompt in PROMPTS])
    assert answers == [engine.generate(prompt, 16, temperature=0.9, seed=4) for prompt in PROMPTS]
    assert answers[0].tokens == engine.generate(PROMPTS[0], 16, temperature=0.9, seed=4).tokens and answers[0].finish == "length"
    pieces = [ray.get(piece) for piece in actor.stream.remote(PROMPTS[0], 16, **asked)]
    assert len(pieces) > 1 and "".join(pieces) == answers[0]
    assert ray.get(actor.score.remote(PROMPTS[0])) == engine.score(PROMPTS[0])
    described, counted = ray.get([actor.describe.remote(), actor.statistics.remote()])
    assert described["layers"] == engine.describe()["layers"] and counted["loop"]["most_sequences"] > 1


def test_errors_are_pythons(actor: Any, engine: yuan.Engine) -> None:
    with pytest.raises(yuan.ContextFullError):
        ray.get(actor.generate.remote(engine.tokenize("春") * 2000))
    with pytest.raises(TypeError, match="called 'temperature' here"):
        ray.get(actor.generate.remote("春", 4, temp=1.0))
    missing: Any = yuan.ray.Actor.options(num_cpus=1).remote("/no/model.gguf")
    with pytest.raises(ray.exceptions.ActorDiedError, match="same path on every machine"):
        ray.get(missing.describe.remote())


def test_an_answer_that_is_cancelled_stops(actor: Any) -> None:
    endless = actor.generate.remote("春", 900, ignore_eod=True)
    begin = time.monotonic()
    while ray.get(actor.statistics.remote())["loop"]["passes"] == 0:
        time.sleep(0.01)
    ray.cancel(endless)
    with pytest.raises((ray.exceptions.TaskCancelledError, ray.exceptions.RayTaskError)):
        ray.get(endless)
    assert len(ray.get(actor.generate.remote("春", 4)).tokens) <= 4 and time.monotonic() - begin < 60
