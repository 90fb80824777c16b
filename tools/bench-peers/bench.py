"""Times `yuan` and llama.cpp in turn on models of the same geometry and the same bits, and prints the ratios.

usage: bench.py [--layers N] [--runs N] [--threads N] [--pairs EXPERTS:TRUNK,...] [--cache DIR]
See README.md beside this file."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import llama
import mkpeer

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ["yuan", "llama.cpp", "llama.cpp, no repacking"]
# The last is behind as many tokens as the model was trained for, with keys and values in 8 bits.
MEASURES = ["prefill 512", "prefill 32", "decode 64", "decode behind 4096, KV q8_0"]
DEEP = 4096


def yuan(binary: Path, model: Path, threads: int) -> dict[str, float]:
    """Tokens a second: medians of three."""

    def bench(prompt: int, tokens: int, *more: object) -> dict:
        numbers = ["-p", prompt, "-n", tokens, "--threads", threads, *(more or ["--depth", 0, "-r", 3])]
        return json.loads(output(binary, "bench", model, *numbers, "--json"))

    long, short, deep = bench(512, 64), bench(32, 0), bench(0, 32, "--depth", DEEP, "--kv", "q8_0", "-r", 1)
    prefill, decode = "prefill_tokens_per_second", "decode_tokens_per_second"
    return dict(zip(MEASURES, (long[prefill], short[prefill], long[decode], deep[decode])))


def peer(binary: Path, model: Path, threads: int, repack: int) -> dict[str, float]:
    """The same of llama-bench, which warms up before it counts."""

    def bench(*numbers: object) -> dict[tuple[int, int], float]:
        common = ["-t", threads, "--repack", repack, "-o", "json"]
        tests = json.loads(output(binary, "-m", model, *numbers, *common))
        return {(t["n_prompt"], t["n_gen"]): statistics.median(t["samples_ts"]) for t in tests}

    rates = bench("-p", "512,32", "-n", 64, "-r", 3)
    deep = bench("-p", 0, "-n", 32, "-d", DEEP, "-ctk", "q8_0", "-ctv", "q8_0", "-fa", 1, "-r", 1)
    return dict(zip(MEASURES, (rates[512, 0], rates[32, 0], rates[0, 64], deep[0, 32])))


def output(*command: object) -> str:
    process = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if process.returncode != 0:
        sys.exit(f"{command[0]} ended with {process.returncode}:\n{process.stderr}")
    return process.stdout


def models(cache: Path, layers: int, experts: str, trunk: str) -> tuple[Path, Path]:
    """Ours and theirs, made where they are not there yet."""
    ours, theirs = (cache / f"{who}-{layers}-{experts}-{trunk}.gguf" for who in ("yuan", "llama"))
    if not ours.exists():
        types = ["--experts", experts, "--dense", trunk]
        llama.run(program("yuan-quant"), "synth", "--geometry", "m32", "--layers", layers, *types, "-o", ours)
    if not theirs.exists():
        mkpeer.write(theirs, layers, experts, trunk)
    return ours, theirs


def program(name: str) -> Path:
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / name


def compare(args: argparse.Namespace, binary: Path, experts: str, trunk: str) -> None:
    ours, theirs = models(args.cache, args.layers, experts, trunk)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in PROGRAMS}
    for _ in range(args.runs):
        for name in PROGRAMS:
            match name:
                case "yuan":
                    rates = yuan(program("yuan"), ours, args.threads)
                case _:
                    rates = peer(binary, theirs, args.threads, int(name == "llama.cpp"))
            runs[name].append(rates)
            load = f"load {os.getloadavg()[0]:.1f}"
            print(name, *(f"{measure} {rate:.2f}" for measure, rate in rates.items()), load, sep="  ", file=sys.stderr)
    sizes = ", ".join(f"{m.stat().st_size / 1e9:.2f} GB" for m in (ours, theirs))
    print(f"\nexperts {experts}, trunk {trunk}, {args.layers} layers ({sizes}), {args.threads} threads, {args.runs} runs")
    print(f"\n| tokens/s (median) | {' | '.join(PROGRAMS)} | ratio | from .. to |\n|---|---|---|---|---|---|")
    for measure in MEASURES:
        rates = {name: [run[measure] for run in all_runs] for name, all_runs in runs.items()}
        medians = {name: statistics.median(r) for name, r in rates.items()}
        # Against the better of its two ways.
        best = max(PROGRAMS[1:], key=medians.__getitem__)
        ratios = [a / b for a, b in zip(rates["yuan"], rates[best])]
        cells = [f"{medians[name]:.2f}" for name in PROGRAMS]
        cells += [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} .. {max(ratios):.2f}"]
        print(f"| {measure} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--pairs", default="q4_k:q4_k,q4_0:q8_0", help="experts:trunk, with commas between")
    parser.add_argument("--cache", type=Path, default=ROOT / "target" / "bench-peers")
    parser.add_argument("--jobs", type=int, default=1, help="for the build of llama.cpp")
    args = parser.parse_args()
    llama.run("cargo", "build", "--release", "-p", "yuan-tools", "--manifest-path", ROOT / "Cargo.toml")
    binary = llama.built(args.cache.resolve(), args.jobs)
    print(f"yuan {output('git', '-C', ROOT, 'describe', '--always', '--dirty').strip()}, {binary.parents[4].name}")
    for pair in args.pairs.split(","):
        compare(args, binary, *pair.split(":"))


if __name__ == "__main__":
    main()
