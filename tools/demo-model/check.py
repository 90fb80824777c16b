"""Check model.py against the golden numbers (tests/fixtures/README.md), and the hand-written gradient.

usage: check.py [--fixtures DIR]     (the full fixtures add tiny-a and tiny-b to the demo model)
"""
import argparse
import glob
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file

from model import Experts, Yuan

ROOT = Path(__file__).resolve().parents[2]
ap = argparse.ArgumentParser()
ap.add_argument("--fixtures", default=os.environ.get("YUAN_FIXTURES") or ROOT / "../shared/fixtures")
a = ap.parse_args()
demo = ROOT / "assets/demo-model"
models = [(demo, demo / "goldens.safetensors")]
for name in ("tiny-a", "tiny-b"):
    models.append((Path(a.fixtures) / "models" / name, Path(a.fixtures) / "goldens" / (name + ".safetensors")))
for d, golden in models:
    if not golden.exists():
        print("skipped:", golden)
        continue
    w = {}
    for p in sorted(glob.glob(str(d / "model*.safetensors"))):
        w.update({k: v.float() for k, v in load_file(p).items()})
    m = Yuan(json.load(open(d / "config.json"))).import_(w).eval()
    assert set(m.export()) == set(w)
    g = load_file(golden)
    for r in ("f32", "hfbf16", "mixed"):
        m.rope(r)
        for i in range(4):
            ids = g[f"p{i}.input_ids"].long()[None]
            for l in m.layers:
                l.mlp.trace = []
            with torch.no_grad():
                lg = m(ids)[0]
            for key, mine in ((f"{r}.p{i}.logits", lg), (f"{r}.p{i}.logits_last64", lg[-64:]), (f"{r}.p{i}.logits_last", lg[-1:])):
                if key in g:
                    e = float((g[key] - mine).abs().max())
                    print(d.name, key, "max difference", e)
                    assert e <= 1e-3
            if f"{r}.p{i}.topk_ids" in g:
                t = torch.stack([l.mlp.trace[0][1] for l in m.layers])
                assert (t.sort(-1).values == g[f"{r}.p{i}.topk_ids"].long().sort(-1).values).all(), "other experts"
# gradient of the hand-written expert pass
torch.manual_seed(0)
x, w1, w2 = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((6, 4), (5, 6, 4), (5, 4, 3)))
wt = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)
ids = torch.stack([torch.randperm(5)[:2] for _ in range(6)])
assert torch.autograd.gradcheck(lambda *t: Experts.apply(t[0], t[1], ids, t[2], t[3]), (x, wt, w1, w2))
print("ok")
