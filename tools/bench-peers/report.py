"""The tables that are printed."""

import statistics

# Tokens a second by measure and program, run by run.
Rates = dict[str, dict[str, list[float]]]


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(rows: list[list[str]]) -> str:
    head, *body = rows
    return "\n".join(map(row, [head, ["---"] * len(head), *body]))


def speeds(programs: list[str], rates: Rates, ratios: bool) -> str:
    """Medians by program, the first of which is ours, and how many times as fast as the best rival of each measure it is."""
    ours, *theirs = programs
    rows = [["tokens/s (median)", *programs, *(["ratio", "from .. to"] if ratios else [])]]
    for measure, runs in rates.items():
        medians = {name: statistics.median(runs[name]) for name in programs}
        cells = [measure, *(f"{medians[name]:.2f}" for name in programs)]
        if ratios:
            best = max(theirs, key=medians.__getitem__)
            by_run = [a / b for a, b in zip(runs[ours], runs[best])]
            cells += [f"{statistics.median(by_run):.2f}", f"{min(by_run):.2f} .. {max(by_run):.2f}"]
        rows.append(cells)
    return table(rows)


def bandwidths(programs: list[str], rates: Rates, bytes_a_token: dict[str, int], memory: dict[str, list[float]]) -> str:
    """The same speeds of decoding in bytes of weights, beside what as many threads read of memory in the same runs."""
    rows = [["GB/s of weights (median)", *programs, "memory"]]
    for measure, runs in rates.items():
        speeds = (statistics.median(runs[name]) * bytes_a_token[name] / 1e9 for name in programs)
        rows.append([measure, *(f"{speed:.1f}" for speed in speeds), f"{statistics.median(memory[measure]):.1f}"])
    return table(rows)
