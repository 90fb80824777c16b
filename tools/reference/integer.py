#!/usr/bin/env python3
"""The demo model by the runtime's integer arithmetic, version 2, with all matrices in q8_0, and golden numbers of it.

Weights are rounded to 8 bits with an f16 scale for each 32 of a row, activations to 8 bits with a scale for each 32 columns;
the rest is as in yuan.py (MODEL.md, "Precision of the runtime"). The numbers are those of the twin in float64, every
16th of the last logits, for prompts of three tokens of which it has the same in float32: a sum that is off by its last bit may be
rounded to another of the 8 bits, and move logits by 0.1.

usage: integer.py    writes tests/fixtures/goldens/integer.json
"""
import json
from pathlib import Path

import numpy as np

from yuan import Model, State

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests/fixtures/goldens/integer.json"


def q8_0(weights):
    """Each 32 weights of a row as multiples of an f16, at most 127 of them, ties away from zero: in float32, as the encoder does it."""
    blocks = weights.astype(np.float32).reshape(-1, 32)
    d = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    scaled = blocks * np.divide(np.float32(1), d, out=np.zeros_like(d), where=d > 0)
    codes = np.sign(scaled) * np.minimum(np.floor(np.abs(scaled) + np.float32(0.5)), 127)
    return (codes * d.astype(np.float16).astype(np.float32)).reshape(weights.shape).astype(weights.dtype)


def in_blocks(x):
    """Each 32 activations as multiples of an f32, at most 127 of them, ties to even."""
    blocks = x.reshape(-1, 32)
    amax = np.abs(blocks).max(1, keepdims=True).astype(np.float32)
    codes = np.rint(blocks * np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax > 0))
    return (codes * (amax / np.float32(127)).astype(x.dtype)).reshape(x.shape)


class Rounded:
    """A matrix in q8_0: `x @ matrix.T` rounds x, too."""
    __array_ufunc__ = None

    def __init__(self, weights):
        self.weights, self.T = q8_0(weights), self

    def __rmatmul__(self, x):
        return in_blocks(x) @ self.weights.T


def model(demo, dtype):
    of = Model(demo, "f32", dtype)
    of.embedding = of.embedding.astype(np.float16).astype(dtype)
    of.head = Rounded(of.head)
    for layer in of.layers:
        layer.q, layer.k, layer.v, layer.o = map(Rounded, (layer.q, layer.k, layer.v, layer.o))
        layer.filter.conv1, layer.filter.conv2 = ([Rounded(tap) for tap in conv]
                                                  for conv in (layer.filter.conv1, layer.filter.conv2))
        layer.experts.experts = [(Rounded(w1), Rounded(w2)) for w1, w2 in layer.experts.experts]
    return of


def last_logits(of, tokens):
    return of.forward(tokens, State(of))[-1, ::16]


def main():
    demo = ROOT / "assets/demo-model"
    wide, narrow = model(demo, np.float64), model(demo, np.float32)
    texts = [prompt["ids"] for prompt in json.loads((demo / "goldens.json").read_text())["prompts"]]
    prompts = [ids[at:at + 3] for ids in texts for at in range(0, len(ids) - 2, 3)]
    both = [(ids, last_logits(wide, ids), last_logits(narrow, ids)) for ids in prompts]
    goldens = [{"ids": ids, "last_logits": [float(f"{x:.6g}") for x in logits]}
               for ids, logits, other in both if np.abs(logits - other).max() < 5e-4]
    GOLDENS.write_text(json.dumps(goldens, separators=(",", ":")).replace('{"ids"', '\n{"ids"') + "\n")


if __name__ == "__main__":
    main()
