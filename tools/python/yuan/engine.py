"""An open model."""

from __future__ import annotations

import functools
import json
import os
import threading
import weakref
from ctypes import byref, c_int32, c_size_t
from typing import TYPE_CHECKING, Any, AsyncGenerator, Dict, Generator, List, Mapping, Optional, Sequence, Union, overload

from ._handle import EngineOptions, Handle, SessionOptions, optional
from ._interrupt import Ask, Halt, Progress, heard, interruptibly
from ._library import OnProgress, c_text, call, size, text
from .answer import Answer, Score
from .completions import chunks, whole
from .errors import FileError, of_file
from .many import Crowd
from .options import Options
from .sampler import Sampler
from .session import OnText, Session
from .tokenizer import Message, Prompt, Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Literal, Unpack

    from .arrays import Floats

__all__ = ["Engine"]


class Engine(Handle):
    """An open model with its tokenizer. Threads may share it; what they want at the same time goes through the model together.

    >>> answer = engine.generate("春日山中", 8)
    >>> isinstance(answer, str), answer.finish
    (True, 'length')
    """

    _kind = "engine"

    def __init__(
        self, path: Union[str, os.PathLike[str]], *, threads: int = 0, threads_batch: int = 0, batch_tokens: int = 0, rope: Optional[str] = None,
        memory: Optional[str] = None, paging: str = "auto", gpu: Union[str, int] = "auto", gpu_memory: Optional[str] = None,
        look_ahead: bool = False, context: int = 0, kv: str = "f16", parallel: int = 32, progress: Optional[Progress] = None,
    ) -> None:  # fmt: skip
        """`memory` is all that may be used ("8G", "50%"), `gpu_memory` the same of the GPU ("auto", "off" or its number); `context` is how many tokens all
        sessions will have together, and a session unless it says otherwise (0: what the model was made for), `kv` the type of what they remember ("f16", "q8_0",
        "q4_0", "f32", or "q8_0:q4_0" for keys and values); `batch_tokens` go through the model together at most (0: the usual number). `parallel` is how many of
        `generate_many` and of `agenerate` run at once, fewer where the memory does not suffice for what they remember. `progress` hears how many bytes are there of how many that are read first; False stops it."""
        if parallel < 1:
            raise ValueError(f"parallel is {parallel}: give 1 or more")
        self._path = os.fspath(path)
        self._context, self._kv = context, kv
        self._sessions: "weakref.WeakSet[Session]" = weakref.WeakSet()
        self._sessions_lock = threading.Lock()
        self._crowd = Crowd(parallel)
        with EngineOptions() as options:
            call("engine_options_set_threads", options._handle, size("threads", threads))
            call("engine_options_set_threads_batch", options._handle, size("threads_batch", threads_batch))
            call("engine_options_set_batch_tokens", options._handle, size("batch_tokens", batch_tokens))
            call("engine_options_set_rope", options._handle, c_text("rope", rope))
            call("engine_options_set_memory", options._handle, c_text("memory", memory))
            call("engine_options_set_paging", options._handle, c_text("paging", paging))
            call("engine_options_set_gpu", options._handle, c_text("gpu", str(gpu)))
            call("engine_options_set_gpu_memory", options._handle, c_text("gpu_memory", gpu_memory))
            call("engine_options_set_look_ahead", options._handle, c_int32(look_ahead))
            call("engine_options_set_sessions", options._handle, size("context", context), c_text("kv", kv))
            halt = Halt(lambda: None)
            interruptibly(lambda ask: self._open_heard(options, progress, ask, halt), halt)

    def _open_heard(self, options: EngineOptions, progress: Optional[Progress], ask: Ask, halt: Halt) -> None:
        with heard(progress, ask, halt) as callback:
            call("engine_options_set_progress", options._handle, callback, None)
            try:
                self._open("engine_open", os.fsencode(self._path), options._handle)
            except FileError as error:
                raise of_file(error, self._path) from None
            finally:
                call("engine_options_set_progress", options._handle, OnProgress(), None)

    def __repr__(self) -> str:
        if self.closed:
            return f"<yuan.Engine {self.name}: closed>"
        is_ = self.describe()
        return f"<yuan.Engine {self.name}: {is_['layers']} layers of {is_['experts']} experts, {is_['layout']}, context {is_['context']}>"

    def close(self) -> None:
        """Closes it with all its sessions; what runs on them is stopped."""
        crowd = self.__dict__.get("_crowd")
        if crowd is not None and not self.closed:
            crowd.close()
            with self._sessions_lock:
                sessions = list(self._sessions)
            for session in sessions:
                session.close()
        super().close()

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to tokens and back."""
        return Tokenizer(self)

    @property
    def name(self) -> str:
        """The name of its file."""
        return os.path.basename(self._path)

    @property
    def hidden_size(self) -> int:
        """How many numbers an embedding has."""
        width = c_size_t()
        call("engine_hidden_size", self._handle, byref(width))
        return width.value

    def describe(self) -> Dict[str, Any]:
        """What the model is and how it runs."""
        described: Dict[str, Any] = json.loads(text("engine_describe", self._handle))
        return described

    def statistics(self) -> Dict[str, Any]:
        """What the engine did so far: the keys are listed in yuan.h at yuan_engine_statistics."""
        counted: Dict[str, Any] = json.loads(text("engine_statistics", self._handle))
        return counted

    def tokenize(self, text: str, *, special: bool = True) -> List[int]:
        """The tokens of a text; with `special=False` strings such as `<sep>` stay text."""
        return self.tokenizer.encode(text, special=special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return self.tokenizer.decode(tokens)

    def special_token(self, name: str) -> int:
        """The id of "eod", "sep" or "pad"."""
        return self.tokenizer.special_token(name)

    def chat_tokens(
        self, messages: Sequence[Message], *, answer: bool = True, tools: Sequence[Mapping[str, Any]] = (), thinking: Optional[bool] = None,
    ) -> List[int]:  # fmt: skip
        """The tokens of a conversation, closed so that the model answers. A message is (role, content), or a dictionary as OpenAI's clients have it
        (`reasoning_content`, `tool_calls`); `tools` are functions that the model may call, where its template knows of them."""
        return self.tokenizer.apply_chat_template(messages, tools, add_generation_prompt=answer, enable_thinking=thinking)

    def session(
        self, *, context: Optional[int] = None, kv: Optional[str] = None, shift: Optional[int] = None, draft: Union[str, int] = "auto",
    ) -> Session:  # fmt: skip
        """An empty session with room for `context` tokens (0: what the model was made for). With `shift`, an answer that fills the
        context drops old tokens, but for the first `shift`. `draft` is "auto", "off" or 1 to 3: whether the next tokens of an answer are guessed and
        checked together, which changes how long it takes, and nothing of it."""
        with SessionOptions() as options:
            context = self._context if context is None else context
            call("session_options_set_context", options._handle, size("context", context))
            call("session_options_set_kv_type", options._handle, c_text("kv", self._kv if kv is None else kv))
            call("session_options_set_draft", options._handle, c_text("draft", str(draft)))
            if shift is not None:
                call("session_options_set_context_shift", options._handle, c_int32(1), size("shift", shift))
            return self._joined(Session(self, shift is not None, "session_new", self._handle, options._handle))

    def restore(self, path: Union[str, os.PathLike[str]], sampler: Optional[Sampler] = None) -> Session:
        """A session that `Session.save` has saved; `sampler` becomes the one that was saved with it."""
        try:
            return self._joined(Session(self, False, "session_restore", self._handle, os.fsencode(path), None, optional(sampler)))
        except FileError as error:
            raise of_file(error, path) from None

    def generate(
        self, prompt: Prompt, max_tokens: int = 256, sampler: Optional[Sampler] = None, on_text: Optional[OnText] = None, **options: Unpack[Options],
    ) -> Answer:  # fmt: skip
        """An answer to a text, to tokens, or to a conversation, in a session of its own. The rest is as in `Session.generate`."""
        with self.session() as session:
            return session.generate(max_tokens, sampler, on_text, prompt=prompt, **options)

    def stream(
        self, prompt: Prompt, max_tokens: int = 256, sampler: Optional[Sampler] = None, **options: Unpack[Options],
    ) -> Generator[str, None, Answer]:  # fmt: skip
        """The pieces of an answer as they come, as `Session.stream`, in a session of its own.

        >>> pieces = list(engine.stream("春日山中", 8))
        >>> len(pieces) > 1
        True
        """
        with self.session() as session:
            return (yield from session.stream(max_tokens, sampler, prompt=prompt, **options))

    def chat(
        self, messages: Sequence[Message], max_tokens: int = 256, sampler: Optional[Sampler] = None, on_text: Optional[OnText] = None, *,
        tools: Sequence[Mapping[str, Any]] = (), thinking: Optional[bool] = None, **options: Unpack[Options],
    ) -> Answer:  # fmt: skip
        """The answer to a conversation in OpenAI's form. `Session.chat` is for conversations that go on.

        >>> answer = engine.chat(messages=[{"role": "user", "content": "春日山中 李白"}], max_tokens=8)
        """
        return self.generate(self.chat_tokens(messages, tools=tools, thinking=thinking), max_tokens, sampler, on_text, **options)

    @overload
    def create_chat_completion(
        self, messages: Sequence[Message], *, max_tokens: int = ..., stream: Literal[False] = ..., tools: Sequence[Mapping[str, Any]] = ...,
        thinking: Optional[bool] = ..., **options: Unpack[Options],
    ) -> Dict[str, Any]: ...  # fmt: skip

    @overload
    def create_chat_completion(
        self, messages: Sequence[Message], *, max_tokens: int = ..., stream: Literal[True], tools: Sequence[Mapping[str, Any]] = ...,
        thinking: Optional[bool] = ..., **options: Unpack[Options],
    ) -> Generator[Dict[str, Any], None, None]: ...  # fmt: skip

    def create_chat_completion(
        self, messages: Sequence[Message], *, max_tokens: int = 256, stream: bool = False, tools: Sequence[Mapping[str, Any]] = (),
        thinking: Optional[bool] = None, **options: Unpack[Options],
    ) -> Union[Dict[str, Any], Generator[Dict[str, Any], None, None]]:  # fmt: skip
        """As `chat`, with the answer as a dictionary of OpenAI's form, or with `stream=True` as its chunks.

        >>> done = engine.create_chat_completion([{"role": "user", "content": "春日山中 李白"}], max_tokens=8)
        >>> done["choices"][0]["finish_reason"], done["usage"]["completion_tokens"]
        ('length', 8)
        """
        asked: Dict[str, Any] = {"tools": tools, "thinking": thinking, **options}
        return chunks(self, messages, max_tokens, asked) if stream else whole(self, messages, max_tokens, asked)

    def score(self, prompt: Prompt, *, start: int = 1, top: int = 0) -> List[Score]:
        """How likely each token of a text is from the place `start` on, with the `top` likeliest in its place: as `Session.score`.

        >>> scores = engine.score("In the beginning God created")
        >>> all(score.logprob <= 0 for score in scores)
        True
        """
        with self.session() as session:
            return session.score(self.tokenizer.tokens_of(prompt), start=start, top=top)

    @overload
    def embed(self, text: str, *, normalize: bool = ...) -> Floats: ...

    @overload
    def embed(self, text: Sequence[str], *, normalize: bool = ...) -> Floats: ...

    def embed(self, text: Union[str, Sequence[str]], *, normalize: bool = False) -> Floats:
        """A NumPy array: the last hidden state of a text, or, with a row for each, those of several. With `normalize` their length is 1."""
        from .arrays import numpy

        np = numpy()
        texts = [text] if isinstance(text, str) else list(text)
        rows = self._crowd.each(self, [functools.partial(_embedding, text=one) for one in texts])
        found: Floats = np.array(rows, dtype="float32").reshape(len(rows), self.hidden_size)
        if normalize:
            found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.float32(1e-12))
        return found[0] if isinstance(text, str) else found

    @overload
    def generate_many(
        self, prompts: Sequence[Prompt], max_tokens: int = ..., *, return_exceptions: Literal[False] = ..., **options: Unpack[Options],
    ) -> List[Answer]: ...  # fmt: skip

    @overload
    def generate_many(
        self, prompts: Sequence[Prompt], max_tokens: int = ..., *, return_exceptions: Literal[True], **options: Unpack[Options],
    ) -> List[Union[Answer, Exception]]: ...  # fmt: skip

    def generate_many(
        self, prompts: Sequence[Prompt], max_tokens: int = 256, *, return_exceptions: bool = False, **options: Unpack[Options],
    ) -> Any:  # fmt: skip
        """The answers to many prompts, in their order, each the one that `generate` gives: what runs at the same time goes through the model together, and answers do not
        notice each other. The first error stops all, unless `return_exceptions` puts errors in the places of answers, as in `asyncio.gather`.

        >>> prompts = ["Psalms 151:1-4<sep>", "春日山中 李白<sep>"]
        >>> engine.generate_many(prompts, 8) == [engine.generate(prompt, 8) for prompt in prompts]
        True
        """
        return self._crowd.generate_many(self, prompts, max_tokens, return_exceptions, options)

    async def agenerate(self, prompt: Prompt, max_tokens: int = 256, **options: Unpack[Options]) -> Answer:
        """`generate` for asyncio: as many as `parallel` run at once, and share passes of the model. A task that is cancelled stops its answer.

        >>> import asyncio
        >>> async def both():
        ...     return await asyncio.gather(engine.agenerate("春", 4), engine.agenerate("秋", 4))
        >>> len(asyncio.run(both()))
        2
        """
        return await self._crowd.agenerate(self, prompt, max_tokens, options)

    async def astream(self, prompt: Prompt, max_tokens: int = 256, **options: Unpack[Options]) -> AsyncGenerator[str, None]:
        """`stream` for asyncio: `async for piece in engine.astream(…)`. Leaving the loop stops the answer."""
        pieces = self._crowd.astream(self, prompt, max_tokens, options)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()

    def _joined(self, session: Session) -> Session:
        with self._sessions_lock:
            self._sessions.add(session)
        return session


def _embedding(session: Session, text: str) -> List[float]:
    session.sync(session.engine.tokenizer.encode(text))
    return session.embedding_list()
