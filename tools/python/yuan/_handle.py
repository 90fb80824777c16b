"""Something of the library that is open: closed with its Python object, by `close()`, or at the end of a `with`."""

from __future__ import annotations

import os
from ctypes import byref, c_void_p
from typing import Any, NoReturn, TypeVar

from ._library import call
from .errors import ClosedError

_H = TypeVar("_H", bound="Handle")


class Handle:
    """An open thing. Every use after `close()` is a `ClosedError`, which is a `ValueError`, as with files."""

    _kind = ""

    def _open(self, maker: str, *args: Any) -> None:
        handle = c_void_p()
        call(maker, *args, byref(handle))
        self._number: c_void_p = handle
        # A child that fork() made has none of the engine's threads.
        self._process = os.getpid()

    @property
    def _handle(self) -> c_void_p:
        handle: c_void_p | None = self.__dict__.get("_number")
        if not handle:
            raise ClosedError(f"the {self._kind} is closed")
        if self._process != os.getpid():
            raise ClosedError(f"the {self._kind} is of another process, which has forked into this one: open the model here, or start processes by spawn")
        return handle

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return not self.__dict__.get("_number")

    def close(self) -> None:
        """Gives it back. A call that still uses it in another thread is stopped. To close twice does nothing."""
        handle, self._number = self.__dict__.get("_number"), c_void_p()
        if handle and self._process == os.getpid():
            call(f"{self._kind}_free", handle)

    def __enter__(self: _H) -> _H:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:  # The interpreter may be half gone.
            pass

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is of one process and cannot be pickled: open the model in each")


class EngineOptions(Handle):
    """How to open a model."""

    _kind = "engine_options"

    def __init__(self) -> None:
        self._open("engine_options_new")


class SessionOptions(Handle):
    """How to make a session."""

    _kind = "session_options"

    def __init__(self) -> None:
        self._open("session_options_new")


def optional(thing: Handle | None) -> c_void_p | None:
    """The handle of something that may be left out."""
    return None if thing is None else thing._handle
