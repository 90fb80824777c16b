"""Times `yuan`, llama.cpp and ik_llama.cpp in turn on models of the same geometry and the same bits, and prints the ratios.

usage: bench.py [--ik-llama PATH] [--layers N] [--runs N] [--threads N] [--pairs EXPERTS:TRUNK,...] [--measures NAME,...] [--cache DIR]
See README.md beside this file."""

import argparse
import os
import sys
from pathlib import Path

import llama
import machine
import mkpeer
import report
from rivals import MEASURES, Measure, Rival, output, rivals, yuan

ROOT = Path(__file__).resolve().parents[2]


def models(cache: Path, layers: int, experts: str, trunk: str) -> tuple[Path, Path]:
    """Ours and theirs, made where they are not there yet."""
    ours, theirs = (cache / f"{who}-{layers}-{experts}-{trunk}.gguf" for who in ("yuan", "llama"))
    if not ours.exists():
        types = ["--experts", experts, "--dense", trunk]
        llama.run(program("yuan-quant"), "synth", "--geometry", "m32", "--layers", layers, *types, "-o", ours)
    if not theirs.exists():
        mkpeer.write(theirs, layers, experts, trunk)
    return ours, theirs


def read(file: Path) -> None:
    """Brings it into the page cache, so that no program waits for the drive."""
    with file.open("rb", buffering=0) as data:
        while data.read(1 << 24):
            pass


def program(name: str) -> Path:
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / name


def compare(args: argparse.Namespace, measures: list[Measure], table: list[Rival], experts: str, trunk: str) -> bool:
    """Measures and prints; whether the machine was at rest all the while."""
    ours, theirs = models(args.cache, args.layers, experts, trunk)
    read(ours)
    read(theirs)
    programs = ["yuan", *(rival.name for rival in table)]
    rates: report.Rates = {m.name: {name: [] for name in programs} for m in measures}
    said: dict[str, dict] = {}
    memory: dict[str, list[float]] = {m.name: [] for m in measures}
    disturbed: list[str] = []
    for _ in range(args.runs):
        # One measure after the other, so that what is compared lies as near in time as it can.
        for measure in measures:
            threads = 1 if measure.one_thread else args.threads
            for name, rival in zip(programs, [None, *table]):
                before, watch = machine.settled(), machine.Watch()
                if rival:
                    rate, said[name] = rival.run(theirs, measure, threads)
                else:
                    rate, said[name] = yuan(program("yuan"), ours, measure, threads)
                    memory[measure.name].append(said[name]["memory_gb_per_second"])
                during = watch.cores()
                rates[measure.name][name].append(rate)
                line = f"{name}, {measure.name}: {rate:.2f} tokens/s; others used {before:.2f} cores before it, {during:.2f} during it"
                print(line, file=sys.stderr)
                if machine.disturbed(before, during):
                    disturbed.append(line)
    lengths = {name: mkpeer.bytes_a_token(args.layers, experts, trunk) for name in programs}
    lengths["yuan"] = said["yuan"]["bytes_per_token"]
    sizes = ", ".join(f"{m.stat().st_size / 1e9:.2f} GB" for m in (ours, theirs))
    print(f"\nexperts {experts}, trunk {trunk}, {args.layers} layers ({sizes}), {args.threads} threads, {args.runs} runs, kernels {said['yuan']['kernels']}")
    # Once a program, not once a way to run it.
    builds = dict.fromkeys(f"{rival.name.split(',')[0]} build {said[rival.name]['build_commit']}" for rival in table)
    print(f"{', '.join(builds)}\n")
    print(report.speeds(programs, rates, not disturbed))
    # Behind many tokens it reads keys and values besides.
    if decoding := [m.name for m in measures if m.tokens and not m.depth]:
        print()
        print(report.bandwidths(programs, {name: rates[name] for name in decoding}, lengths, memory))
    if disturbed:
        runs = args.runs * len(measures) * len(programs)
        print(f"\nNo ratios: something else kept the machine busy in {len(disturbed)} of {runs} runs. The first of them:\n{disturbed[0]}")
    sys.stdout.flush()
    return not disturbed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ik-llama", type=Path, metavar="PATH", help="llama-bench of ik_llama.cpp, which is measured too then")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--pairs", default="q4_k:q4_k,q4_0:q8_0", help="experts:trunk, with commas between")
    parser.add_argument("--measures", default="", help="those with one of these words in the name, with commas between; default: all")
    parser.add_argument("--cache", type=Path, default=ROOT / "target" / "bench-peers")
    parser.add_argument("--jobs", type=int, default=1, help="for the build of llama.cpp")
    args = parser.parse_args()
    measures = [m for m in MEASURES if any(word in m.name for word in args.measures.split(","))]
    if not measures:
        parser.error(f"--measures: none has {args.measures} in its name; there are {', '.join(m.name for m in MEASURES)}")
    if args.ik_llama and not args.ik_llama.is_file():
        parser.error(f"--ik-llama: there is no file {args.ik_llama}; build llama-bench of ik_llama.cpp and give its path")
    llama.run("cargo", "build", "--release", "-p", "yuan-tools", "--manifest-path", ROOT / "Cargo.toml")
    binary = llama.built(args.cache.resolve(), args.jobs)
    commit = output("git", "-C", ROOT, "describe", "--always", "--dirty").strip()
    print(f"{machine.cpu_name(Path('/proc/cpuinfo').read_text())}; yuan {commit}; llama.cpp of {binary.parents[4].name}")
    table = rivals(binary, args.ik_llama and args.ik_llama.resolve())
    quiet = [compare(args, measures, table, *pair.split(":")) for pair in args.pairs.split(",")]
    sys.exit(0 if all(quiet) else 1)


if __name__ == "__main__":
    main()
