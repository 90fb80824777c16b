"""Kills commands that write, with SIGKILL, at each of the calls that they make of their system, and has them run again.

    python3 tools/reliability/kills.py target/debug [--kills N] [--seconds S] [--only NAME,...]

A write that is killed leaves half of what it was to write. After a kill a target that was there is as it was, or is as it is when all is done; the run after the kill has
the bytes of one that nobody killed, and leaves nothing beside them. Up to four more kills, at random calls, follow the first before a run may end. When every call of every command has had its turn they begin again, as
long as there are kills left (threads make their calls in another order each time).
"""

import argparse
import collections
import itertools
import pathlib
import random
import signal
import sys
import tempfile
import time

import commands
from faults import Trial
from room import House, look
from shim import run

KILLED = ["convert", "convert_over", "importance", "requantize", "export", "pull", "save", "save_over", "calibrate", "synth"]
# After so many kills it says how it stands.
TOLD = 500


class Kills(Trial):
    def kill(self, number):
        """Kills it at this call. Whether that came to pass, and what is wrong then."""
        self.shim.ask(kill_at=number)
        ended = run(self.room.arguments, self.environment, self.room.given)
        what = self.shim.seen()[2]
        if ended.status not in (0, -signal.SIGKILL):
            return what, [f"it ends with {ended.status}: {ended.err.decode(errors='replace')[:600]}"]
        now, found = look(self.room.folder), []
        for name in sorted({*self.before, *self.after}):
            if now.get(name) not in (self.before.get(name), self.after.get(name)) and not self.room.may_leave(name):
                found.append(f"{name} is neither as before nor as after")
        return what, found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", type=pathlib.Path)
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--only", type=lambda text: text.split(","), default=KILLED)
    asked = parser.parse_args()
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        house = House(folder, asked.programs)
        chosen = [command for command in commands.commands() if command.name in asked.only]
        trials = [Kills(house.room(command, f"work-{command.name}"), house.shim) for command in chosen]
        until = time.monotonic() + asked.seconds
        kills, wrong, told = collections.Counter(), [], 0
        # In a mixed order, so that a short run has some of each.
        every = [(trial, number) for trial in trials for number in range(1, trial.all + 1)]
        for trial, number in itertools.chain.from_iterable(chance.sample(every, len(every)) for _ in itertools.count()):
            if sum(kills.values()) >= asked.kills or time.monotonic() > until:
                break
            name = trial.room.command.name
            trial.room.empty()
            points = [number] + [chance.randrange(1, trial.all + 1) for _ in range(chance.randrange(5))]
            problems, said = [], []
            for point in points:
                what, found = trial.kill(point)
                kills[name] += what is not None
                problems += found
                said.append(f"{point} ({what})")
            problems += trial.again()
            if sum(kills.values()) // TOLD > told:
                told = sum(kills.values()) // TOLD
                print(f"{sum(kills.values())} kills, {len(wrong)} wrong", flush=True)
            for problem in problems:
                wrong.append(f"{name}, killed at {', '.join(said)}: {problem}")
                print(wrong[-1], flush=True)
        if not house.is_untouched():
            raise SystemExit("inputs have changed")
        calls = {trial.room.command.name: trial.all for trial in trials}
        print(f"{sum(kills.values())} kills: {dict(kills)}; calls of a run: {calls}")
        print(f"{len(wrong)} wrong")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
