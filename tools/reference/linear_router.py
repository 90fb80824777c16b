#!/usr/bin/env python3
"""The demo model with a linear router in the place of its attention router, and golden numbers of it.

Its matrix is the query projection of the attention router. No program of the authors has a checkpoint with a linear router
to compare with, so the numbers are those of the twin in float64 (MODEL.md, "Router").

usage: linear_router.py    writes tests/fixtures/goldens/linear-router.json
"""
import json
import re
from pathlib import Path

import numpy as np

from yuan import Model, State

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests/fixtures/goldens/linear-router.json"
QUERY = re.compile(r"(.*\.mlp\.gate\.)query\.weight")


def linear(weights):
    """The tensors with `mlp.gate.weight` in the place of `mlp.gate.{query,key,value}.weight`."""
    queries = {match[1] + "weight": weights[name] for name in weights if (match := QUERY.fullmatch(name))}
    others = {name: x for name, x in weights.items() if not re.search(r"\.mlp\.gate\.\w+\.weight$", name)}
    return others | queries


def model(demo, dtype):
    moe = json.loads((demo / "config.json").read_text())["moe_config"]
    changes = {"moe_config": {**moe, "router_type": "linear"}}
    return Model(demo, "f32", dtype, changes, linear)


def run(model, tokens):
    """Of all layers the router's logits [L, T, E], the chosen and their weights [L, T, k]; logits [T, V]; the state."""
    state, seen = State(model), {}
    logits = model.forward(tokens, state, lambda stage, layer, rows: seen.update({(stage, layer): rows}))
    layers = lambda stage: np.stack([seen[stage, l] for l in range(model.config.layers)])
    return layers("router logits"), layers("chosen"), layers("weights"), logits, state


def golden(model, tokens, steps):
    router, chosen, weights, logits, state = run(model, tokens)
    ordered = -np.sort(-router, -1)
    gap = (ordered[..., model.config.experts_used - 1] - ordered[..., model.config.experts_used]).min()
    assert gap > 1e-3, f"experts are closer than rounding may move them: {gap}"
    short = lambda x: [float(f"{value:.7g}") for value in x.ravel()]
    return {"ids": [int(t) for t in tokens], "router_logits": short(router), "chosen": chosen.ravel().tolist(), "weights": short(weights),
            "last_logits": short(logits[-1]), "greedy_ids": model.greedy(logits, state, steps)[0]}


def main():
    demo = ROOT / "assets/demo-model"
    # One in English, one in Chinese.
    prompts = [prompt["ids"] for prompt in json.loads((demo / "goldens.json").read_text())["prompts"][:4:2]]
    of = model(demo, np.float64)
    goldens = [golden(of, tokens, 16) for tokens in prompts]
    GOLDENS.write_text(json.dumps(goldens, separators=(",", ":")).replace('{"ids"', '\n{"ids"') + "\n")


if __name__ == "__main__":
    main()
