"""Turn a training result into the delivered folder.

usage: finish.py --work WORK [--out assets/demo-model] [--ggml libggml-base.so] [--quick]

Writes config.json, model.safetensors (bf16), tokenizer files, heldout.txt, goldens.{safetensors,json} and routing.safetensors, and
WORK/report.json. All numbers come from the bf16-rounded weights widened to float32, in float32 arithmetic; goldens are
checked against tools/reference/yuan.py (float64, token by token).
"""
import argparse
import ctypes
import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from data import Tok
from model import Yuan
from train import held_batches

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/reference"))
import yuan  # noqa: E402

ROPES = ["hfbf16", "f32", "mixed"]
STEPS = 48


@torch.no_grad()
def perplexity(model, tok, docs):
    """per token, over all tokens but the first of each document; also only over body tokens (after <sep>, with <eod>)"""
    s = n = sb = nb = sl = nl = hits = 0
    for a in held_batches(tok, docs):
        x, t = a[:, :-1], a[:, 1:]
        lp = F.log_softmax(model(x), -1)
        nll = -lp.gather(2, t[:, :, None])[:, :, 0].double()
        ok = t != tok.pad
        body = ok & ((x == tok.sep).long().cumsum(1) > 0)
        s, n = s + float(nll[ok].sum()), n + int(ok.sum())
        sb, nb = sb + float(nll[body].sum()), nb + int(body.sum())
        far = ok & (torch.arange(x.shape[1])[None] >= 256)            # positions that training never saw
        sl, nl = sl + float(nll[far].sum()), nl + int(far.sum())
        hits += int(((lp.argmax(-1) == t) & ok).sum())
    size = sum(len((h + b).encode()) for h, b in docs)
    chars = sum(len(h + b) for h, b in docs)
    return {"documents": len(docs), "tokens": n, "loss": s / n, "perplexity": math.exp(s / n), "body_tokens": nb,
            "body_loss": sb / nb, "body_perplexity": math.exp(sb / nb), "top1_accuracy": hits / n,
            "tokens_at_positions_from_256": nl, "loss_at_positions_from_256": sl / max(nl, 1),
            "loss_at_positions_below_256": (s - sl) / (n - nl), "longest_document": max(len(tok.doc(h, b)) for h, b in docs),
            "bits_per_utf8_byte": s / math.log(2) / size, "bits_per_character": s / math.log(2) / chars}


@torch.no_grad()
def traced(model, ids):
    for l in model.layers:
        l.mlp.trace = []
    lg = model(ids)
    tr = [l.mlp.trace[0] for l in model.layers]
    for l in model.layers:
        l.mlp.trace = None
    return lg, tr


@torch.no_grad()
def greedy(model, ids, steps):
    """ids [B, T] -> ids [B, steps]; also the smallest argmax gap and the smallest router gap (second to third), per row,
    over the prompt and the continuation"""
    x, gap, rgap = ids, torch.full((len(ids),), 99.0), torch.full((len(ids),), 99.0)
    for s in range(steps):
        lg, tr = traced(model, x)
        t2 = lg[:, -1].topk(2).values
        gap = torch.minimum(gap, t2[:, 0] - t2[:, 1])
        if s == steps - 1:
            for logits, _, _ in tr:
                so = logits.view(len(x), x.shape[1], -1).topk(3, -1).values
                rgap = torch.minimum(rgap, (so[..., 1] - so[..., 2]).amin(1))
        x = torch.cat([x, lg[:, -1].argmax(-1, keepdim=True)], 1)
    return x[:, ids.shape[1]:], gap, rgap


@torch.no_grad()
def sample(model, tok, prompt, seed, temperature, top_p, limit=220):
    """prompt: token ids; nucleus sampling until <eod>"""
    g, x = torch.Generator().manual_seed(seed), list(prompt)
    for _ in range(limit):
        p = torch.softmax(model(torch.tensor([x]))[0, -1] / temperature, -1)
        v, i = p.sort(descending=True)
        v[1:][v.cumsum(0)[:-1] >= top_p] = 0
        t = int(i[torch.multinomial(v / v.sum(), 1, generator=g)])
        if t == tok.eod:
            break
        x.append(t)
    return x[len(prompt):]


def text(tok, ids):
    out, cur = "", []
    for t in list(ids) + [-1]:
        if t in (-1, tok.eod, tok.sep):
            out += tok.sp.decode(cur) + {tok.eod: "<eod>", tok.sep: "<sep>", -1: ""}[t]
            cur = []
        else:
            cur.append(int(t))
    return out


def quantized(lib, weights, kind):
    """{name: tensor} with the expert matrices quantized and dequantized by ggml; and their relative rms error"""
    tid, be, bb = {"Q4_0": (2, 32, 18), "Q4_K": (12, 256, 144), "Q8_0": (8, 32, 34)}[kind]
    f32p, vp = ctypes.POINTER(ctypes.c_float), ctypes.c_void_p
    q = lib.ggml_quantize_chunk
    q.restype, q.argtypes = ctypes.c_size_t, [ctypes.c_int, f32p, vp, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, f32p]
    d = getattr(lib, "dequantize_row_" + kind.lower().replace("_k", "_K"))
    d.restype, d.argtypes = None, [vp, f32p, ctypes.c_int64]
    out, err, ref = dict(weights), 0.0, 0.0
    for k, w in weights.items():
        if ".mlp.experts." in k:
            src = np.ascontiguousarray(w.numpy())
            rows, cols = src.shape
            dst = np.zeros(rows * cols // be * bb, np.uint8)
            assert q(tid, src.ctypes.data_as(f32p), dst.ctypes.data, 0, rows, cols, None) == len(dst)
            deq = np.zeros_like(src)
            d(dst.ctypes.data, deq.ctypes.data_as(f32p), rows * cols)
            err += float(((deq - src).astype(np.float64) ** 2).sum())
            ref += float((src.astype(np.float64) ** 2).sum())
            out[k] = torch.from_numpy(deq)
    return out, math.sqrt(err / ref)


def reuse(ids, starts):
    """ids [T, 2]: share of consecutive pairs (inside a document) with at least one common expert, and mean overlap / 2;
    the same for tokens of the same documents in random order"""
    E = int(ids.max()) + 1
    hot = np.zeros((len(ids), E), np.int32)
    hot[np.arange(len(ids))[:, None], ids] = 1
    ok = ~starts[1:]
    ov = (hot[1:] * hot[:-1]).sum(1)
    both = ov[ok]
    p = np.random.default_rng(0).permutation(len(ids))
    sh = (hot[p][1:] * hot[p][:-1]).sum(1)
    return {"any": float((both > 0).mean()), "overlap": float(both.mean() / 2), "any_shuffled": float((sh > 0).mean()),
            "overlap_shuffled": float(sh.mean() / 2)}


def singly(twin, ids):
    """The twin, one token a call: logits [T, V], router logits [L, T, E], chosen experts [L, T, 2]"""
    state, layers, seen = yuan.State(twin), range(twin.config.layers), {}
    probe = lambda stage, layer, rows: seen.setdefault((stage, layer), []).append(rows)
    logits = np.concatenate([twin.forward([t], state, probe) for t in ids])
    router, chosen = (np.stack([np.concatenate(seen[stage, l]) for l in layers]) for stage in ("router logits", "chosen"))
    return logits, router, chosen


def goldens(m, cfg, tok, both, a, dump):
    J = os.path.join
    # of many candidate prompts the ones whose continuation has the widest margins, is varied and nearly free of byte tokens
    def candidates(d, n):
        out = []
        for i, (h, b) in enumerate(d[:n]):
            body = tok.sp.encode(b)
            out.append(tok.sp.encode(h) + [tok.sep] + (body[:6 + 3 * (i % 6)] if i % 2 else []))
        return out

    n = 8 if a.quick else 56
    chosen = []
    for lang in ("en", "zh"):
        rated = []
        if a.keep and lang in a.keep.split(","):
            old = json.load(open(J(a.out, "goldens.json"), encoding="utf-8"))["prompts"]
            chosen += [(0, p["min_argmax_gap"], p["min_router_gap_2nd_3rd"], p["ids"]) for p in old[2 * (lang == "zh"):][:2]]
            continue
        first = []
        for c in candidates(both[lang], n):
            out, g, q = greedy(m.rope("f32"), torch.tensor([c]), STEPS)
            o = c + out[0].tolist()
            dull = len(set(o[len(c):])) < 0.6 * STEPS or sum(3 <= t < 259 for t in o) > 1
            first.append((min(float(g), 3 * float(q)) - 9 * dull, c))
        first.sort(key=lambda x: -x[0])
        few = [c for _, c in first if c[-1] == tok.sep][:10] + [c for _, c in first if c[-1] != tok.sep][:10]
        for c in few:
            worst = []
            for r in ("f32", "mixed"):
                _, g, q = greedy(m.rope(r), torch.tensor([c]), STEPS)
                worst.append((float(g), float(q)))
            g, q = (min(w[i] for w in worst) for i in (0, 1))
            rated.append((min(g, 3 * q), g, q, c))
        m.rope("f32")
        bare = max((x for x in rated if x[3][-1] == tok.sep), key=lambda x: x[0])
        full = max((x for x in rated if x[3][-1] != tok.sep), key=lambda x: x[0])
        chosen += [bare, full]
        print(lang, "margins", bare[:3], full[:3], flush=True)
    G, GJ = {}, {"model": "demo", "config": cfg, "steps": STEPS, "ropes": ROPES, "prompts": [], "checks": {}}
    for i, (_, g, q, ids) in enumerate(chosen):
        G[f"p{i}.input_ids"] = torch.tensor(ids, dtype=torch.int32)
        GJ["prompts"].append({"length": len(ids), "ids": ids, "text": text(tok, ids), "min_argmax_gap": g, "min_router_gap_2nd_3rd": q, "greedy": {}})
    twin = yuan.Model(a.out, dtype=np.float64)
    for r in ROPES:
        m.rope(r)
        twin.use_rope(r)
        ck = {"f32_vs_numpy_f64_max_abs_logit": 0.0, "f32_vs_f64_max_abs_router_logit": 0.0, "same_experts": True, "same_greedy": True}
        for i, (_, _, _, ids) in enumerate(chosen):
            lg, tr = traced(m, torch.tensor([ids]))
            P = f"{r}.p{i}."
            if r == "f32":
                G[P + "logits"] = lg[0].clone()
                G[P + "router_logits"] = torch.stack([t[0] for t in tr])
                G[P + "topk_ids"] = torch.stack([t[1] for t in tr]).int()
                G[P + "topk_weights"] = torch.stack([t[2] for t in tr])
            else:
                G[P + "logits_last"] = lg[0, -1:].clone()
            out, gap, rgap = greedy(m, torch.tensor([ids]), STEPS)
            G[P + "greedy_ids"] = out[0].int()
            GJ["prompts"][i]["greedy"][r] = {"ids": out[0].tolist(), "text": text(tok, out[0].tolist()), "min_argmax_gap": float(gap), "min_router_gap_2nd_3rd": float(rgap)}
            seq = ids + out[0].tolist()
            nl, nr, ni = singly(twin, seq[:-1])
            fl, ft = traced(m, torch.tensor([seq[:-1]]))
            ck["f32_vs_numpy_f64_max_abs_logit"] = max(ck["f32_vs_numpy_f64_max_abs_logit"], float(np.abs(fl[0].numpy() - nl).max()))
            ck["f32_vs_f64_max_abs_router_logit"] = max(ck["f32_vs_f64_max_abs_router_logit"], float(np.abs(torch.stack([t[0] for t in ft]).numpy() - nr).max()))
            ck["same_experts"] &= bool((np.sort(ni, -1) == np.sort(torch.stack([t[1] for t in ft]).numpy(), -1)).all())
            ck["same_greedy"] &= nl[len(ids) - 1:].argmax(-1).tolist() == out[0].tolist()
        GJ["checks"][r] = ck
        print(r, ck, flush=True)
    m.rope("f32")
    GJ["tensors"] = {k: [str(v.dtype).replace("torch.", ""), list(v.shape)] for k, v in G.items()}
    save_file({k: v.contiguous() for k, v in G.items()}, J(a.out, "goldens.safetensors"))
    dump("goldens.json", GJ)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--work", required=True)
    ap.add_argument("--out", default=ROOT / "assets/demo-model")
    ap.add_argument("--ggml")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--keep", help="languages whose golden prompts stay as they are in DIR/goldens.json")
    ap.add_argument("--only-goldens", action="store_true")
    ap.add_argument("--quick", action="store_true", help="few golden candidates")
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    os.makedirs(a.out, exist_ok=True)
    J = lambda *p: os.path.join(*p)
    tok = Tok(J(a.work, "tokenizer.model"))
    cfg = json.load(open(J(a.work, "config.json")))
    docs = json.load(open(J(a.work, "docs.json"), encoding="utf-8"))
    best = torch.load(J(a.work, "best.pt"))
    R = {k: best[k] for k in ("step", "tokens", "epoch")}
    R["held_out_loss_f32_weights"] = {"en": best["en"], "zh": best["zh"]}

    # checkpoint
    m = Yuan(cfg)
    m.load_state_dict(best["model"])
    bf = {k: v.to(torch.bfloat16).contiguous().clone() for k, v in m.export().items()}
    save_file(bf, J(a.out, "model.safetensors"), {"format": "pt"})
    w32 = {k: v.float() for k, v in bf.items()}
    m.import_(w32).eval()
    shutil.copy(J(a.work, "tokenizer.model"), a.out)
    dump = lambda name, o: open(J(a.out, name), "w", encoding="utf-8").write(json.dumps(o, indent=1, ensure_ascii=False) + "\n")
    dump("config.json", cfg)
    dump("tokenizer_config.json", {
        "add_bos_token": False, "add_eos_token": False, "bos_token": "<s>", "eos_token": "<eod>", "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False, "model_max_length": cfg["max_position_embeddings"], "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer"})
    dump("special_tokens_map.json", {"bos_token": "<s>", "eos_token": "<eod>", "unk_token": "<unk>"})
    with open(J(a.out, "heldout.txt"), "w", encoding="utf-8") as f:
        for h, b in docs["held_en"] + docs["held_zh"]:
            f.write(f"{h}<sep>{b}\n<eod>\n")
    R["parameters"] = sum(v.numel() for v in bf.values())

    both = {"en": docs["held_en"], "zh": docs["held_zh"]}
    if a.only_goldens:
        goldens(m, cfg, tok, both, a, dump)
        return

    # perplexities
    R["held_out_bf16_weights_f32_arithmetic"] = {k: perplexity(m, tok, d) for k, d in both.items()}
    for r in ("mixed", "hfbf16"):
        m.rope(r)
        R[f"held_out_rope_{r}"] = {k: perplexity(m, tok, d) for k, d in both.items()}
    m.rope("f32")
    print(json.dumps(R, indent=1), flush=True)
    if a.ggml:
        lib = ctypes.CDLL(a.ggml)
        R["quantized_experts"] = {}
        for kind in ("Q8_0", "Q4_K", "Q4_0"):
            qw, err = quantized(lib, w32, kind)
            mq = Yuan(cfg).import_(qw).eval()
            R["quantized_experts"][kind] = dict({k: perplexity(mq, tok, d) for k, d in both.items()}, relative_rms_weight_error=err)
            print(kind, err, {k: R["quantized_experts"][kind][k]["perplexity"] for k in both}, flush=True)

    # routing: all held-out documents, each from an empty state; the trace file holds the first ~4,000 tokens of each language
    T, rr = {}, {}
    keep = []
    for lang, d in both.items():
        ids_l, st_l, tk, tw = [], [], [], []
        for h, b in d:
            x = tok.doc(h, b)
            _, tr = traced(m, torch.tensor([x]))
            ids_l += x
            st_l += [True] + [False] * (len(x) - 1)
            tk.append(torch.stack([t[1] for t in tr], 1).numpy())       # [T, L, 2]
            tw.append(torch.stack([t[2] for t in tr], 1).numpy())
        tk, tw, st = np.concatenate(tk), np.concatenate(tw), np.array(st_l)
        rr[lang] = {"tokens": len(st), "layers": []}
        for l in range(tk.shape[1]):
            hist = np.bincount(tk[:, l].reshape(-1), minlength=32)
            pr = hist / hist.sum()
            rr[lang]["layers"].append(dict(
                histogram=hist.tolist(), effective_experts=float(np.exp(-(pr[pr > 0] * np.log(pr[pr > 0])).sum())),
                mean_first_weight=float(tw[:, l, 0].mean()), reuse=reuse(tk[:, l], st)))
        cut = next((i for i in range(4000, len(st)) if st[i]), len(st))
        keep.append((np.array(ids_l[:cut], np.int32), st[:cut], tk[:cut].astype(np.int32), tw[:cut].astype(np.float32)))
    R["routing"] = rr
    for l in range(cfg["num_hidden_layers"]):
        p, q = (np.array(rr[k]["layers"][l]["histogram"], float) for k in ("en", "zh"))
        rr[f"layer{l}_total_variation_en_zh"] = float(0.5 * np.abs(p / p.sum() - q / q.sum()).sum())
    T["input_ids"] = torch.from_numpy(np.concatenate([k[0] for k in keep]))
    T["document_start"] = torch.from_numpy(np.concatenate([k[1] for k in keep]).astype(np.uint8))
    T["language"] = torch.cat([torch.full((len(k[0]),), i, dtype=torch.uint8) for i, k in enumerate(keep)])
    for l in range(cfg["num_hidden_layers"]):
        T[f"layer{l}.topk_ids"] = torch.from_numpy(np.concatenate([k[2][:, l] for k in keep])).contiguous()
        T[f"layer{l}.topk_weights"] = torch.from_numpy(np.concatenate([k[3][:, l] for k in keep])).contiguous()
    save_file(T, J(a.out, "routing.safetensors"))

    # samples
    R["samples"] = []
    for prompt, seed in (("Psalms 151:1-4", 1), ("Matthew 13:44-48", 2), ("Proverbs 32:1-5", 3), ("春日山中 李白", 4), ("送友人归江南 王维", 5), ("秋夜 杜甫", 6)):
        ids = tok.sp.encode(prompt) + [tok.sep]
        out = sample(m, tok, ids, seed, 0.7, 0.9)
        R["samples"].append(dict(prompt=prompt + "<sep>", seed=seed, temperature=0.7, top_p=0.9, text=tok.sp.decode(out)))
        print(prompt, "|", R["samples"][-1]["text"], flush=True)

    goldens(m, cfg, tok, both, a, dump)
    open(J(a.work, "report.json"), "w", encoding="utf-8").write(json.dumps(R, indent=1, ensure_ascii=False) + "\n")
    for f in os.listdir(a.out):
        if os.path.isfile(J(a.out, f)):
            os.chmod(J(a.out, f), 0o644)


if __name__ == "__main__":
    main()
