"""The folder that a command runs in: how it looks before and after, and whether a run has left it as it should."""

import hashlib
import os
import pathlib
import shutil

import commands
import hub
from shim import Shim

ASSETS = pathlib.Path(__file__).resolve().parents[2] / "assets/demo-model"

# Files that may be there or not, with any bytes: what was measured before, what was typed.
KEPT = ("cache/", "history", "home/")


def digest(path):
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def look(folder):
    """The files below a folder, by their names, with digests. Folders are told by a slash."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not name.startswith(KEPT):
            found[name + "/" * path.is_dir()] = "" if path.is_dir() else digest(path)
    return found


def stamps(folder):
    """What changes when somebody writes to files below a folder."""
    return {
        str(path): (info.st_ino, info.st_size, info.st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        for info in [os.stat(path)]
    }


class Room:
    """The folder of a command, and the variables that its program has."""

    def __init__(self, command, folder, inputs, programs, assets, hub):
        self.command, self.folder, self.inputs = command, folder, inputs
        places = {"{work}": folder, "{inputs}": inputs, "{assets}": assets, "{hub}": hub}

        def filled(text):
            for mark, place in places.items():
                text = text.replace(mark, str(place))
            return text

        program, *rest = command.arguments
        self.arguments = [str(programs / program), *map(filled, rest)]
        self.given = filled(command.given).encode()
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "YUAN_CACHE": str(folder / "cache"),
            "YUAN_MODELS": str(folder / "models"),
            "RUST_BACKTRACE": "0",
        }

    def empty(self):
        """As it is before the command."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("home", "tmp", "models"):
            (self.folder / name).mkdir(parents=True)
        for name, source in self.command.before.items():
            shutil.copy(self.inputs / source, self.folder / name)

    def may_leave(self, name):
        return name in self.command.partly or any(part in name for part in self.command.resumes)


class House:
    """Of a whole check, in `folder`: the inputs of all commands, which nobody may change, a hub that has them, and the library that is preloaded."""

    def __init__(self, folder, programs):
        self.folder, self.programs, self.inputs = pathlib.Path(folder), programs.resolve(), pathlib.Path(folder) / "inputs"
        self.inputs.mkdir()
        commands.prepare(self.programs, self.inputs, ASSETS)
        self.before = self.stamps()
        self.hub, self.shim = hub.serve(self.inputs / "tiny"), Shim(self.folder)

    def stamps(self):
        return stamps(self.inputs), stamps(ASSETS)

    def room(self, command, name="work"):
        return Room(command, self.folder / name, self.inputs, self.programs, ASSETS, self.hub)

    def is_untouched(self):
        return self.stamps() == self.before
