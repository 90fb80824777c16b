"""What is measured, and how `yuan` and each of the rival programs is asked for it."""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measure:
    """Either a prompt or tokens that are generated behind `depth` others."""

    name: str
    prompt: int = 0
    tokens: int = 0
    depth: int = 0
    kv: str = "f16"
    one_thread: bool = False
    repeat: int = 3


MEASURES = [
    Measure("prefill 32", prompt=32),
    Measure("prefill 512", prompt=512),
    Measure("prefill 4096", prompt=4096, repeat=1),
    Measure("decode 64", tokens=64),
    Measure("decode 64 on one thread", tokens=64, one_thread=True),
    # As many tokens as the model was trained for, with keys and values in 8 bits.
    Measure("decode behind 4096 (KV q8_0)", tokens=32, depth=4096, kv="q8_0", repeat=1),
]


@dataclass(frozen=True)
class Rival:
    """A llama-bench. `behind` is how it is told to generate tokens behind others: with {tokens} and {depth} in it."""

    name: str
    binary: Path
    arguments: tuple[object, ...]
    behind: tuple[str, ...]

    def work(self, measure: Measure) -> list[object]:
        """The measure as arguments."""
        words: list[object] = ["-p", measure.prompt, "-n", measure.tokens]
        if measure.depth:
            words = ["-p", 0, *(word.format(tokens=measure.tokens, depth=measure.depth) for word in self.behind)]
        if measure.kv != "f16":
            words += ["-ctk", measure.kv, "-ctv", measure.kv, "-fa", 1]
        return words

    def run(self, model: Path, measure: Measure, threads: int) -> tuple[float, dict]:
        """Tokens a second, the median, and all that it says. It warms up before it counts."""
        common = ["-t", threads, "-r", measure.repeat, "-o", "json"]
        (test,) = json.loads(output(self.binary, "-m", model, *self.work(measure), *self.arguments, *common))
        return statistics.median(test["samples_ts"]), test


def rivals(llama_bench: Path, ik_llama_bench: Path | None) -> list[Rival]:
    """Each way to run each program. What a way is best at depends on the CPU, the types and the measure."""
    behind = ("-n", "{tokens}", "-d", "{depth}")
    table = [
        Rival("llama.cpp", llama_bench, ("--repack", 1), behind),
        Rival("llama.cpp, no repacking", llama_bench, ("--repack", 0), behind),
    ]
    if ik_llama_bench:
        behind = ("-n", "0", "-gp", "{depth},{tokens}")
        table += [
            Rival("ik_llama.cpp", ik_llama_bench, ("-rtr", 1, "-fmoe", 1), behind),
            Rival("ik_llama.cpp, no repacking", ik_llama_bench, ("-rtr", 0, "-fmoe", 1), behind),
        ]
    return table


def yuan(binary: Path, model: Path, measure: Measure, threads: int) -> tuple[float, dict]:
    """The same of `yuan bench`."""
    work = ["-p", measure.prompt, "-n", measure.tokens, "--depth", measure.depth, "--kv", measure.kv]
    said = json.loads(output(binary, "bench", model, *work, "--threads", threads, "-r", measure.repeat, "--json"))
    return said["prefill_tokens_per_second" if measure.prompt else "decode_tokens_per_second"], said


def output(*command: object) -> str:
    process = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{process.stderr}")
    return process.stdout
