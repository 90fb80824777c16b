"""Checks what bench.py computes from its figures, on figures made up here. It measures nothing. NumPy is needed."""

from pathlib import Path

import machine
import mkpeer
import report
from rivals import MEASURES, Measure, rivals

CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC

processor\t: 1
cpu family\t: 26
model name\t: another
"""


def cpus_have_names() -> None:
    assert machine.cpu_name(CPUINFO) == "AMD EPYC (family 25, model 1)"
    assert machine.cpu_name(CPUINFO.replace("AMD EPYC", "AMD EPYC 7763 64-Core Processor")) == "AMD EPYC 7763 64-Core Processor"
    assert machine.cpu_name("") == "unknown CPU"


def idle_time_is_not_busy() -> None:
    # User, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice.
    stat = "cpu  1 2 4 1000 2000 8 16 32 5000 5000\ncpu0 9 9 9 9 9 9 9 9 9 9\n"
    assert machine.busy_seconds(stat) == (1 + 2 + 4 + 8 + 16) / machine.TICKS


def a_busy_machine_is_waited_for() -> None:
    looks, now = iter([0.5, 0.06, 0.05, 0.7]), iter([0.0, 1.0, 2.0])
    assert machine.settled(lambda: next(looks), lambda: next(now)) == 0.05
    # For a minute.
    seconds = iter(range(1000))
    assert machine.settled(lambda: 0.3, lambda: float(next(seconds))) == 0.3
    assert next(seconds) == machine.PATIENCE + 1


def other_work_before_or_during_a_run_disturbs_it() -> None:
    assert not machine.disturbed(0.05, 0.05)
    assert machine.disturbed(0.06, 0.0)
    assert machine.disturbed(0.0, 0.16)


def a_token_reads_its_matrices() -> None:
    layers = 3
    trunk = 135_040 * 2048 + layers * 4 * 2048 * 4096
    experts = layers * 2 * 3 * 2048 * 8192
    router = layers * 2048 * 32 * 4
    assert mkpeer.bytes_a_token(layers, "q4_0", "q8_0") == experts * 18 // 32 + trunk * 34 // 32 + router
    assert mkpeer.bytes_a_token(layers, "q4_k", "q4_k") == (experts + trunk) * 144 // 256 + router


def the_best_rival_counts_measure_by_measure() -> None:
    long = {"yuan": [9.0, 12.0, 10.0], "a": [5.0, 4.0, 6.0], "b": [1.0, 90.0, 2.0]}
    rates = {"long": long, "short": {"yuan": [2.0], "a": [1.0], "b": [4.0]}}
    expected = """\
| tokens/s (median) | yuan | a | b | ratio | from .. to |
| --- | --- | --- | --- | --- | --- |
| long | 10.00 | 5.00 | 2.00 | 1.80 | 1.67 .. 3.00 |
| short | 2.00 | 1.00 | 4.00 | 0.50 | 0.50 .. 0.50 |"""
    assert report.speeds(["yuan", "a", "b"], rates, True) == expected
    without = report.speeds(["yuan", "a", "b"], rates, False)
    assert without.splitlines() == [line.rsplit("|", 3)[0] + "|" for line in expected.splitlines()]


def bandwidth_is_bytes_by_tokens() -> None:
    table = report.bandwidths(["yuan", "a"], {"decode": {"yuan": [10.0], "a": [8.0]}}, {"yuan": 2 * 10**9, "a": 3 * 10**9}, {"decode": [30.0, 31.0]})
    assert table.splitlines()[2] == "| decode | 20.0 | 24.0 | 30.5 |"


def rivals_are_asked_for_the_same_work() -> None:
    assert len(rivals(Path("llama-bench"), None)) == 2 and len(rivals(Path("llama-bench"), Path("ik/llama-bench"))) == 4
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)
    deep = Measure("", tokens=32, depth=4096, kv="q8_0")
    words = [" ".join(map(str, rival.work(deep))) for rival in rivals(Path("llama-bench"), Path("ik/llama-bench"))]
    assert words[0] == words[1] == "-p 0 -n 32 -d 4096 -ctk q8_0 -ctv q8_0 -fa 1"
    assert words[2] == words[3] == "-p 0 -n 0 -gp 4096,32 -ctk q8_0 -ctv q8_0 -fa 1"
    assert rivals(Path("llama-bench"), None)[0].work(Measure("", prompt=512)) == ["-p", 512, "-n", 0]


def main() -> None:
    checks = [cpus_have_names, idle_time_is_not_busy, a_busy_machine_is_waited_for, other_work_before_or_during_a_run_disturbs_it, a_token_reads_its_matrices]
    checks += [the_best_rival_counts_measure_by_measure, bandwidth_is_bytes_by_tokens, rivals_are_asked_for_the_same_work]
    for check in checks:
        check()
    print(f"bench-peers: {len(checks)} checks passed")


if __name__ == "__main__":
    main()
