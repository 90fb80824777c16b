"""Train the demo model on a CPU.

usage: train.py --work WORK --minutes 45 [--rows 8] [--procs 2] [--lr 3e-3] [--bench]

PROCS processes with one thread each compute the gradients of ROWS rows each (that is faster than one process with as
many threads); parameters and gradients lie in shared memory and every process updates its part of the parameters.

WORK holds docs.json and tokenizer.model from data.py; best.pt (best held-out loss), config.json and log.txt go there.
The number of steps follows from the speed measured over the first steps; should the machine become slower, the
cosine follows the clock, so that training always ends at the given time with a decayed learning rate.
"""
import argparse
import json
import math
import os
import time

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

from data import VOCAB, Stream, Tok
from model import Yuan


def config(tok):
    e, s = tok.eod, tok.sep
    return dict(
        architectures=["YuanForCausalLM"], model_type="yuan", torch_dtype="bfloat16", vocab_size=VOCAB, hidden_size=256,
        intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, hidden_act="silu", rms_norm_eps=1e-6,
        initializer_range=0.02, max_position_embeddings=1024, model_max_length=1024, rotary_base=10000, rope_precision="f32",
        use_cache=True, causal_mask=True, use_flash_attention=False, use_loss_mask=False, reset_position_ids=False,
        reset_attention_mask=False, dropout=0, eod_token=e, sep_token=s, eod_token_id=e, sep_token_id=s, bos_token_id=e,
        eos_token_id=e, pad_token_id=e, mask_token_id=e, attention_projection_size=512, use_moe=True,
        output_router_logits=False, tie_word_embeddings=False, ffn_hidden_size=256,
        moe_config=dict(moe_num_experts=32, moe_top_k=2, norm_topk_prob=True, gated_linear_unit=True, ffn_hidden_size=256))


def held_batches(tok, docs, size=24):
    """every held-out document by itself, teacher-forced from an empty state; right padding is never a target"""
    ids = sorted((tok.doc(h, b) for h, b in docs), key=len)
    for i in range(0, len(ids), size):
        part = ids[i:i + size]
        a = torch.full((len(part), max(map(len, part))), tok.pad)
        for j, d in enumerate(part):
            a[j, :len(d)] = torch.tensor(d)
        yield a


@torch.no_grad()
def held_loss(model, tok, docs):
    """mean negative log likelihood per token: every token of a document but its first is predicted"""
    s = n = 0
    for a in held_batches(tok, docs):
        t = a[:, 1:].clone()
        t[t == tok.pad] = -100
        lg = model(a[:, :-1])
        s += float(F.cross_entropy(lg.reshape(-1, lg.shape[-1]), t.reshape(-1), ignore_index=-100, reduction="sum"))
        n += int((t != -100).sum())
    return s / n, n


@torch.no_grad()
def bf16_copy(model):
    m = Yuan(model.c)
    m.load_state_dict({k: v.to(torch.bfloat16).float() for k, v in model.state_dict().items()})
    return m


class Flat:
    """all parameters as views of one shared vector, all gradients as views of another; AdamW on a part of it"""

    def __init__(self, model, vec, grad):
        decay = lambda n: not (n.endswith("norm.weight") or n.endswith("bias") or "embed" in n)
        named = sorted(model.named_parameters(), key=lambda x: not decay(x[0]))
        self.vec, self.grad, o = vec, grad, 0
        for n, p in named:
            k = p.numel()
            p.data = vec[o:o + k].view(p.shape)
            p.grad = grad[o:o + k].view(p.shape)
            o += k
            if decay(n):
                self.n_decay = o
        assert o == len(vec)

    def span(self, rank, procs):
        n = len(self.vec)
        self.lo, self.hi = n * rank // procs, n * (rank + 1) // procs
        self.m, self.v = torch.zeros(self.hi - self.lo), torch.zeros(self.hi - self.lo)

    def adamw(self, grads, scale, lr, step, decay, b1=0.9, b2=0.95, eps=1e-9, block=1 << 15):
        c1, c2 = 1 - b1 ** step, 1 - b2 ** step
        for a in range(self.lo, self.hi, block):
            b = min(a + block, self.hi)
            g = grads[a:b] * scale
            m, v, p = self.m[a - self.lo:b - self.lo], self.v[a - self.lo:b - self.lo], self.vec[a:b]
            m.mul_(b1).add_(g, alpha=1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            if a < self.n_decay:
                p[:self.n_decay - a].mul_(1 - lr * decay)
            p.addcdiv_(m, (v * (1 / c2)).sqrt_().add_(eps), value=-lr / c1)


def worker(rank, a, vec, grads, shared, barrier):
    torch.set_num_threads(1)
    start = time.time()
    s = Stream(a.work, a.seq, a.seed)                    # the same rows in every process; each takes its share
    tok = s.tok
    held = json.load(open(os.path.join(a.work, "docs.json"), encoding="utf-8"))
    model = Yuan(config(tok))
    flat = Flat(model, vec, grads[rank])
    flat.span(rank, a.procs)
    if rank == 0:
        log = open(os.path.join(a.work, "bench.txt" if a.bench else "log.txt"), "w")

    def say(*x):
        if rank == 0:
            line = f"[{time.time() - start:7.1f} s] " + " ".join(str(v) for v in x)
            print(line, flush=True)
            print(line, file=log, flush=True)

    say("parameters", len(vec), "arguments", {k: v for k, v in vars(a).items() if k != "work"})
    budget, best, total, step, seen = a.minutes * 60, 9e9, 0, 0, 0
    acc = [0.0, 0.0, 0]
    t_eval = time.time()
    # shared scalars: 0 progress, 1 evaluate now, 2..3 held-out losses, 8+r squared norms, 16+r loss, 24+r aux, 32+r tokens
    while True:
        if rank == 0:
            shared[0] = max(step / total if total else 0.0, (time.time() - start) / budget)
            shared[1] = float(shared[0] >= 1 or (time.time() - t_eval > a.every and total))
        barrier.wait()
        prog, last = float(shared[0]), float(shared[0]) >= 1
        if shared[1]:
            t0 = time.time()
            for i, k in enumerate(("held_en", "held_zh")):
                if i % a.procs == rank:
                    shared[2 + i] = held_loss(model, tok, held[k])[0]
            barrier.wait()
            if rank == 0:
                en, zh = float(shared[2]), float(shared[3])
                score = (en + zh) / 2
                say(f"step {step} tokens {seen} epoch {s.epoch} train {acc[0] / max(acc[2], 1):.4f} aux {acc[1] / max(acc[2], 1):.3f}",
                    f"held-out en {en:.4f} zh {zh:.4f} lr {lr:.2e} (evaluation {time.time() - t0:.1f} s)", "best" if score < best else "")
                acc = [0.0, 0.0, 0]
                if score < best:
                    best = score
                    torch.save(dict(model={k: v.clone() for k, v in model.state_dict().items()}, step=step, tokens=seen, en=en, zh=zh, epoch=s.epoch),
                               os.path.join(a.work, "best.pt"))
                t_eval = time.time()
        if last or (a.bench and step >= 40):
            break
        lr = a.lr * min(1.0, (step + 1) / a.warm) * (a.floor + (1 - a.floor) * 0.5 * (1 + math.cos(math.pi * min(prog, 1.0))))
        rows = torch.from_numpy(s.batch(a.rows * a.procs))[rank::a.procs]
        x, y = rows[:, :-1], rows[:, 1:].reshape(-1)
        keep = (y != tok.pad).nonzero()[:, 0]
        flat.grad.zero_()
        h, aux = model.hidden(x)
        loss = F.cross_entropy(model.lm_head(h.reshape(-1, h.shape[-1]).index_select(0, keep)), y[keep])
        (loss + a.aux * aux).backward()
        shared[16 + rank], shared[24 + rank], shared[32 + rank] = float(loss), float(aux), len(keep)
        barrier.wait()
        # mean gradient of my part, into process 0's buffer; squared norm
        g = grads[0]
        lo, hi = flat.lo, flat.hi
        for q in range(1, a.procs):
            g[lo:hi].add_(grads[q][lo:hi])
        shared[8 + rank] = float(torch.dot(g[lo:hi], g[lo:hi]))
        barrier.wait()
        norm = float(shared[8:8 + a.procs].sum()) ** 0.5 / a.procs
        step += 1
        flat.adamw(g, min(1.0, 1.0 / (norm + 1e-6)) / a.procs, lr, step, a.decay)
        seen += int(shared[32:32 + a.procs].sum())
        acc[0] += float(shared[16:16 + a.procs].mean())
        acc[1] += float(shared[24:24 + a.procs].mean())
        acc[2] += 1
        if step == 10:
            t_speed, s_speed = time.time(), seen
        if step == 60 or (a.bench and step in (20, 30, 40)):
            dt = (time.time() - t_speed) / (step - 10)
            total = step + int((budget - (time.time() - start)) * 0.985 / dt)
            say(f"{(seen - s_speed) / (time.time() - t_speed):.0f} tokens/s, {dt:.3f} s per step, steps {total}")
        if step % 50 == 0:
            say(f"step {step} loss {acc[0] / acc[2]:.4f} aux {acc[1] / acc[2]:.3f} norm {norm:.2f} lr {lr:.2e}")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--work", required=True)
    ap.add_argument("--minutes", type=float, default=45)
    ap.add_argument("--rows", type=int, default=8, help="per process")
    ap.add_argument("--procs", type=int, default=2)
    ap.add_argument("--seq", type=int, default=256)
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--aux", type=float, default=0.01)
    ap.add_argument("--decay", type=float, default=0.1)
    ap.add_argument("--warm", type=int, default=150)
    ap.add_argument("--floor", type=float, default=0.01)
    ap.add_argument("--every", type=float, default=150, help="seconds between evaluations")
    ap.add_argument("--seed", type=int, default=20241102)
    ap.add_argument("--bench", action="store_true")
    a = ap.parse_args()
    torch.set_num_threads(1)
    c = config(Tok(os.path.join(a.work, "tokenizer.model")))
    with open(os.path.join(a.work, "config.json"), "w") as f:
        json.dump(c, f, indent=1)
    model = Yuan(c).init(a.seed)
    n = sum(p.numel() for p in model.parameters())
    vec, grads = torch.zeros(n).share_memory_(), [torch.zeros(n).share_memory_() for _ in range(a.procs)]
    init = {k: v.clone() for k, v in model.state_dict().items()}
    Flat(model, vec, grads[0])
    with torch.no_grad():
        for k, v in model.state_dict().items():
            v.copy_(init[k])
    shared, barrier = torch.zeros(64, dtype=torch.float64).share_memory_(), mp.get_context("fork").Barrier(a.procs)
    ps = [mp.get_context("fork").Process(target=worker, args=(r, a, vec, grads, shared, barrier)) for r in range(a.procs)]
    for p in ps:
        p.start()
    for p in ps:
        p.join()


if __name__ == "__main__":
    main()
