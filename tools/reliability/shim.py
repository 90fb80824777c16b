"""The library that is preloaded (shim.c), and the page by which it is told what to do and tells what it has seen."""

import errno
import mmap
import os
import pathlib
import struct
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
KINDS = ["read", "write", "open", "name", "sync", "extend", "map", "thread", "lock", "stat", "list", "net"]
SHORT = -1
# What may become of a call of each kind. A short count and EINTR are no errors: whoever is told so asks again.
WAYS = {
    "read": [errno.EIO, errno.EINTR, SHORT],
    "write": [errno.EIO, errno.ENOSPC, errno.EINTR, SHORT],
    "open": [errno.EIO, errno.EMFILE],
    "name": [errno.EIO, errno.ENOSPC],
    "sync": [errno.EIO, errno.ENOSPC],
    "extend": [errno.ENOSPC, errno.EINTR],
    "map": [errno.ENOMEM],
    "thread": [errno.EAGAIN],
    "lock": [errno.ENOLCK, errno.EINTR],
    "stat": [errno.EIO],
    "list": [errno.EIO],
    "net": [errno.EMFILE],
}
# As `struct page` in shim.c.
LAYOUT = struct.Struct(f"={len(KINDS)}QQqqqQqQ256s")
# More than any command writes.
PLENTY = 1 << 50
# Seconds after which a program hangs.
PATIENCE = 120


def name_of(how):
    return "short" if how == SHORT else errno.errorcode[how]


class Shim:
    """The library, compiled, and a page of its own in `folder`."""

    def __init__(self, folder):
        self.library = folder / "shim.so"
        source = HERE / "shim.c"
        if not self.library.exists() or self.library.stat().st_mtime < source.stat().st_mtime:
            new = folder / f"shim.{os.getpid()}.so"
            subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", source, "-o", new], check=True)
            new.rename(self.library)
        self.path = folder / f"page.{os.getpid()}"
        self.path.write_bytes(bytes(LAYOUT.size))
        with open(self.path, "r+b") as file:
            self.page = mmap.mmap(file.fileno(), LAYOUT.size)

    def ask(self, kind=None, number=0, how=0, kill_at=0, room=-1):
        """What the next program meets."""
        kind = KINDS.index(kind) if kind else -1
        self.page[:] = LAYOUT.pack(*[0] * len(KINDS), 0, kind, number, how, kill_at, room, 0, b"")

    def seen(self):
        """The calls of each kind, of all kinds, and which one was hit, as FUNCTION DESCRIPTOR PATH."""
        fields = LAYOUT.unpack(self.page[:])
        what = fields[-1].split(b"\0")[0].decode(errors="replace") if fields[-2] else None
        return dict(zip(KINDS, fields)), fields[len(KINDS)], what

    def room(self):
        """Bytes that may still be written."""
        return LAYOUT.unpack(self.page[:])[len(KINDS) + 5]

    def environment(self):
        return {"LD_PRELOAD": str(self.library), "FAULTS": str(self.path)}


class Ended:
    """How a program has ended: its status (None: it did not, and was killed), and what it has said."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err


def run(arguments, environment, given=b""):
    """Runs a program to its end."""
    child = subprocess.Popen(
        arguments, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    # In short waits: of the time in which this machine's processes are stopped, one second counts.
    for _ in range(PATIENCE):
        try:
            out, err = child.communicate(given, timeout=1)
            return Ended(child.returncode, out, err)
        except subprocess.TimeoutExpired:
            pass
    child.kill()
    out, err = child.communicate()
    return Ended(None, out, err)
