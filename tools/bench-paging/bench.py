"""Times a model that is larger than memory: streamed by the pager against plain page faults, under caps of memory and of the drive.

usage: bench.py [--caps 100,50,25] [--drives 0.5,0] [--ways auto,plain] [--prompt N] [--tokens N] [--runs N] [--model FILE]
See README.md beside this file."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GROUPS = Path("/sys/fs/cgroup")


class Capped:
    """A control group with a limit of memory, and of bytes a second that `file`'s drive delivers (0: none). Version 1 or 2."""

    def __init__(self, memory: int, drive: float, file: Path):
        name, device = f"bench-paging-{os.getpid()}", drive_of(file)
        rate = int(drive * 1e9)
        if (GROUPS / "cgroup.controllers").exists():
            limits = {"memory.max": memory, "memory.swap.max": 0}
            if rate:
                limits["io.max"] = f"{device} rbps={rate}"
            self.folders = {own_group("") / name: limits}
        else:
            self.folders = {own_group("memory") / name: {"memory.limit_in_bytes": memory, "memory.swappiness": 0}}
            if rate:
                self.folders[own_group("blkio") / name] = {"blkio.throttle.read_bps_device": f"{device} {rate}"}

    def __enter__(self) -> "Capped":
        for folder, limits in self.folders.items():
            folder.mkdir()
            for file, limit in limits.items():
                (folder / file).write_text(str(limit))
        return self

    def enter(self) -> None:
        """Called in the child."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text("0")

    def peak(self) -> int:
        """Bytes that the group had at most, its page cache included."""
        for folder in self.folders:
            for name in ["memory.max_usage_in_bytes", "memory.peak"]:
                if (folder / name).exists():
                    return int((folder / name).read_text())
        return 0

    def __exit__(self, *_: object) -> None:
        for folder in self.folders:
            for _ in range(50):
                try:
                    folder.rmdir()
                    break
                except OSError:
                    time.sleep(0.1)


def own_group(controller: str) -> Path:
    """The folder of this process's group."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return GROUPS / controller / path.lstrip("/")
    sys.exit(f"this process is in no control group for {controller or 'memory'}")


def drive_of(file: Path) -> str:
    """major:minor of the whole drive that a file lies on."""
    device = os.stat(file).st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    whole = block.parent if (block / "partition").exists() else block
    return (whole / "dev").read_text().strip()


def forget(file: Path) -> None:
    """Drops a file from the page cache: pages that another group has read are not charged to ours."""
    with open(file, "rb") as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(binary: Path, model: Path, way: str, cap: int, drive: float, args: argparse.Namespace) -> dict:
    forget(model)
    command = [binary, "bench", model, "-p", args.prompt, "-n", args.tokens, "--depth", 0, "-r", 1, "--paging", way, "--json"]
    with Capped(cap, drive, model) as group:
        process = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=group.enter)
        if process.returncode != 0:
            sys.exit(f"{command} ended with {process.returncode}:\n{process.stderr}")
        return json.loads(process.stdout) | {"group_peak": group.peak()}


def figures(result: dict) -> dict[str, float]:
    decode, prefill = result["decode"], result["prefill"]
    found = {
        "prefill tok/s": result["prefill_tokens_per_second"],
        "decode tok/s": result["decode_tokens_per_second"],
        "p50 ms": result["token_ms"]["p50"],
        "p95 ms": result["token_ms"]["p95"],
        "there %": 100 * decode["hit_rate"],
        "MB read a token": decode["storage_bytes_read"] / max(decode["tokens"], 1) / 1e6,
        "prompt GB": prefill["storage_bytes_read"] / 1e9,
        "peak GB": result["group_peak"] / 1e9,
    }
    if drive := result["drive_gb_per_second"]:
        read = decode["bytes_read_per_token"] / 1e9
        found["drive GB/s"] = drive
        # What the drive alone would allow at this hit rate.
        found["of drive %"] = 100 * result["decode_tokens_per_second"] * read / drive
        found["prompt of drive %"] = 100 * prefill["drive_gb_per_second"] / drive
    return found


def compare(binary: Path, model: Path, percent: int, drive: float, args: argparse.Namespace) -> None:
    cap = model.stat().st_size * percent // 100
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
    modes = {}
    for _ in range(args.runs):
        for way in args.ways:
            result = run(binary, model, way, cap, drive, args)
            modes[way] = result["paging"]["mode"]
            runs[way].append(figures(result))
            print(way, *(f"{k} {v:.2f}" for k, v in runs[way][-1].items()), f"load {os.getloadavg()[0]:.1f}", sep="  ", file=sys.stderr)
    print(f"\ncap {percent} % ({cap / 1e9:.2f} GB), drive {f'{drive} GB/s' if drive else 'as it is'}, {args.runs} runs\n")
    names = list(dict.fromkeys(name for all_runs in runs.values() for name in all_runs[0]))
    print(f"| way | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for way, all_runs in runs.items():
        cells = [f"{statistics.median(r[n] for r in all_runs):.2f}" if n in all_runs[0] else "-" for n in names]
        print(f"| {way} ({modes[way]}) | {' | '.join(cells)} |", flush=True)


def numbers(kind: type):
    return lambda text: [kind(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--caps", type=numbers(int), default=[100, 50, 25], help="percents of the container")
    parser.add_argument("--drives", type=numbers(float), default=[0.5, 0], help="GB/s; 0 leaves the drive as it is")
    parser.add_argument("--ways", type=numbers(str), default=["auto", "plain"], help="values of --paging")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--model", type=Path, default=ROOT / "target" / "bench-paging" / "m32.gguf")
    args = parser.parse_args()
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
    subprocess.run(["cargo", "build", "--release", "-p", "yuan-tools", "--manifest-path", str(ROOT / "Cargo.toml")], check=True)
    if not args.model.exists():
        args.model.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([str(target / "yuan-quant"), "synth", "--geometry", "m32", "-o", str(args.model)], check=True)
    for drive in args.drives:
        for percent in args.caps:
            compare(target / "yuan", args.model, percent, drive, args)


if __name__ == "__main__":
    main()
