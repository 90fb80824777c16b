#!/usr/bin/env python3
"""Checks yuan.py against the golden numbers of the authors' own code (tests/fixtures/README.md), and of linear_router.py and integer.py.

usage: check.py [FIXTURES_DIR] [DEMO_DIR] [--dtype float32|float64]

Prints the largest error of each kind for every model and exits with 1 when one is above its tolerance, or when ids
or experts differ. Fixtures come from FIXTURES_DIR, else YUAN_FIXTURES, else ../shared/fixtures, and where they lack a
file from tests/fixtures; the demo model from DEMO_DIR, else assets/demo-model.
"""
import argparse
import hashlib
import json
import os
import re
import sys
from pathlib import Path

import numpy as np

import integer
import linear_router
from yuan import PRECISIONS, Model, Rope, State, read_safetensors, read_weights

ROOT = Path(__file__).resolve().parents[2]


class Report:
    """Largest errors of one model by kind, and what failed."""

    def __init__(self, model):
        self.model, self.errors, self.failures = model, {}, []

    def check(self, kind, place, found, golden, tolerance):
        assert found.shape == golden.shape, f"{place}: {kind} have shape {found.shape}, not {golden.shape}"
        error = float(np.abs(found.astype(np.float64) - golden).max())
        self.errors[kind] = max(self.errors.get(kind, 0.0), error)
        if not error <= tolerance:
            self.failures.append(f"{place}: {kind} differ by {error:.2e}, more than {tolerance:.0e}")

    def same(self, kind, place, found, golden, required=True):
        count, wrong = self.errors.get(kind, (0, 0))
        rows = (np.asarray(found) != np.asarray(golden)).reshape(len(golden), -1).any(1)
        self.errors[kind] = count + len(rows), wrong + int(rows.sum())
        if rows.any() and required:
            self.failures.append(f"{place}: {kind} differ first in row {rows.argmax()}")

    def print(self):
        for kind, e in self.errors.items():
            text = f"{e[1]} of {e[0]} differ" if isinstance(e, tuple) else f"largest error {e:.2e}"
            print(f"{self.model}: {kind}: {text}")
        for failure in self.failures:
            print(f"{self.model}: FAILED {failure}")
        print(f"{self.model}: {'FAILED' if self.failures else 'ok'}")
        return not self.failures


def run(model, tokens, chunks=None):
    """A prompt in calls of `chunks` tokens (all in one): logits, what each stage showed by layer, the state."""
    state, seen, logits, start = State(model), {}, [], 0
    probe = lambda stage, layer, rows: seen.setdefault((stage, layer), []).append(rows)
    for n in chunks or [len(tokens)]:
        logits.append(model.forward(tokens[start:start + n], state, probe))
        start += n
    return np.concatenate(logits), {at: np.concatenate(rows) for at, rows in seen.items()}, state


def chunkings(n):
    """Ways to cut n tokens: singly, in fours, all but the last, the first alone, unevenly."""
    even = lambda size: [size] * (n // size) + [n % size] * (n % size > 0)
    return [] if n == 1 else [even(1), even(4), [n - 1, 1], [1, n - 1], even(max(2, n * 3 // 7))]


def check_prompt(model, goldens, rope, p, report):
    config, at = model.config, f"{rope}.p{p}"
    tokens = goldens[f"p{p}.input_ids"]
    logits, seen, state = run(model, tokens)
    layers = lambda stage: np.stack([seen[stage, l] for l in range(config.layers)])
    golden = {name[len(at) + 1:]: x for name, x in goldens.items() if name.startswith(at + ".")}
    for name in golden.keys() & {"logits", "logits_last64", "logits_last"}:
        report.check("logits", at, logits[-len(golden[name]):], golden[name], 1e-3)

    if "router_logits" in golden:
        report.check("router logits", at, layers("router logits"), golden["router_logits"], 1e-3)
        experts = lambda chosen: np.sort(chosen, -1).reshape(-1, config.experts_used)
        report.same("experts of a token", at, experts(layers("chosen")), experts(golden["topk_ids"]))
        report.check("expert weights", at, layers("weights"), golden["topk_weights"], 5e-4)

    if "hidden" in golden:
        hidden = np.concatenate([seen["embedding", 0][None], layers("hidden")])
        report.check("hidden states", at, hidden, golden["hidden"], 3e-4)
        report.check("final norm", at, seen["final norm", 0], golden["final_norm"], 1e-3)
        by_head = lambda rows: rows.transpose(1, 0, 2)
        for stage, name, form, tolerance in [
                ("input norm", "input_norm", np.asarray, 3e-5), ("filter", "lf_gate", np.asarray, 3e-5),
                ("query", "q_rope", by_head, 3e-5), ("key", "k_rope", by_head, 3e-5), ("value", "v", np.asarray, 3e-5),
                ("attention", "attn_out", np.asarray, 3e-5), ("feed forward", "mlp_out", np.asarray, 3e-4)]:
            report.check(f"layer 0 {stage}", at, form(seen[stage, 0]), golden[f"layer0.{name}"], tolerance)

    if "layer0.lf_memory_after_prompt" in golden:
        older, last = golden["layer0.lf_memory_after_prompt"]
        report.check("filter state", at, state.layers[0][1].input, last, 3e-5)
        before = seen["input norm", 0][-2] if len(tokens) > 1 else np.zeros_like(older)
        report.check("filter state", at, before, older, 3e-5)

    for name, last in [("lf1", state.layers[0][1].input), ("lf2", state.layers[0][1].conv1)]:
        if (of := golden.get(f"layer0.{name}_after_prompt")) is not None:
            report.check("filter state", at, last, of, 3e-5)

    for chunks in chunkings(len(tokens)):
        cut, cut_seen, _ = run(model, tokens, chunks)
        report.check("cached against uncached", at, cut, logits, 5e-4)
        for l in range(config.layers if config.experts else 0):
            report.check("cached against uncached", at, cut_seen["router logits", l], seen["router logits", l], 5e-4)

    if "greedy_ids" in golden:
        ids, rows = model.greedy(logits, state, len(golden["greedy_ids"]))
        # The prompts were chosen for wide gaps between experts under f32 and hfbf16, not under mixed.
        kind = "greedy ids, mixed (not required)" if rope == "mixed" else "greedy ids"
        report.same(kind, at, ids, golden["greedy_ids"], required=rope != "mixed")
        if "greedy_logits" in golden:
            report.check("greedy logits", at, rows, golden["greedy_logits"], 1e-3)


def check_model(name, folder, goldens, dtype):
    report, digests, goldens = Report(name), goldens.with_suffix(".json"), read_safetensors(goldens)
    if name.startswith("gptq-"):
        check_digests(folder, json.loads(digests.read_text())["quantized"], report)
    model = Model(folder, dtype=dtype)
    for rope in PRECISIONS:
        if not any(key.startswith(rope + ".") for key in goldens):
            continue
        model.use_rope(rope)
        for p in range(4):
            check_prompt(model, goldens, rope, p, report)
        if (golden := goldens.get(f"{rope}.long.logits_last8")) is not None:
            logits = run(model, goldens["long.input_ids"])[0]
            report.check("logits of 520 tokens", rope, logits[-8:], golden, 1e-3)
    return report.print()


def check_digests(folder, golden, report):
    """Every quantized matrix as float32 against the digest of what the authors' code makes of it."""
    weights = read_weights(folder)
    digest = lambda module: hashlib.sha256(weights[f"{module}.weight"].astype("<f4").tobytes()).hexdigest()
    report.same("matrices", "digests", [digest(module) for module in golden], [m["f32"] for m in golden.values()])


def check_yuan3(folder, path, dtype):
    """The tiny model of Yuan 3.0, without YaRN, with it, and with it on the base of the config."""
    report, goldens = Report("yuan3-tiny"), read_safetensors(path)
    yarn = json.loads(path.with_suffix(".json").read_text())["yarn_overrides"]
    for convention in ("f32", "yarn", "yarnbase"):
        model = Model(folder, dtype=dtype, changes={} if convention == "f32" else yarn)
        if convention == "yarnbase":
            model.config.rope_base = Model(folder, dtype=dtype).config.rope_base
            model.use_rope("f32")
        report.check("frequencies, relative", convention, model.rope.inverse / goldens[f"{convention}.inv_freq"],
                     np.ones_like(model.rope.inverse), 5e-7)
        for p in range(4):
            check_prompt(model, goldens, convention, p, report)
        logits = run(model, goldens["long.input_ids"])[0]
        report.check("logits of 520 tokens", convention, logits[-8:], goldens[f"{convention}.long.logits_last8"], 1e-3)
    return report.print()


def check_yuan3_rope(path):
    report, goldens = Report("rotary tables of Yuan 3.0"), read_safetensors(path)
    positions = goldens["positions"]
    for name in sorted(name.removesuffix(".inv_freq") for name in goldens if name.endswith(".inv_freq")):
        numbers = {key: int(n) for key, n in re.findall(r"(base|orig|scale)(\d+)", name)}
        rope = Rope(128, numbers["base"], "f32", (numbers["scale"], numbers["orig"]) if "orig" in numbers else None)
        ones = np.ones_like(rope.inverse)
        report.check("frequencies, relative", name, rope.inverse / goldens[f"{name}.inv_freq"], ones, 5e-7)
        for part, table in zip(("cos", "sin"), rope.at(positions)):
            for last in (511, 4095, 32767, 131071):
                near = positions <= last
                golden, tolerance = goldens[f"{name}.{part}"][near], 1e-7 + 1.2e-7 * last
                report.check(f"to position {last}", f"{name}.{part}", table[near], golden, tolerance)
        # From the authors' frequencies the tables follow exactly, but for the last bit of cos and sin.
        rope.inverse = goldens[f"{name}.inv_freq"]
        for part, table in zip(("cos", "sin"), rope.at(positions)):
            report.check("from the frequencies of the reference", name, table, goldens[f"{name}.{part}"], 2e-7)
    return report.print()


def check_linear_router(demo, dtype):
    """The twin in this type against its numbers in float64."""
    report, model = Report("linear router"), linear_router.model(demo, dtype)
    for p, golden in enumerate(json.loads(linear_router.GOLDENS.read_text())):
        router, chosen, weights, logits, state = linear_router.run(model, golden["ids"])
        report.check("router logits", f"p{p}", router.ravel(), np.array(golden["router_logits"]), 1e-3)
        report.same("experts of a token", f"p{p}", chosen.ravel(), golden["chosen"])
        report.check("expert weights", f"p{p}", weights.ravel(), np.array(golden["weights"]), 5e-4)
        report.check("logits", f"p{p}", logits[-1], np.array(golden["last_logits"]), 1e-3)
        report.same("greedy ids", f"p{p}", model.greedy(logits, state, len(golden["greedy_ids"]))[0], golden["greedy_ids"])
    return report.print()


def check_integer(demo, dtype):
    """The twin with integer products in this type against its numbers in float64."""
    report, model = Report("integer arithmetic"), integer.model(demo, dtype)
    for p, golden in enumerate(json.loads(integer.GOLDENS.read_text())):
        report.check("logits", f"p{p}", integer.last_logits(model, golden["ids"]), np.array(golden["last_logits"]), 1e-3)
    return report.print()


def check_rope(path):
    report, goldens = Report("rotary tables"), read_safetensors(path)
    positions = goldens["positions"]
    near = positions <= 512
    for dims in (64, 128):
        for precision in PRECISIONS:
            tables = Rope(dims, 10000.0, precision).at(positions)
            for part, table in zip(("cos", "sin"), tables):
                golden, at = goldens[f"d{dims}.{precision}.{part}"], f"{dims} dims, {part}"
                tolerance = {"hfbf16": (0.0, 0.0), "mixed": (1e-7, 1e-7), "f32": (2e-5, 2e-4)}[precision]
                report.check(f"{precision} to position 512", at, table[near], golden[near], tolerance[0])
                report.check(f"{precision} to position 4095", at, table, golden, tolerance[1])
    return report.print()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("fixtures", nargs="?", type=Path, metavar="FIXTURES_DIR")
    parser.add_argument("demo", nargs="?", type=Path, metavar="DEMO_DIR", default=ROOT / "assets/demo-model")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    args = parser.parse_args()
    full = args.fixtures or Path(os.environ.get("YUAN_FIXTURES") or ROOT / "../shared/fixtures")
    places = [full, ROOT / "tests/fixtures"]
    find = lambda path: next((place / path for place in places if (place / path).exists()), None)

    good = True
    place_of = lambda name: (name, find(f"models/{name}"), find(f"goldens/{name}.safetensors"))
    quantized = ("gptq-tiny-int4", "gptq-tiny-int8", "gptq-demo-int4")
    models = [place_of(name) for name in ("tiny-a", "tiny-b", "dense", *quantized)]
    for name, folder, goldens in models + [("demo", args.demo, args.demo / "goldens.safetensors")]:
        if folder and goldens:
            good &= check_model(name, folder, goldens, args.dtype)
        else:
            print(f"{name}: skipped: not in {full} or tests/fixtures")
    good &= check_linear_router(args.demo, args.dtype)
    good &= check_integer(args.demo, args.dtype)
    folder, goldens = find("models/yuan3-tiny"), find("goldens/yuan3-tiny.safetensors")
    if folder and goldens:
        good &= check_yuan3(folder, goldens, args.dtype)
    else:
        print(f"yuan3-tiny: skipped: not in {full} or tests/fixtures")
    if (path := find("goldens/rope-yuan3.safetensors")):
        good &= check_yuan3_rope(path)
    good &= check_rope(find("goldens/rope.safetensors"))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
