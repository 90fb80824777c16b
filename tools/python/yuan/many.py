"""Many answers at once: threads with a session each, whose tokens the engine runs in the same passes."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, AsyncGenerator, Callable, ContextManager, Generic, Iterator, List, Mapping, Optional, Sequence, TypeVar, Union

from ._interrupt import received, throw
from ._library import size_or_all
from .answer import Answer
from .errors import CancelledError, OutOfMemoryError
from .options import Wanted

if TYPE_CHECKING:
    from .engine import Engine
    from .session import Session
    from .tokenizer import Prompt

T = TypeVar("T")


class Turns:
    """How many run at once: fewer for a while, where the memory does not suffice for as many as are wanted."""

    def __init__(self, most: int) -> None:
        self._most = self._limit = most
        self._running = 0
        self._changed = threading.Condition()

    def begin(self, is_stopped: Callable[[], bool]) -> bool:
        """Waits for a turn, and says whether it is the only one until it ends."""
        with self._changed:
            while self._running >= self._limit:
                if is_stopped():
                    raise CancelledError("the answer was stopped before it began")
                self._changed.wait(0.1)
            self._running += 1
            return self._limit == 1

    def end(self, lacks_memory: bool) -> None:
        """Gives the turn back. One that lacked memory has its next turn when another has ended; one that did not makes room for one more."""
        with self._changed:
            self._running -= 1
            if lacks_memory:
                self._limit = max(1, min(self._limit, self._running))
            else:
                self._limit = min(self._most, self._limit + 1)
            self._changed.notify_all()


class Task(Generic[T]):
    """Work in a session of its own, or in a given one, which can be stopped from any thread, before it begins, too."""

    def __init__(self, engine: Engine, turns: Turns, work: Callable[[Session], T], given: Optional[Session] = None) -> None:
        self._engine, self._turns, self._work, self._given = engine, turns, work, given
        self._lock = threading.Lock()
        self._session: Optional[Session] = None
        self.stopped = False
        self.is_shown = False
        """Whether a part of the answer was shown, which then cannot be begun anew."""

    def run(self) -> T:
        """Does the work; anew when others have ended, where there was no memory for it beside them."""
        while True:
            alone = self._turns.begin(lambda: self.stopped)
            lacking: List[OutOfMemoryError] = []
            try:
                return self._once()
            except OutOfMemoryError as error:
                lacking.append(error)
            finally:
                self._turns.end(bool(lacking))
            if alone or self.is_shown:
                throw(lacking)

    def _once(self) -> T:
        if self.stopped:
            raise CancelledError("the answer was stopped before it began")
        place: ContextManager[Session] = self._engine.session() if self._given is None else contextlib.nullcontext(self._given)
        with place as session:
            session._is_doomed = lambda: self.stopped
            with self._lock:
                self._session = session
            try:
                return self._work(session)
            finally:
                session._is_doomed = bool
                with self._lock:
                    self._session = None

    def stop(self) -> None:
        """Stops it."""
        self.stopped = True
        with self._lock:
            if self._session is not None and not self._session.closed:
                self._session.cancel()


class Crowd:
    """The threads of an engine, made when they are first wanted."""

    def __init__(self, parallel: int) -> None:
        self._parallel = parallel
        self._turns = Turns(parallel)
        self._lock = threading.Lock()
        self._threads: Optional[ThreadPoolExecutor] = None

    def close(self) -> None:
        """Begins nothing any more."""
        with self._lock:
            if self._threads is not None:
                self._threads.shutdown(wait=False, cancel_futures=True)
                self._threads = None

    def _submit(self, task: Task[T]) -> Future[T]:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._parallel, thread_name_prefix="yuan-many")
            return self._threads.submit(task.run)

    def _answer(
        self, engine: Engine, prompt: Prompt, max_tokens: int, options: Mapping[str, Any], on_text: Optional[Callable[[str], object]] = None,
        given: Optional[Session] = None,
    ) -> Task[Answer]:  # fmt: skip
        """An answer that is asked for; wrong arguments are found out at once."""
        if "sampler" in options:
            raise TypeError("answers at the same time cannot share a sampler: give its settings by name")
        tokens = engine.tokenizer.tokens_of(prompt)
        size_or_all("max_tokens", max_tokens)
        Wanted.of(None, **options).done()

        def work(session: Session) -> Answer:
            def hear(piece: str) -> bool:
                if on_text is not None:
                    task.is_shown = True
                    on_text(piece)
                return not task.stopped

            return session.generate(max_tokens, None, hear, prompt=tokens, **options)

        task = Task(engine, self._turns, work, given)
        return task

    def each(self, engine: Engine, works: Sequence[Callable[[Session], T]]) -> List[T]:
        """What each of the works gives. The first failure stops all."""
        return self._all([Task(engine, self._turns, work) for work in works])

    def _all(self, tasks: Sequence[Task[T]]) -> List[T]:
        futures: List[Future[T]] = []
        try:
            for done in self._done(tasks, futures):
                done.result()
            return [future.result() for future in futures]
        finally:
            self._end(tasks, futures)

    def _done(self, tasks: Sequence[Task[T]], futures: List[Future[T]]) -> Iterator[Future[T]]:
        """Hands the tasks in, and gives their futures as they are done."""
        done: "queue.SimpleQueue[Future[T]]" = queue.SimpleQueue()
        for task in tasks:
            future = self._submit(task)
            futures.append(future)
            future.add_done_callback(done.put)
        for _ in tasks:
            yield received(done)

    def _end(self, tasks: Sequence[Task[T]], futures: Sequence[Future[T]]) -> None:
        """Stops what is not done, and waits for it."""
        late: List[Any] = []
        while not all(future.done() for future in futures):
            try:
                for task, future in zip(tasks, futures):
                    if not future.cancel() and not future.done():
                        task.stop()
                time.sleep(0.005)
            except KeyboardInterrupt as error:  # Not before that.
                late = [error]
        if late:
            throw(late)

    def generate_many(
        self, engine: Engine, prompts: Sequence[Prompt], max_tokens: int, return_exceptions: bool, options: Mapping[str, Any],
    ) -> List[Union[Answer, Exception]]:  # fmt: skip
        """See `Engine.generate_many`."""
        if isinstance(prompts, str):
            raise TypeError("prompts is one text: give a list of them")
        if not return_exceptions:
            answers = self._all([self._answer(engine, prompt, max_tokens, options) for prompt in prompts])
            return list(answers)
        tasks = [self._answer(engine, prompt, max_tokens, options) for prompt in prompts]
        futures: List[Future[Answer]] = []
        try:
            for _ in self._done(tasks, futures):
                pass
            return [_answer_or_error(future) for future in futures]
        finally:
            self._end(tasks, futures)

    async def agenerate(
        self, engine: Engine, prompt: Prompt, max_tokens: int, options: Mapping[str, Any], given: Optional[Session] = None,
    ) -> Answer:  # fmt: skip
        """See `Engine.agenerate` and `Session.agenerate`."""
        task = self._answer(engine, prompt, max_tokens, options, given=given)
        future = self._submit(task)
        try:
            return await asyncio.wrap_future(future)
        finally:
            task.stop()
            if given is not None:
                await _ended(future)

    async def astream(
        self, engine: Engine, prompt: Prompt, max_tokens: int, options: Mapping[str, Any], given: Optional[Session] = None,
        on_end: Optional[Callable[[Answer], None]] = None,
    ) -> AsyncGenerator[str, None]:  # fmt: skip
        """See `Engine.astream` and `Session.astream`. `on_end` hears the whole answer."""
        loop = asyncio.get_running_loop()
        pieces: "asyncio.Queue[Optional[str]]" = asyncio.Queue()

        def tell(piece: Optional[str]) -> None:
            try:
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except RuntimeError:  # The loop is closed: nobody hears it any more.
                task.stopped = True

        task = self._answer(engine, prompt, max_tokens, options, tell, given)
        future = self._submit(task)
        future.add_done_callback(lambda _: tell(None))
        try:
            while True:
                piece = await pieces.get()
                if piece is None:
                    answer = future.result()
                    if on_end is not None:
                        on_end(answer)
                    return
                yield piece
        finally:
            future.cancel()
            task.stop()
            if given is not None:
                await _ended(future)


async def _ended(future: Future[Any]) -> None:
    """Waits until work has ended, however it does: the session that it was given is free then."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            loop.call_soon_threadsafe(over.set)

    future.add_done_callback(tell)
    await over.wait()


def _answer_or_error(future: Future[Answer]) -> Union[Answer, Exception]:
    try:
        return future.result()
    except Exception as error:
        return error
