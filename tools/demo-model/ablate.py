"""Does the router matter? Held-out perplexity with every choice moved to the next expert, with experts silenced, and with
the router's weights shuffled.

usage: ablate.py --work WORK [--out assets/demo-model]     (adds "ablations" to WORK/report.json)
"""
import argparse
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file

from data import Tok
from finish import perplexity
from model import Yuan

ap = argparse.ArgumentParser()
ap.add_argument("--work", required=True)
ap.add_argument("--out", default=Path(__file__).resolve().parents[2] / "assets/demo-model")
a = ap.parse_args()
torch.set_num_threads(2)
tok = Tok(os.path.join(a.out, "tokenizer.model"))
d = json.load(open(os.path.join(a.work, "docs.json"), encoding="utf-8"))
cfg = json.load(open(os.path.join(a.out, "config.json")))
w = {k: v.float() for k, v in load_file(os.path.join(a.out, "model.safetensors")).items()}
res = {}
for name in ("next_expert", "no_experts", "random_router"):
    m = Yuan(cfg).import_(w).eval()
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for l in m.layers:
            if name == "next_expert":
                l.mlp.w1.copy_(l.mlp.w1.roll(1, 0).clone())
                l.mlp.w2.copy_(l.mlp.w2.roll(1, 0).clone())
            elif name == "no_experts":
                l.mlp.w2.zero_()
            else:
                for p in (l.mlp.query, l.mlp.key, l.mlp.value):
                    p.weight.copy_(p.weight.flatten()[torch.randperm(p.weight.numel(), generator=g)].view_as(p.weight))
    res[name] = {k: perplexity(m, tok, d["held_" + k]) for k in ("en", "zh")}
    print(name, {k: (round(v["loss"], 4), round(v["perplexity"], 2)) for k, v in res[name].items()}, flush=True)
p = os.path.join(a.work, "report.json")
R = json.load(open(p, encoding="utf-8"))
R["ablations"] = res
open(p, "w", encoding="utf-8").write(json.dumps(R, indent=1, ensure_ascii=False) + "\n")
