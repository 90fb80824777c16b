"""Times a model that is larger than memory: streamed by the pager against plain page faults and llama.cpp, under caps of memory and of
the drive.

usage: bench.py [--caps 100,50,25] [--drives 0.5,0] [--ways auto,plain] [--routing demo|even] [--prompt N] [--tokens N] [--runs N] [--cache DIR]
See README.md beside this file."""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools" / "bench-peers"))
GROUPS = Path("/sys/fs/cgroup")


# What the demo model writes to lend its routing: each text goes on for `TRACED` tokens.
PROMPTS = ["Genesis 25:8-14<sep>", "Once upon a time", "请写一首关于秋天的诗<sep>", "春夜<sep>"]
TRACED = 500


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


@contextlib.contextmanager
def reading_ahead(file: Path, kib: int | None):
    """The drive's read-ahead set for a while: page faults live by it, direct reads do not care."""
    if kib is None:
        yield
        return
    setting = Path("/sys/dev/block") / drive_of(file) / "queue" / "read_ahead_kb"
    before = setting.read_text()
    setting.write_text(str(kib))
    try:
        yield
    finally:
        setting.write_text(before)


def forget(file: Path) -> None:
    """Drops a file from the page cache: pages that another group has read are not charged to ours."""
    with open(file, "rb") as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(command: list, model: Path, cap: int, drive: float) -> dict:
    """What the program prints in JSON, and what its group needed."""
    forget(model)
    with Capped(cap, drive, model) as group:
        process = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=group.enter)
        if process.returncode != 0:
            sys.exit(f"{command} ended with {process.returncode}:\n{process.stderr}")
        return {"found": json.loads(process.stdout), "group_peak": group.peak()}


def ours(bench: "Bench", way: str, cap: int, drive: float) -> dict[str, float | str]:
    args = bench.args
    numbers = ["-p", args.prompt, "-n", args.tokens, "--depth", 0, "-r", 1, "--paging", way, "--json"]
    routing = ["--routing", ",".join(map(str, bench.traces))] if bench.traces else []
    trace = ["--trace", bench.last_trace] if way == "auto" else []
    result = timed([bench.program("yuan"), "bench", bench.model, *numbers, *routing, *trace], bench.model, cap, drive)
    peak, result = result["group_peak"], result["found"]
    decode, prefill = result["decode"], result["prefill"]
    tokens = max(decode["tokens"], 1)
    found = {
        "mode": result["paging"]["mode"],
        "prefill tok/s": result["prefill_tokens_per_second"],
        "decode tok/s": result["decode_tokens_per_second"],
        "p50 ms": result["token_ms"]["p50"],
        "p95 ms": result["token_ms"]["p95"],
        "there %": 100 * decode["hit_rate"],
        "MB read a token": decode["storage_bytes_read"] / tokens / 1e6,
        "prompt GB": prefill["storage_bytes_read"] / 1e9,
        "peak GB": peak / 1e9,
    }
    if result["drive_gb_per_second"]:
        # While at least one read was under way: drives of virtual machines change from minute to minute.
        found["drive GB/s"] = decode["drive_gb_per_second"]
        found["drive busy %"] = 100 * decode["drive_seconds"] / decode["seconds"]
        found["calibrated GB/s"] = result["drive_gb_per_second"]
        found["prompt GB/s"] = prefill["drive_gb_per_second"]
        found["prompt busy %"] = 100 * prefill["drive_seconds"] / max(prefill["seconds"], 1e-9)
        found["kept"] = result["paging"]["experts_resident"]
    return found


def theirs(bench: "Bench", cap: int, drive: float) -> dict[str, float | str]:
    args = bench.args
    numbers = ["-p", args.prompt, "-n", args.tokens, "-r", 1, "-t", len(os.sched_getaffinity(0)), "--repack", 0, "--no-warmup"]
    result = timed([bench.rival, "-m", bench.peer, *numbers, "-o", "json"], bench.peer, cap, drive)
    rates = {(t["n_prompt"] > 0): t["samples_ts"][0] for t in result["found"]}
    return {"mode": "mmap", "prefill tok/s": rates.get(True, 0.0), "decode tok/s": rates.get(False, 0.0), "peak GB": result["group_peak"] / 1e9}


class Bench:
    """The programs and models."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        args.cache.mkdir(parents=True, exist_ok=True)
        self.model, self.peer = args.cache / "m32.gguf", args.cache / "llama.gguf"
        self.last_trace = args.cache / "last.trace"
        self.traces: list[Path] = []
        build("cargo", "build", "--release", "-p", "yuan-tools", "--manifest-path", ROOT / "Cargo.toml")
        if not self.model.exists():
            build(self.program("yuan-quant"), "synth", "--geometry", "m32", "-o", self.model)
        if args.routing == "demo":
            self.traces = self.traced()
        if "llama.cpp" in args.ways:
            # NumPy is needed for this rival alone.
            import llama
            import mkpeer

            self.rival = llama.built((args.peers or ROOT / "target" / "bench-peers").resolve(), 1)
            if not self.peer.exists():
                mkpeer.write(self.peer, 24, "q4_k", "q8_0")

    def program(self, name: str) -> Path:
        return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / name

    def traced(self) -> list[Path]:
        """The routing of the demo model while it writes."""
        demo = self.args.cache / "demo.gguf"
        if not demo.exists():
            build(self.program("yuan-quant"), ROOT / "assets" / "demo-model", "-o", demo)
        paths = [self.args.cache / f"demo-{i}.trace" for i in range(len(PROMPTS))]
        for path, prompt in zip(paths, PROMPTS):
            if not path.exists():
                build(self.program("yuan"), "trace", demo, "-p", prompt, "-n", TRACED, "--temp", 0.8, "--seed", 1, "--ignore-eod", "-o", path)
        return paths

    def run(self, way: str, cap: int, drive: float) -> dict[str, float | str]:
        return theirs(self, cap, drive) if way == "llama.cpp" else ours(self, way, cap, drive)


def build(*command: object) -> None:
    print("+", *command, file=sys.stderr)
    subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr)


def compare(bench: Bench, percent: int, drive: float) -> None:
    args, cap = bench.args, bench.model.stat().st_size * percent // 100
    runs: dict[str, list[dict[str, float | str]]] = {way: [] for way in args.ways}
    for _ in range(args.runs):
        for way in args.ways:
            runs[way].append(bench.run(way, cap, drive))
            shown = (f"{k} {v if isinstance(v, str) else f'{v:.2f}'}" for k, v in runs[way][-1].items())
            print(way, *shown, f"load {os.getloadavg()[0]:.1f}", sep="  ", file=sys.stderr, flush=True)
    print(f"\ncap {percent} % ({cap / 1e9:.2f} GB), drive {f'{drive} GB/s' if drive else 'as it is'}, routing {args.routing}, {args.runs} runs\n")
    names = [name for name in dict.fromkeys(name for all_runs in runs.values() for name in all_runs[0]) if name != "mode"]
    print(f"| way | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for way, all_runs in runs.items():
        cells = [f"{statistics.median(r[n] for r in all_runs):.2f}" if n in all_runs[0] else "-" for n in names]
        print(f"| {way} ({all_runs[0]['mode']}) | {' | '.join(cells)} |", flush=True)
    if "auto" in runs and bench.last_trace.exists():
        project(bench, runs["auto"][-1])


def project(bench: Bench, run: dict[str, float | str]) -> None:
    """What other drives would make of the last run, whose hits must be those of the replay."""
    if "kept" not in run:
        return
    idle = run["p50 ms"] * (1 - run["drive busy %"] / 100)
    command = [bench.program("yuan"), "replay", bench.last_trace, "--resident", int(run["kept"]), "--drive", "0.5,1,3,7", "--idle", f"{idle:.1f}", "--json"]
    replayed = json.loads(subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True).stdout)
    rates = ", ".join(f"{d['gb_per_second']} GB/s: {d['tokens_per_second']:.2f}" for d in replayed["drives"])
    there = 100 * replayed["decode"]["hit_rate"]
    same = "as in the run" if abs(there - run["there %"]) < 1e-9 else f"IN THE RUN {run['there %']:.4f} %"
    print(f"\nreplayed: {there:.2f} % there, {same}; tok/s by drive, which is idle for {idle:.0f} ms a token: {rates}", flush=True)


def numbers(kind: type):
    return lambda text: [kind(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--caps", type=numbers(int), default=[100, 50, 25], help="percents of the container")
    parser.add_argument("--drives", type=numbers(float), default=[0.5, 0], help="GB/s; 0 leaves the drive as it is")
    parser.add_argument("--ways", type=numbers(str), default=["auto", "plain"], help="values of --paging, and llama.cpp")
    parser.add_argument("--routing", choices=["demo", "even"], default="demo", help="of the demo model, or of random weights")
    parser.add_argument("--read-ahead", type=int, help="KiB that page faults read ahead, in place of the drive's setting; Linux's own is 128")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=ROOT / "target" / "bench-paging", help="for models and traces")
    parser.add_argument("--peers", type=Path, help="the cache of tools/bench-peers, which builds llama.cpp")
    args = parser.parse_args()
    bench = Bench(args)
    with reading_ahead(bench.model, args.read_ahead):
        for drive in args.drives:
            for percent in args.caps:
                compare(bench, percent, drive)


if __name__ == "__main__":
    main()
