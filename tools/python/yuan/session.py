"""One sequence of tokens on an engine."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import threading
from ctypes import byref, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any, AsyncGenerator, Callable, Generator, Iterator, List, Mapping, Optional, Sequence, Tuple, TypeVar, Union

from ._handle import Handle, optional
from ._interrupt import Ask, Halt, Progress, ended, heard, interruptibly, received, throw
from ._library import OnScore, OnToken, call, filled, ids, library, size, size_or_all, text
from .answer import Answer, Score
from .arrays import floats
from .errors import BusyError, CancelledError, ClosedError, FileError, TimeLimitError, of_file
from .options import Options, Wanted
from .sampler import Sampler

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .arrays import Floats
    from .engine import Engine
    from .tokenizer import Message, Prompt

__all__ = ["Session"]

T = TypeVar("T")
OnText = Callable[[str], Optional[bool]]
FINISHES = ("stop", "stop_text", "length", "cancelled")


class Session(Handle):
    """One sequence of tokens. One call at a time: what another thread asks for meanwhile is a `BusyError`; `cancel` and `close` come from any.

    >>> with engine.session() as session:
    ...     session.eval(engine.tokenize("春日山中"))
    ...     answer = session.generate(8)
    >>> answer.finish, len(answer.tokens)
    ('length', 8)
    """

    _kind = "session"

    def __init__(self, engine: Engine, shifts: bool, maker: str, *args: Any) -> None:
        self._engine = engine
        self._shifts = shifts
        self._lock = threading.Lock()
        self._halt: Optional[Halt] = None
        self._is_doomed: Callable[[], bool] = bool
        """Whether what begins on it is to stop at once."""
        self.finish: Optional[str] = None
        """Why the last answer ended: "stop", "stop_text", "length" or "cancelled"."""
        self._open(maker, *args)

    def __repr__(self) -> str:
        if self.closed:
            return "<yuan.Session: closed>"
        try:
            return f"<yuan.Session: {len(self.tokens)} of {self.capacity} tokens>"
        except BusyError:
            return "<yuan.Session: in use>"

    def close(self) -> None:
        """Frees it. A call that is using it in another thread is stopped, and a stream ends."""
        halt = self.__dict__.get("_halt")
        if halt is not None:
            halt.now(ClosedError("the session was closed during the call"))
        super().close()

    @property
    def engine(self) -> Engine:
        """The engine."""
        return self._engine

    @property
    def tokens(self) -> List[int]:
        """The tokens that the session holds."""
        return list(filled(c_uint32, "session_tokens", self._handle))

    @property
    def capacity(self) -> int:
        """How many tokens it has room for."""
        capacity = c_size_t()
        call("session_capacity", self._handle, byref(capacity))
        return capacity.value

    @property
    def note(self) -> str:
        """A text of the program's own that is saved with the session."""
        return text("session_note", self._handle)

    @note.setter
    def note(self, said: str) -> None:
        data = said.encode()
        call("session_set_note", self._handle, data, c_size_t(len(data)))

    def eval(self, tokens: Sequence[int], progress: Optional[Progress] = None) -> None:
        """Adds tokens. `progress` hears how many are done, and of how many; it stops the call with False."""
        self._run(lambda ask, halt: self._feed("session_eval", tokens, progress, ask, halt))

    def sync(self, tokens: Sequence[int], progress: Optional[Progress] = None) -> None:
        """Makes the session hold these tokens; what it has in common with them at the beginning is not run again."""
        self._run(lambda ask, halt: self._feed("session_sync", tokens, progress, ask, halt))

    def score(self, tokens: Sequence[int], *, start: int = 1, top: int = 0) -> List[Score]:
        """Makes the session hold these tokens, and says of each from the place `start` on how likely it was behind those before it, with the `top` likeliest in
        its place. The first has nothing before it. What lists have in common at their beginning is not run again."""
        given, begin, most = ids(tokens), size("start", start), size("top", top)

        def work(_ask: Ask, halt: Halt) -> List[Score]:
            scores: List[Score] = []
            hear = OnScore(_score_into(scores, halt))
            self._stoppable(halt, "session_score", given, c_size_t(len(tokens)), begin, most, hear, None)
            return scores

        return self._run(work)

    def return_to(self, places: Sequence[int]) -> None:
        """Keeps what it takes to go back to these places exactly, 15 at most, as `sync` and `score` pass them."""
        numbers = (c_size_t * len(places))(*(size("a place", place).value for place in places))
        call("session_return_to", self._handle, numbers, c_size_t(len(places)))

    def draft_from(self, tokens: Sequence[int]) -> None:
        """Drafts answers from these tokens, too, in place of earlier ones: a text that they will probably quote, or begin with."""
        call("session_draft_from", self._handle, ids(tokens), c_size_t(len(tokens)))

    @property
    def drafted(self) -> Tuple[int, int]:
        """How many tokens of answers were guessed and run so far, and how many of them were the next tokens."""
        drafted, accepted = c_uint64(), c_uint64()
        call("session_drafted", self._handle, byref(drafted), byref(accepted))
        return drafted.value, accepted.value

    def rewind(self, position: int) -> None:
        """Keeps the first `position` tokens."""
        call("session_rewind", self._handle, size("position", position))

    def logits(self) -> Floats:
        """A NumPy array of one number for each token of the vocabulary, behind the last token of the session. It stays when the session goes on."""
        return floats(self._engine.tokenizer.vocab_size, "session_logits", self._handle)

    def logits_list(self) -> List[float]:
        """The same without NumPy."""
        return list(filled(c_float, "session_logits", self._handle))

    def embedding(self) -> Floats:
        """A NumPy array: the last hidden state of the last token."""
        return floats(self._engine.hidden_size, "session_embedding", self._handle)

    def embedding_list(self) -> List[float]:
        """The same without NumPy."""
        return list(filled(c_float, "session_embedding", self._handle))

    def sample(self, sampler: Sampler) -> int:
        """The next token, which is not added."""
        token = c_uint32()
        call("session_sample", self._handle, sampler._handle, byref(token))
        return token.value

    def generate(
        self, max_tokens: int = 256, sampler: Optional[Sampler] = None, on_text: Optional[OnText] = None, *, prompt: Optional[Prompt] = None,
        **options: Unpack[Options],
    ) -> Answer:  # fmt: skip
        """An answer of up to `max_tokens` tokens, -1 for no limit, behind what the session holds; with `prompt`, behind that (what both have in common is
        not run again). `on_text` hears it piece by piece and ends it with False; no piece ends inside a character. The choice of tokens is a
        `sampler`'s, or has its settings by name (`temperature=0.6, seed=7`); what else can be asked for is in `Options`."""
        tokens = None if prompt is None else self._engine.tokenizer.tokens_of(prompt)
        wanted, most = Wanted.of(sampler, **options), size_or_all("max_tokens", max_tokens)

        def work(ask: Ask, halt: Halt) -> Answer:
            show = None if on_text is None else lambda piece: ask(on_text, piece) is not False
            return self._answer(tokens, most, wanted, show, halt)

        try:
            return self._run(work, wanted.timeout)
        finally:
            wanted.done()

    def chat(
        self, messages: Sequence[Message], max_tokens: int = 256, sampler: Optional[Sampler] = None, on_text: Optional[OnText] = None, *,
        tools: Sequence[Mapping[str, Any]] = (), thinking: Optional[bool] = None, **options: Unpack[Options],
    ) -> Answer:  # fmt: skip
        """The answer to a conversation in OpenAI's form. When it has grown, only what is new of it is run."""
        tokens = self._engine.chat_tokens(messages, tools=tools, thinking=thinking)
        return self.generate(max_tokens, sampler, on_text, prompt=tokens, **options)

    def stream(
        self, max_tokens: int = 256, sampler: Optional[Sampler] = None, *, prompt: Optional[Prompt] = None, **options: Unpack[Options],
    ) -> Generator[str, None, Answer]:  # fmt: skip
        """The pieces of an answer as they come; arguments are those of `generate`. Leaving the loop ends the answer: the session has what was
        shown of it. What `yield from` gives is the whole answer."""
        tokens = None if prompt is None else self._engine.tokenizer.tokens_of(prompt)
        return self._pieces(tokens, size_or_all("max_tokens", max_tokens), Wanted.of(sampler, **options))

    async def agenerate(self, max_tokens: int = 256, *, prompt: Prompt, **options: Unpack[Options]) -> Answer:
        """`generate` for asyncio, as `Engine.agenerate`. A task that is cancelled stops its answer, and the session is free when it has ended."""
        return await self._engine._crowd.agenerate(self._engine, prompt, max_tokens, options, self)

    async def astream(self, max_tokens: int = 256, *, prompt: Prompt, **options: Unpack[Options]) -> AsyncGenerator[str, None]:
        """`stream` for asyncio, as `Engine.astream`."""
        pieces = self._engine._crowd.astream(self._engine, prompt, max_tokens, options, self)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()

    def cancel(self) -> None:
        """Stops the call that is running on the session; where none is, nothing happens. Any thread."""
        handle, halt = self._handle, self._halt
        if halt is not None:
            halt.now()
        else:
            call("session_cancel", handle)

    def save(self, path: Union[str, os.PathLike[str]], sampler: Optional[Sampler] = None) -> None:
        """Writes the session, and where the sampler's choices stand, to a file; `Engine.restore` reads it."""
        try:
            call("session_save", self._handle, optional(sampler), os.fsencode(path))
        except FileError as error:
            raise of_file(error, path) from None

    @contextlib.contextmanager
    def _alone(self, halt: Halt, timeout: Optional[float]) -> Iterator[None]:
        """Nobody else has a call on the session meanwhile."""
        if not self._lock.acquire(blocking=False):
            raise BusyError(
                "the session is in use: by another thread, by a stream whose loop was not left, or around this callback; wait until that is over, or take a "
                "session for each"
            )
        self._halt = halt
        halt.asked = halt.asked or self._is_doomed()
        timer = None
        try:
            if timeout is not None:
                timer = threading.Timer(timeout, halt.now, [TimeLimitError(f"the answer took longer than {timeout} seconds")])
                timer.daemon = True
                timer.start()
            yield
        finally:
            if timer is not None:
                timer.cancel()
            self._halt = None
            self._lock.release()

    def _run(self, work: Callable[[Ask, Halt], T], timeout: Optional[float] = None) -> T:
        """A call that may take long."""
        halt = self._new_halt()

        def alone(ask: Ask) -> T:
            with self._alone(halt, timeout):
                return work(ask, halt)

        return interruptibly(alone, halt)

    def _new_halt(self) -> Halt:
        handle = self._handle
        return Halt(lambda: _cancel(handle))

    def _stoppable(self, halt: Halt, function: str, *args: Any) -> None:
        """A call that runs tokens, unless it has to stop already."""
        halt.check()
        if halt.asked:
            raise CancelledError("the call was stopped")
        try:
            call(function, self._handle, *args)
        except CancelledError:
            halt.check()
            raise

    def _feed(self, function: str, tokens: Sequence[int], progress: Optional[Progress], ask: Ask, halt: Halt) -> None:
        with heard(progress, ask, halt) as callback:
            self._stoppable(halt, function, ids(tokens), c_size_t(len(tokens)), callback, None)

    def _answer(
        self, tokens: Optional[List[int]], most: c_size_t, wanted: Wanted, show: Optional[Callable[[str], bool]], halt: Halt,
    ) -> Answer:  # fmt: skip
        """An answer behind `tokens`, whose pieces `show` hears; it ends it with False."""
        if tokens is not None:
            try:
                self._feed("session_sync", tokens, None, lambda: None, halt)
            except CancelledError:
                self.finish = "cancelled"
                return Answer.of("", self.finish, [], len(tokens), None)
        pieces: List[str] = []
        scores: List[Score] = []
        failure: List[BaseException] = []

        def hear(_token: int, said: Any, length: int, _data: Any) -> int:
            try:
                piece = ctypes.string_at(said, length).decode()
                pieces.append(piece)
                return int(bool(piece) and show is not None and not show(piece)) or int(halt.asked)
            except BaseException as error:  # No exception may pass through C.
                failure.append(error)
                return 1

        before, finish = len(self.tokens), c_int32()
        on_token, on_score = OnToken(hear), OnScore(_score_into(scores, halt))
        # Where a full context drops tokens, what was chosen is not what is new in the session.
        scored = wanted.logprobs is not None or self._shifts
        with self._form(wanted.form):
            if scored:
                top = c_size_t(wanted.logprobs or 0)
                self._stoppable(
                    halt, "session_generate_scored", wanted.sampler._handle, most, top, on_token, on_score, None, byref(finish)
                )
            else:
                self._stoppable(halt, "session_generate", wanted.sampler._handle, most, on_token, None, byref(finish))
        self.finish = FINISHES[finish.value]
        said = "".join(pieces)
        if failure:
            throw(failure)
        if isinstance(halt.error, TimeLimitError):
            halt.error.partial = said
        halt.check()
        chosen = [score.token for score in scores] if scored else self.tokens[before:]
        return Answer.of(said, self.finish, chosen, before, scores if wanted.logprobs is not None else None)

    def _pieces(self, tokens: Optional[List[int]], most: c_size_t, wanted: Wanted) -> Generator[str, None, Answer]:
        """The answer is computed in another thread, which waits until a piece is taken."""
        pieces: "queue.SimpleQueue[Union[str, Answer, BaseException]]" = queue.SimpleQueue()
        turn: "queue.SimpleQueue[bool]" = queue.SimpleQueue()
        halt = self._new_halt()
        halt.on_stop(lambda: turn.put(False))

        def show(piece: str) -> bool:
            pieces.put(piece)
            return turn.get()

        def work() -> None:
            try:
                with self._alone(halt, wanted.timeout):
                    said: Union[Answer, BaseException] = self._answer(tokens, most, wanted, show, halt)
            except BaseException as error:
                said = error
            halt.ended.set()
            pieces.put(said)

        thread = threading.Thread(target=work, name="yuan-stream", daemon=True)
        try:
            thread.start()
            while True:
                held = [received(pieces)]
                if isinstance(held[0], BaseException):
                    throw(held)
                if isinstance(held[0], Answer):
                    return held[0]
                yield held[0]
                turn.put(True)
        finally:
            ended(thread, halt)
            wanted.done()

    @contextlib.contextmanager
    def _form(self, form: Optional[Tuple[str, bytes]]) -> Iterator[None]:
        """What an answer has to be, while it is made."""
        if form is None:
            yield
            return
        name, said = form
        call(f"session_set_{name}", self._handle, said)
        try:
            yield
        finally:
            if not self.closed:
                call(f"session_set_{name}", self._handle, None)


def _cancel(handle: c_void_p) -> None:
    # Nothing is to be stopped where it is closed meanwhile.
    library.yuan_session_cancel(handle)


def _score_into(scores: List[Score], halt: Halt) -> Callable[[int, float, Any, Any, int, Any], int]:
    def hear(token: int, logprob: float, best: Any, logprobs: Any, count: int, _data: Any) -> int:
        scores.append(Score(token, logprob, list(zip(best[:count], logprobs[:count]))))
        return int(halt.asked)

    return hear
