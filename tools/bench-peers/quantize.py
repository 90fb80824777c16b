"""Times `yuan-quant` and llama-quantize in turn on the same number of random weights in 16 bits: to Q4_K throughout, and
to Q4_0 with embedding and head in Q8_0.

usage: quantize.py [--layers N] [--runs N] [--types q4_k,q4_0] [--cache DIR]
The rate is that of a core: weights by the processor's time, so that other work on the machine disturbs little."""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

import llama
import mkpeer

ROOT = Path(__file__).resolve().parents[2]


def measured(*command: object) -> tuple[float, float]:
    """Processor seconds, and bytes of memory at the peak."""
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(map(str, command))} ended with {os.waitstatus_to_exitcode(status)}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--types", default="q4_k,q4_0")
    parser.add_argument("--cache", type=Path, default=ROOT / "target" / "bench-peers")
    args = parser.parse_args()
    llama.run("cargo", "build", "--release", "-p", "yuan-tools", "--manifest-path", ROOT / "Cargo.toml")
    rival = llama.built(args.cache.resolve(), 1, "llama-quantize")
    quant = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "yuan-quant"
    theirs, ours = args.cache / f"f16-{args.layers}.gguf", args.cache / f"checkpoint-{args.layers}"
    if not theirs.exists():
        mkpeer.write(theirs, args.layers, "f16", "f16")
    if not ours.exists():
        llama.run(quant, "synth", "--geometry", "m32", "--layers", args.layers, "-o", ours)
    weights = {theirs: theirs.stat().st_size / 2, ours: sum(f.stat().st_size for f in ours.glob("*.safetensors")) / 2}
    threads, out = len(os.sched_getaffinity(0)), args.cache / "quantized.gguf"
    for dtype in args.types.split(","):
        trunk = "q4_k" if dtype == "q4_k" else "q8_0"
        ends = ["--token-embedding-type", trunk, "--output-tensor-type", trunk]
        commands = {
            ours: [quant, ours, "-o", out, "--experts", dtype, "--dense", trunk],
            theirs: [rival, "--pure", *ends, theirs, out, dtype.upper(), threads],
        }
        runs: dict[Path, list[tuple[float, float]]] = {source: [] for source in commands}
        for _ in range(args.runs):
            for source, command in commands.items():
                out.unlink(missing_ok=True)
                runs[source].append(measured(*command))
        out.unlink(missing_ok=True)
        rate = {source: weights[source] / statistics.median(t for t, _ in r) / 1e6 for source, r in runs.items()}
        peak = {source: max(p for _, p in r) / 1e9 for source, r in runs.items()}
        print(f"{dtype}: {rate[ours]:.1f} M weights/s/core and {peak[ours]:.2f} GB, llama-quantize {rate[theirs]:.1f} and {peak[theirs]:.2f} GB: {rate[ours] / rate[theirs]:.1f} times", flush=True)


if __name__ == "__main__":
    main()
