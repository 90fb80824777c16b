"""What a figure must say about the machine that it is from: which CPU it is, and whether it was busy with something else."""

import os
import time
from pathlib import Path

# What others may use before a run, in cores; a machine at rest has a hundredth or three.
BEFORE = 0.05
# The same during a run. The kernel's threads work for the program that is measured, too: another three hundredths were seen.
DURING = 0.15
# Seconds to wait for a machine that is busy.
PATIENCE = 60.0
TICKS = os.sysconf("SC_CLK_TCK")
# Of the first line of /proc/stat: user, nice, system, irq and softirq. Idle, iowait and steal are nobody's work here; guests are in user.
BUSY_COLUMNS = (0, 1, 2, 5, 6)


def cpu_name(cpuinfo: str) -> str:
    """The name in /proc/cpuinfo. Some virtual machines hide the number of the model ("AMD EPYC"): family and model name the core then."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or fields.get("CPU part", "unknown CPU")
    family, model = fields.get("cpu family"), fields.get("model")
    # A name with a number in it says which core it is.
    vague = not any(letter.isdigit() for letter in name)
    return f"{name} (family {family}, model {model})" if vague and family and model else name


def busy_seconds(stat: str) -> float:
    """The time that all cores together have worked since the machine was started, of the text of /proc/stat."""
    columns = stat.splitlines()[0].split()[1:]
    return sum(int(columns[i]) for i in BUSY_COLUMNS) / TICKS


class Watch:
    """What the rest of the machine does from now on."""

    def __init__(self) -> None:
        self.worked, self.since = self.now()

    @staticmethod
    def now() -> tuple[float, float]:
        return busy_seconds(Path("/proc/stat").read_text()) - sum(os.times()[:4]), time.monotonic()

    def cores(self) -> float:
        """How many cores it has kept busy: all but this process and its children that have ended."""
        worked, until = self.now()
        return max(worked - self.worked, 0.0) / (until - self.since)


def others() -> float:
    watch = Watch()
    time.sleep(1)
    return watch.cores()


def settled(look=others, clock=time.monotonic) -> float:
    """Waits until the machine is at rest, for a minute at most; how many cores others kept busy at the last look."""
    end = clock() + PATIENCE
    while (share := look()) > BEFORE and clock() < end:
        pass
    return share


def disturbed(before: float, during: float) -> bool:
    """Whether so many cores of others' work make a run unfit for comparisons."""
    return before > BEFORE or during > DURING
