"""libyuan by ctypes: where it is found, how it is called, and what it fills."""

from __future__ import annotations

import array
import ctypes
import ctypes.util
import os
import sys
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Sequence

from .errors import YuanError, of_status

ABI_VERSION = 6
OK = 0
SIZE_MAX: int = c_size_t(-1).value
NAME = {"win32": "yuan.dll", "darwin": "libyuan.dylib"}.get(sys.platform, "libyuan.so")

OnProgress = ctypes.CFUNCTYPE(c_int32, c_uint64, c_uint64, c_void_p)
OnToken = ctypes.CFUNCTYPE(c_int32, c_uint32, c_void_p, c_size_t, c_void_p)
OnScore = ctypes.CFUNCTYPE(c_int32, c_uint32, c_float, POINTER(c_uint32), POINTER(c_float), c_size_t, c_void_p)


def _load() -> ctypes.CDLL:
    inside = Path(__file__).parent / "lib" / NAME
    named = os.environ.get("YUAN_LIBRARY")
    name = str(inside) if inside.exists() else named or ctypes.util.find_library("yuan")
    if not name:
        raise ImportError(
            f"there is no libyuan in the package ({inside}), none is named by the environment variable YUAN_LIBRARY, and the system's loader "
            "knows none: install the wheel, name a library in YUAN_LIBRARY, or install one with `cargo cinstall`"
        )
    try:
        loaded = ctypes.CDLL(name)
    except OSError as error:
        raise ImportError(f"{name} cannot be loaded: {error}") from error
    for function in ("version", "last_error", "status_name"):
        getattr(loaded, f"yuan_{function}").restype = c_char_p
    loaded.yuan_live_handles.restype = c_size_t
    loaded.yuan_abi_version.restype = c_uint32
    if loaded.yuan_abi_version() != ABI_VERSION:
        raise ImportError(f"{name} has interface {loaded.yuan_abi_version()}, and this package is for {ABI_VERSION}")
    return loaded


library = _load()


def call(function: str, *args: Any) -> None:
    """A function of the library, whose failure is an exception."""
    status: int = getattr(library, f"yuan_{function}")(*args)
    if status != OK:
        raise of_status(library.yuan_status_name(status).decode(), library.yuan_last_error().decode())


def filled(kind: Any, function: str, *args: Any) -> Any:
    """An array that the library fills: asked for its length first, and again when it has grown meanwhile."""
    needed = c_size_t()
    call(function, *args, None, c_size_t(0), byref(needed))
    while True:
        room = (kind * needed.value)()
        try:
            call(function, *args, room, needed, byref(needed))
        except YuanError as error:
            if error.status == "YUAN_ERROR_BUFFER_TOO_SMALL":
                continue
            raise
        return room[: needed.value]


def text(function: str, *args: Any) -> str:
    """A text that the library gives."""
    data: bytes = filled(ctypes.c_char, function, *args)
    return data[:-1].decode()


def ids(tokens: Sequence[int]) -> Any:
    """Tokens for the library."""
    # An array refuses what is no number of 32 bits; ctypes would cut it.
    return (c_uint32 * len(tokens)).from_buffer(array.array("I", tokens))


def size(what: str, number: int) -> c_size_t:
    """A number for the library, which ctypes would wrap where it is negative or too large."""
    if not 0 <= number <= SIZE_MAX:
        raise ValueError(f"{what} is {number}: give a number from 0 on")
    return c_size_t(number)


def size_or_all(what: str, number: int) -> c_size_t:
    """As `size`, and -1 is all that there are."""
    return c_size_t(SIZE_MAX) if number == -1 else size(what, number)


def c_text(what: str, said: str | None) -> bytes | None:
    """A text for the library, which ends at the first NUL."""
    if said is not None and "\0" in said:
        raise ValueError(f"{what} contains a NUL")
    return None if said is None else said.encode()


def version() -> str:
    """The version of the library."""
    said: bytes = library.yuan_version()
    return said.decode()


def live_handles() -> int:
    """How many engines, sessions, samplers and options are open in this process."""
    count: int = library.yuan_live_handles()
    return count
