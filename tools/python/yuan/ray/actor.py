"""An engine as an actor."""

from __future__ import annotations

import asyncio
from typing import Any, AsyncGenerator, Dict, List

import ray

from ..answer import Answer, Score
from ..tokenizer import Prompt
from ._place import opened


class Worker:
    """An engine on some machine of the cluster. What is asked for at the same time goes through the model together.

        engine = yuan.ray.Actor.options(num_cpus=8, memory=12 * 2**30).remote("yuan2-m32.gguf")
        print(ray.get([engine.generate.remote(prompt, 24) for prompt in ["春", "夏", "秋", "冬"]]))
        for piece in engine.stream.remote("春", 24):
            print(ray.get(piece), end="")

    `num_cpus`, `memory` and `num_gpus` are Ray's, and the engine keeps to them; `settings` are those of `yuan.Engine`, and go before. `ray.cancel` stops an answer. Without
    chance, or with a seed, an answer that is asked for again is the same: `max_restarts=-1, max_task_retries=-1` bears the loss of a machine."""

    def __init__(self, model: str, **settings: Any) -> None:
        self._engine = opened(model, settings)

    async def generate(self, prompt: Prompt, max_tokens: int = 256, **options: Any) -> Answer:
        """The answer to a text, to tokens, or to a conversation, as `Engine.generate` gives it."""
        return await self._engine.agenerate(prompt, max_tokens, **options)

    async def stream(self, prompt: Prompt, max_tokens: int = 256, **options: Any) -> AsyncGenerator[str, None]:
        """The pieces of an answer as they come."""
        pieces = self._engine.astream(prompt, max_tokens, **options)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()

    async def score(self, prompt: Prompt, start: int = 1, top: int = 0) -> List[Score]:
        """How likely each token of a text is, as `Engine.score` says."""
        return await asyncio.get_running_loop().run_in_executor(None, lambda: self._engine.score(prompt, start=start, top=top))

    async def describe(self) -> Dict[str, Any]:
        """What the model is and how it runs."""
        return self._engine.describe()

    async def statistics(self) -> Dict[str, Any]:
        """What the engine did so far."""
        return self._engine.statistics()


Actor = ray.remote(Worker)
