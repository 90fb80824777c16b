"""What goes wrong, in Python's words: every error is a `YuanError`, and of the built-in kind that a Python program expects."""

from __future__ import annotations

import errno
import os
import re
from typing import Dict, Type

__all__ = [
    "ArgumentError", "BadFileError", "BusyError", "CancelledError", "ClosedError", "ContextFullError", "DiskFullError", "FileError", "ForbiddenFileError",
    "GpuError", "InternalError", "MissingFileError", "OutOfMemoryError", "TimeLimitError", "UnsupportedError", "YuanError",
]  # fmt: skip


class YuanError(Exception):
    """The base of all errors. `status` is the name that C has for it ("YUAN_ERROR_BAD_FILE")."""

    status = "YUAN_ERROR"


class ArgumentError(YuanError, ValueError):
    """An argument is out of range, or makes no sense."""

    status = "YUAN_ERROR_ARGUMENT"


class ClosedError(YuanError, ValueError):
    """The object was closed, or is of another process."""

    status = "YUAN_ERROR_HANDLE"


class BusyError(YuanError, RuntimeError):
    """The session or the sampler is in use: by another thread, by a stream whose loop was not left, or around a callback."""

    status = "YUAN_ERROR_BUSY"


class CancelledError(YuanError, RuntimeError):
    """`Session.cancel`, or a callback, has stopped the call."""

    status = "YUAN_ERROR_CANCELLED"


class TimeLimitError(YuanError, TimeoutError):
    """The answer took longer than its `timeout`; `partial` is what there was of it."""

    status = "YUAN_ERROR_CANCELLED"
    partial: str = ""

    # OSError's, from which TimeoutError comes, would speak of numbers.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ContextFullError(YuanError, ValueError):
    """The context has no room for more tokens."""

    status = "YUAN_ERROR_CONTEXT_FULL"


class FileError(YuanError, OSError):
    """The system refused to open, read or write a file."""

    status = "YUAN_ERROR_FILE"

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MissingFileError(FileError, FileNotFoundError):
    """There is no such file."""


class ForbiddenFileError(FileError, PermissionError):
    """The file may not be used."""


class DiskFullError(FileError):
    """The disk has no room for an output."""

    status = "YUAN_ERROR_DISK_FULL"


class BadFileError(YuanError, ValueError):
    """A file is damaged, truncated, or not what its name says."""

    status = "YUAN_ERROR_BAD_FILE"


class UnsupportedError(YuanError, NotImplementedError):
    """A file is sound, but asks for something that is not built."""

    status = "YUAN_ERROR_UNSUPPORTED"


class OutOfMemoryError(YuanError, MemoryError):
    """There is not enough memory."""

    status = "YUAN_ERROR_MEMORY"


class InternalError(YuanError, RuntimeError):
    """A mistake in the library: please report it with the message."""

    status = "YUAN_ERROR_INTERNAL"


class GpuError(YuanError, RuntimeError):
    """A GPU has failed. The call can be made again: it then runs without the GPU."""

    status = "YUAN_ERROR_GPU"


_KINDS: Dict[str, Type[YuanError]] = {
    kind.status: kind
    for kind in (
        ArgumentError, ClosedError, BusyError, CancelledError, ContextFullError, FileError, DiskFullError, BadFileError, UnsupportedError,
        OutOfMemoryError, InternalError, GpuError,
    )  # fmt: skip
}


def of_status(status: str, message: str) -> YuanError:
    """The error for a status of the library."""
    kind = _KINDS.get(status, YuanError)
    if kind is BusyError:
        message = f"{message} (leave the loop over its stream first; for answers at the same time take a session for each)"
    error = kind(message)
    error.status = status
    if isinstance(error, DiskFullError):
        error.errno = errno.ENOSPC
    return error


def of_file(error: FileError, path: str | os.PathLike[str]) -> FileError:
    """The same error, of the kind that Python has for what the system has said."""
    found = error
    said = re.search(r"\(os error (\d+)\)", str(error))
    if said is not None and not isinstance(error, DiskFullError):
        number = int(said[1])
        if os.name == "nt":
            number = {2: errno.ENOENT, 3: errno.ENOENT, 5: errno.EACCES}.get(number, number)
        kind = {errno.ENOENT: MissingFileError, errno.EACCES: ForbiddenFileError, errno.EPERM: ForbiddenFileError}.get(number, type(error))
        found = kind(*error.args)
        found.errno = number
    found.filename = os.fspath(path)
    return found
