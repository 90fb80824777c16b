"""Calls that can be stopped: by Ctrl-C, by a time limit, by `close()`, or from another thread.

Python handles signals on its main thread and between its own instructions, and so not while a call of the library runs there. A long call
of the main thread is therefore made on a thread of its own, while the main thread waits in a way that signals end; callbacks still run on
the thread that made the call."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
import weakref
from typing import Any, Callable, Iterator, List, NoReturn, Optional, TypeVar

from ._library import OnProgress
from .errors import CancelledError

T = TypeVar("T")
Ask = Callable[..., Any]
"""Calls a function with arguments on the thread that made the call."""
Progress = Callable[[int, int], Optional[bool]]
"""Hears how much is done of how much; False stops the call."""

# Waiting without an end cannot be interrupted on Windows.
_WAIT: Optional[float] = 0.1 if os.name == "nt" else None


class Halt:
    """Whether a running call is to stop, and why."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._wakers: List[Callable[[], None]] = []
        self.asked = False
        self.error: Optional[BaseException] = None
        self.ended = threading.Event()
        with _lock:
            _running.add(self)

    def now(self, error: Optional[BaseException] = None) -> None:
        """Stops the call, which then raises `error`, if one is given. Any thread, any number of times."""
        if self.error is None:
            self.error = error
        self.asked = True
        for wake in self._wakers:
            wake()
        if not self.ended.is_set():
            self._cancel()

    def check(self) -> None:
        """Raises the error with which the call was stopped, if there is one."""
        if self.error is not None:
            held = [self.error]
            self.error = None
            throw(held)

    def on_stop(self, wake: Callable[[], None]) -> None:
        """Calls `wake` when the call is to stop."""
        self._wakers.append(wake)


_running: "weakref.WeakSet[Halt]" = weakref.WeakSet()
_lock = threading.Lock()


@atexit.register
def _end_all() -> None:
    """Ends what runs: a thread that comes back to an interpreter that is gone would end the process."""
    with _lock:
        running = [halt for halt in _running if not halt.ended.is_set()]
    until = time.monotonic() + 10
    for halt in running:
        while not halt.ended.is_set() and time.monotonic() < until:
            try:
                halt.now()
            except Exception:  # It has ended meanwhile.
                break
            halt.ended.wait(0.05)


def throw(held: List[Any]) -> NoReturn:
    """Raises the exception in a list and takes it out: one that a variable holds beside its traceback would keep all that the call had."""
    raise held.pop()


def received(inbox: "queue.SimpleQueue[T]") -> T:
    """The next of a queue. A signal's exception comes out of it."""
    while True:
        try:
            return inbox.get(timeout=_WAIT)
        except queue.Empty:
            continue


def ended(thread: threading.Thread, halt: Halt) -> None:
    """Waits until a thread has stopped, which is asked to again and again: a call may just have been about to begin."""
    late: List[Any] = []
    # A signal may have come while the thread was being started: then it is not alive yet.
    begun = time.monotonic() + 1
    while thread.is_alive() or not (halt.ended.is_set() or time.monotonic() > begun):
        try:
            halt.now()
            if halt.ended.wait(0.05) and thread.is_alive():
                thread.join(0.05)
        except KeyboardInterrupt as error:  # Not before that.
            late = [error]
    if late:
        throw(late)


def interruptibly(work: Callable[[Ask], T], halt: Halt) -> T:
    """What `work` returns, or raises. An exception of a signal stops it, and is raised when it has stopped: its objects can be used then. So `work` is what
    takes locks and gives them back, where no signal comes in between."""
    if threading.current_thread() is not threading.main_thread():
        try:
            return work(lambda function, *args: function(*args))
        finally:
            halt.ended.set()
    inbox: "queue.SimpleQueue[Any]" = queue.SimpleQueue()
    given_up = threading.Event()

    def ask(function: Callable[..., Any], *args: Any) -> Any:
        reply: "queue.SimpleQueue[Any]" = queue.SimpleQueue()
        inbox.put((function, args, reply))
        while not given_up.is_set():
            try:
                done, value = reply.get(timeout=0.1)
            except queue.Empty:
                continue
            if done:
                return value
            throw([value])
        raise InterruptedError

    def there() -> None:
        outcome = _outcome(work, (ask,))
        halt.ended.set()
        inbox.put((None, outcome, None))

    thread = threading.Thread(target=there, name="yuan-call", daemon=True)
    try:
        thread.start()
        while True:
            function, args, reply = received(inbox)
            if function is None:
                break
            reply.put(_outcome(function, args))
    except BaseException:
        given_up.set()
        ended(thread, halt)
        raise
    done, found = args[0], [args[1]]
    del args
    if not done:
        throw(found)
    result: T = found[0]
    return result


@contextlib.contextmanager
def heard(progress: Optional[Progress], ask: Ask, halt: Halt) -> Iterator[Any]:
    """The callback by which a call tells `progress` how far it is, and is stopped. What `progress` raises comes out of the `with` in place of the call's own error."""
    failure: List[BaseException] = []

    def hear(done: int, total: int, _data: Any) -> int:
        try:
            return int(halt.asked or (progress is not None and ask(progress, done, total) is False))
        except BaseException as error:  # No exception may pass through C.
            failure.append(error)
            return 1

    try:
        yield OnProgress(hear)
    except CancelledError:
        if failure:
            raise failure.pop() from None
        raise


def _outcome(function: Callable[..., Any], args: Any) -> Any:
    try:
        return True, function(*args)
    except BaseException as error:
        return False, error
