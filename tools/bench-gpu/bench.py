"""Tests and times the model on an NVIDIA GPU, and prints a report.

usage: bench.py [--gpu N] [--memories 100%,50%,25%] [--prompt N] [--tokens N] [--kv TYPE] [--model FILE]
See README.md beside this file."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLKITS = [os.environ.get(name) for name in ("YUAN_CUDA", "CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]


def call(*command: object) -> str:
    """Standard output of a command that must succeed."""
    words = [str(word) for word in command]
    print("+", *words, file=sys.stderr)
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{words[0]} ended with {done.returncode}")
    return done.stdout


def bench(binary: Path, args: argparse.Namespace, *options: str) -> dict:
    sizes = ["-p", args.prompt, "-n", args.tokens, "-r", 3, "--kv", args.kv, "--json"]
    return json.loads(call(binary, "bench", args.model, *sizes, *options))


def row(name: str, run: dict) -> str:
    gpu, used = run["paging"]["gpu"], run["paging"]["gpu_use"] or {}
    memory = gpu.get("bandwidth", 0) / 1e9 or run["memory_gb_per_second"]
    share = 100 * run["weights_gb_per_second"] / memory
    cells = [
        name,
        f"{run['prefill_tokens_per_second']:.1f}",
        f"{run['decode_tokens_per_second']:.2f}",
        f"{run['token_ms']['p50']:.1f}",
        f"{share:.0f} % of {memory:.0f} GB/s",
        str(gpu.get("experts_there", "-")),
        "-" if not used else f"{used['there']} / {used['copied']} / {used['on_cpu']}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="0")
    parser.add_argument("--memories", type=lambda text: text.split(","), default=["100%", "50%", "25%"])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--kv", default="f16")
    parser.add_argument("--model", type=Path, default=ROOT / "target" / "bench-gpu" / "m32.gguf")
    args = parser.parse_args()
    if not shutil.which("nvidia-smi"):
        sys.exit("there is no nvidia-smi: this needs an NVIDIA GPU with its driver")
    asked = "name,driver_version,memory.total,pcie.link.gen.max,pcie.link.width.max,clocks.max.memory"
    device = call("nvidia-smi", "-i", args.gpu, f"--query-gpu={asked}", "--format=csv,noheader").strip()
    if not any(folder and Path(folder).exists() for folder in TOOLKITS):
        call(".ci/cuda-toolkit")
    call("cargo", "test", "--release", "-p", "yuan", "--features", "cuda", "--test", "cuda", "--", "--nocapture")
    call("cargo", "build", "--release", "-p", "yuan-tools", "--features", "cuda")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
    if not args.model.exists():
        args.model.parent.mkdir(parents=True, exist_ok=True)
        call(target / "yuan-quant", "synth", "--geometry", "m32", "-o", args.model)
    yuan, commit = target / "yuan", call("git", "rev-parse", "--short", "HEAD").strip()
    rows = [row("cpu", bench(yuan, args, "--gpu", "off"))]
    for memory in args.memories:
        name, options = f"gpu, --gpu-memory {memory}", ("--gpu", args.gpu, "--gpu-memory", memory)
        # A share of a small GPU's memory may hold no trunk.
        plan = subprocess.run([yuan, "plan", args.model, *options, "--kv", args.kv], stdout=subprocess.DEVNULL)
        fits = plan.returncode == 0
        rows.append(row(name, bench(yuan, args, *options)) if fits else f"| {name} | too little | | | | | |")
    print(f"\n{device}; {os.cpu_count()} CPUs; {args.model.name}; kv {args.kv}; commit {commit}; the tests have passed\n")
    print(f"| where | prompt of {args.prompt}, tok/s | decode, tok/s | p50 ms | weights of decode | experts there | there / copied / on the CPU |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    print(f"\nplan: {call(yuan, 'plan', args.model, '--gpu', args.gpu, '--kv', args.kv)}")


if __name__ == "__main__":
    main()
