"""Has every call that a command makes of its system fail, one in each run, and has the disk be full at every point; says what becomes of it.

    python3 tools/reliability/faults.py target/debug [--stride N] [--only NAME,...] [--kinds KIND,...] [--seconds S]

Each command is run once to count its calls, by kind, and then once for each of them (with a stride for every N-th) and each way in which it can fail. What must
hold: the program ends, by itself, with success and the same output, or with status 1 and a line that says why; its folder is as before or as after, with nothing
else in it but what the next run goes on with; inputs are untouched; and the next run has the same output. `--seconds` is the most time: commands are
then tried in turns, with calls chosen evenly.
"""

import argparse
import collections
import errno
import itertools
import pathlib
import random
import sys
import tempfile
import time

import commands
from room import House, look
from shim import KINDS, PLENTY, WAYS, name_of, run

# Not a call: a disk that is full behind so many bytes.
FULL = "full"
# At how many points of what a command writes it is.
POINTS = 100


class Trial:
    """A command, how it looks when nothing fails, and what was found."""

    def __init__(self, room, shim):
        self.room, self.shim = room, shim
        self.environment = {**room.environment, **shim.environment()}
        room.empty()
        self.before = look(room.folder)
        shim.ask(room=PLENTY)
        ended = run(room.arguments, self.environment, room.given)
        if ended.status != 0:
            raise SystemExit(f"{room.command.name} fails by itself: {ended.err.decode(errors='replace')}")
        self.counts, self.all, _ = shim.seen()
        self.written = PLENTY - shim.room()
        self.out, self.after = ended.out, look(room.folder)
        self.fresh = False

    def problems(self, ended, what):
        """What is wrong with a run that has met a fault."""
        err = ended.err.decode(errors="replace")
        if ended.status is None:
            return ["it hangs"]
        if ended.status not in (0, 1):
            return [f"it ends with {ended.status}: {err[-600:]}"]
        found = []
        if "panicked" in err:
            found.append(f"it panics: {err[:600]}")
        deaf = what is not None and what.split(" ")[1] == "2"
        if ended.status == 1 and not deaf and not any(line.startswith("error: ") for line in err.splitlines()):
            found.append(f"it fails without a word: {err[:600]}")
        tells = self.room.command.tells and (b"cannot" in ended.out or b"?" in ended.out)
        if ended.status == 0 and self.room.command.repeats and ended.out != self.out and not tells:
            found.append(f"it succeeds with another output: {ended.out[:300]} in place of {self.out[:300]}, and says {err[:300]}")
        now = look(self.room.folder)
        unlinked = what is not None and what.startswith("unlink")
        for name in sorted({*now, *self.before, *self.after}):
            known = [self.before.get(name), self.after.get(name)]
            if ended.status == 0:
                known = [self.after.get(name)]
            if now.get(name) not in known and not (self.room.may_leave(name) or unlinked and name not in self.after):
                found.append(f"{name} is {now.get(name)}, was {known}")
        if now not in (self.before, self.after):
            found += self.again()
        self.fresh = now == self.before and not found
        return found

    def again(self):
        """The next run, with nothing in its way."""
        ended = run(self.room.arguments, self.room.environment, self.room.given)
        if ended.status != 0:
            return [f"the next run fails: {ended.err.decode(errors='replace')[:600]}"]
        found = []
        if self.room.command.repeats and ended.out != self.out:
            found.append(f"the next run's output is another one: {ended.out[:300]}")
        now = look(self.room.folder)
        if now != self.after:
            found.append(f"after the next run there is {sorted(set(now.items()) ^ set(self.after.items()))}")
        return found

    def ready(self):
        if not self.fresh:
            self.room.empty()

    def fail(self, kind, number, how):
        """Runs it with this fault. Which call it was (None: it did not come to it), and what is wrong."""
        self.ready()
        if kind == FULL:
            self.shim.ask(room=number)
        else:
            self.shim.ask(kind, number, how)
        ended = run(self.room.arguments, self.environment, self.room.given)
        what = self.shim.seen()[2]
        return what, self.problems(ended, what), ended.status


def faults(trial, stride, kinds):
    """All of a command's faults, each of which is a kind, a number and a way."""
    if FULL in kinds and trial.written:
        for point in {*range(0, trial.written, max(1, stride * trial.written // POINTS)), trial.written - 1}:
            yield FULL, point, errno.ENOSPC
    for kind in kinds:
        if kind == FULL:
            continue
        for number in range(1, trial.counts[kind] + 1):
            for way, how in enumerate(WAYS[kind]):
                if (number + way) % stride == 0 or trial.counts[kind] <= 2:
                    yield kind, number, how


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", type=pathlib.Path)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--only", type=lambda text: text.split(","))
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=[*KINDS, FULL])
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--exactly", metavar="KIND:NUMBER:HOW", help="this fault alone, and what the program says")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        house, wrong = House(folder, asked.programs), []
        chosen = [c for c in commands.commands() if not asked.only or c.name in asked.only]
        until = time.monotonic() + asked.seconds if asked.seconds else None
        for place, command in enumerate(chosen):
            trial = Trial(house.room(command), house.shim)
            if asked.exactly:
                kind, number, how = asked.exactly.split(":")
                print(*trial.fail(kind, int(number), int(how)), sep="\n")
                continue
            every = list(faults(trial, asked.stride, asked.kinds))
            if until:
                # A fair part of the time that is left, and the same faults at each run of this check.
                random.Random(command.name).shuffle(every)
                end = time.monotonic() + (until - time.monotonic()) / (len(chosen) - place)
                every = itertools.takewhile(lambda _: time.monotonic() < end, every)
            seen = collections.Counter()
            began = time.monotonic()
            for kind, number, how in every:
                what, problems, status = trial.fail(kind, number, how)
                seen["missed" if what is None else "ended well" if status == 0 else "refused"] += 1
                for problem in problems:
                    wrong.append(f"{command.name}, {kind} {number} {name_of(how)} ({what}): {problem}")
                    print(wrong[-1], flush=True)
            took = time.monotonic() - began
            calls = ", ".join(f"{count} {kind}" for kind, count in trial.counts.items() if count)
            print(f"{command.name}: {sum(seen.values())} faults in {took:.0f} s, {dict(seen)}; calls: {calls}", flush=True)
            if not house.is_untouched():
                raise SystemExit(f"{command.name} has changed its inputs")
        print(f"{len(wrong)} wrong")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
