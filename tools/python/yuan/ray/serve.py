"""Yuan on Ray Serve: replicas of an engine, and clients of OpenAI's chat interface before them.

    serve run yuan.ray.serve:app model=/models/yuan2-m32.gguf replicas=2 cpus=8

or, in a program, `serve.run(yuan.ray.serve.app(yuan.ray.serve.Settings(model=…)))`. A replica takes as many requests at a time as its engine has `sequences`. One that goes away, because
there are to be fewer or a newer one takes its place, gets no new requests and ends those that it has. Who names a conversation (the header `serve_multiplexed_model_id`, in a program
`handle.options(multiplexed_model_id=…)`) comes to the replica that has read it, and where that has gone to one that goes on from its file."""

# No `from __future__ import annotations`: Ray Serve looks at the class by which `app` is annotated.
import asyncio
import contextlib
import json
import math
import time
import weakref
from pathlib import Path
from typing import Any, AsyncGenerator, AsyncIterator, Callable, Dict, List, Mapping, Optional

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ..answer import Answer
from ..completions import Chunks, completion
from ..session import Session
from ..tokenizer import Prompt
from ._conversation import Conversation
from ._http import Asked, asked, refusal
from ._place import opened
from ._pulse import Pulse

__all__ = ["Replica", "Settings", "app"]


class Settings(BaseModel):
    """What is served, and how."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="the container: a file that lies at the same path on every machine")
    replicas: int = Field(default=1, ge=1, le=10_000, description="how many engines; a Serve config file may have it grow and shrink instead (autoscaling_config)")
    sequences: int = Field(default=8, ge=1, le=1024, description="how many answers run at a time in a replica, and share its passes")
    queue: int = Field(default=64, ge=-1, description="how many requests wait in a proxy; further ones get status 503 (-1: any number)")
    cpus: float = Field(default=1.0, ge=0, description="processors that Ray reserves for a replica, which computes with as many threads (0: all that it sees)")
    memory: Optional[int] = Field(default=None, ge=1, description="bytes that Ray reserves for a replica, which keeps to them")
    gpus: float = Field(default=0.0, ge=0, description="GPUs that Ray reserves for a replica")
    context: int = Field(default=0, ge=0, description="how many tokens a request has room for (0: what the model was made for)")
    sessions: Optional[str] = Field(default=None, description="a folder that all machines see, where conversations are kept")
    conversations: int = Field(default=8, ge=1, le=100_000, description="how many named conversations a replica keeps open, which take memory meanwhile")
    drain: float = Field(default=600.0, gt=0, description="seconds that a replica that goes away has for the answers that it gives")
    patience: float = Field(default=300.0, gt=0, description="seconds without a pass of the model, while answers are waited for, after which a replica is replaced")
    engine: Dict[str, Any] = Field(default_factory=dict, description="further settings of yuan.Engine")


class Replica:
    """An engine, and what is asked of it."""

    def __init__(self, settings: Settings) -> None:
        given = {"context": settings.context, "parallel": settings.sequences, **settings.engine}
        self._engine = opened(settings.model, given)
        self._pulse = Pulse(settings.patience)
        self._waiting = 0
        self._kept: "weakref.WeakSet[Conversation]" = weakref.WeakSet()
        self._conversation: Optional[Callable[[str], Any]] = None
        if settings.sessions is not None:
            folder = Path(settings.sessions)
            folder.mkdir(parents=True, exist_ok=True)

            async def kept(name: str) -> Conversation:
                made = Conversation(self._engine, folder, name)
                self._kept.add(made)
                return made

            keep: Any = serve.multiplexed(max_num_models_per_replica=settings.conversations)
            self._conversation = keep(kept)

    def __del__(self) -> None:
        """Ray Serve calls it when the last answer was given, or no time is left."""
        for conversation in list(self.__dict__.get("_kept", ())):
            conversation.sleep()
        if "_engine" in self.__dict__:
            self._engine.close()

    async def check_health(self) -> None:
        """Ray Serve asks now and then, and replaces a replica that fails."""
        passes = self._engine.statistics()["loop"]["passes"]
        if not self._pulse.beats(passes, self._waiting, time.monotonic()):
            raise RuntimeError(f"{self._waiting} answers are waited for, and no pass of the model has ended for too long")

    async def generate(self, prompt: Prompt, max_tokens: int = 256, **options: Any) -> Answer:
        """An answer, for programs that have a handle. `prompt` is a text, tokens or a conversation."""
        async with self._turn() as session:
            return await self._engine._crowd.agenerate(self._engine, prompt, max_tokens, options, session)

    async def stream(self, prompt: Prompt, max_tokens: int = 256, **options: Any) -> AsyncGenerator[str, None]:
        """Its pieces as they come: `handle.options(stream=True).stream.remote(…)`."""
        async for piece in self._pieces(prompt, max_tokens, options, None):
            yield piece

    async def __call__(self, request: Request) -> Response:
        """A request over HTTP."""
        place = (request.method, request.url.path.rstrip("/"))
        if place == ("GET", "/v1/models"):
            return JSONResponse({"object": "list", "data": [{"id": self._engine.name, "object": "model", "owned_by": "yuan"}]})
        if place == ("GET", "/health"):
            await self.check_health()
            return JSONResponse({"status": "ok"})
        if place != ("POST", "/v1/chat/completions"):
            return JSONResponse({"error": {"message": f"there is no {' '.join(place)}: POST /v1/chat/completions, GET /v1/models, GET /health", "type": "not_found"}}, 404)
        try:
            wanted = asked(await request.json(), self._engine)
            if not wanted.is_stream:
                return JSONResponse(completion(self._engine, await self.generate(wanted.prompt, wanted.max_tokens, **wanted.options)))
            events = self._events(wanted)
            # What is wrong with a request is found out before the first piece, when there still can be a status.
            return StreamingResponse(_behind(await events.__anext__(), events), media_type="text/event-stream")
        except Exception as error:
            status, said = refusal(error)
            return JSONResponse(said, status)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[Optional[Session]]:
        """The session of the conversation that the request names, if it names one and no other request is speaking in it."""
        name = serve.get_multiplexed_model_id()
        conversation: Optional[Conversation] = await self._conversation(name) if name and self._conversation else None
        session = await asyncio.to_thread(conversation.take) if conversation else None
        self._waiting += 1
        try:
            yield session
        finally:
            self._waiting -= 1
            if conversation is not None and session is not None:
                await asyncio.to_thread(conversation.give_back)

    async def _pieces(
        self, prompt: Prompt, max_tokens: int, options: Mapping[str, Any], on_end: Optional[Callable[[Answer], None]],
    ) -> AsyncGenerator[str, None]:  # fmt: skip
        async with self._turn() as session:
            pieces = self._engine._crowd.astream(self._engine, prompt, max_tokens, options, session, on_end)
            try:
                async for piece in pieces:
                    yield piece
            finally:
                await pieces.aclose()

    async def _events(self, wanted: Asked) -> AsyncGenerator[str, None]:
        chunks = Chunks(self._engine)
        ends: List[Answer] = []
        is_begun = False
        pieces = self._pieces(wanted.prompt, wanted.max_tokens, wanted.options, ends.append)
        try:
            async for piece in pieces:
                if not is_begun:
                    yield _event(chunks.first())
                    is_begun = True
                yield _event(chunks.piece(piece))
        except Exception as error:
            if not is_begun:
                raise
            yield _event(refusal(error)[1])
            return
        finally:
            await pieces.aclose()
        if not is_begun:
            yield _event(chunks.first())
        yield _event(chunks.last(ends[0]))
        yield "data: [DONE]\n\n"


def _event(said: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(said, ensure_ascii=False)}\n\n"


async def _behind(first: str, rest: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    try:
        yield first
        async for one in rest:
            yield one
    finally:
        await rest.aclose()


def app(settings: Settings) -> serve.Application:
    """The application, for `serve.run` and `serve run`."""
    reserved: Dict[str, Any] = {"num_cpus": settings.cpus, "num_gpus": settings.gpus}
    if settings.memory is not None:
        reserved["memory"] = settings.memory
    made = serve.deployment(
        name="yuan", num_replicas=settings.replicas, ray_actor_options=reserved, max_ongoing_requests=settings.sequences, max_queued_requests=settings.queue,
        graceful_shutdown_timeout_s=settings.drain, graceful_shutdown_wait_loop_s=min(2.0, settings.drain), health_check_timeout_s=math.ceil(min(30.0, settings.patience)),
    )(Replica)  # fmt: skip
    bound: serve.Application = made.bind(settings)
    return bound
