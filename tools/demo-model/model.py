"""The mixture-of-experts decoder of MODEL.md in PyTorch, for training.

Whole sequences only (no cache); the experts' forward and backward passes are written by hand so that tokens are
sorted by expert once and each expert costs plain matrix products.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class RMSNorm(nn.Module):
    def __init__(self, n, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(n)), eps

    def forward(self, x):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


def rope_tables(kind, n, rot, base=10000.0):
    """cos, sin [n, rot/2] under one of the three conventions of MODEL.md"""
    bf = lambda t: t.to(torch.bfloat16).to(torch.float32)
    inv = 1.0 / (base ** (torch.arange(0, rot, 2, dtype=torch.float32) / rot))
    pos = torch.arange(n, dtype=torch.float32)
    if kind == "f32":
        ang = pos[:, None] * inv[None]
    elif kind == "mixed":
        ang = pos[:, None] * bf(inv)[None]
    elif kind == "hfbf16":
        ang = bf(bf(pos)[:, None] * bf(inv)[None])
        return bf(ang.cos()), bf(ang.sin())
    else:
        raise ValueError(kind)
    return ang.cos(), ang.sin()


def rotate(x, cos, sin):
    """x [B, T, n, hd]; rotate-half pairs inside the first 2*cos.shape[-1] entries"""
    h = cos.shape[-1]
    a, b, rest = x[..., :h], x[..., h:2 * h], x[..., 2 * h:]
    c, s = cos[:, None], sin[:, None]
    return torch.cat([a * c - b * s, b * c + a * s, rest], -1)


class LFGate(nn.Module):
    def __init__(self, h):
        super().__init__()
        self.conv1 = nn.Conv2d(h, h // 2, (2, 1))       # weight [out, in, 2, 1]: tap 0 previous, tap 1 current
        self.conv2 = nn.Conv2d(h // 2, h, (2, 1))
        self.output_layernorm = RMSNorm(h, 1e-6)

    @staticmethod
    def two_taps(conv, x):
        w = conv.weight[..., 0]                           # [out, in, 2]
        prev = F.pad(x, (0, 0, 1, 0))[:, :-1]             # zero before the first step
        return F.linear(torch.cat([prev, x], -1), torch.cat([w[:, :, 0], w[:, :, 1]], 1), conv.bias)

    def forward(self, a):
        o2 = self.two_taps(self.conv2, self.two_taps(self.conv1, a))
        return self.output_layernorm(o2 + a)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        h, p = c["hidden_size"], c["attention_projection_size"]
        self.n, self.hd = c["num_attention_heads"], p // c["num_attention_heads"]
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(h, p, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(p, h, bias=False)
        self.lf_gate = LFGate(h)

    def forward(self, a, cos, sin, mask):
        B, T, _ = a.shape
        v = self.v_proj(a).view(B, T, self.n, self.hd).transpose(1, 2)
        g = self.lf_gate(a)
        qk = torch.cat([self.q_proj(g), self.k_proj(g)], -1).view(B, T, self.n, 2 * self.hd)
        q = rotate(qk[..., :self.hd], cos, sin).transpose(1, 2)
        k = rotate(qk[..., self.hd:], cos, sin).transpose(1, 2)
        s = torch.matmul(q * (1.0 / math.sqrt(self.hd)), k.transpose(2, 3)) + mask
        o = torch.matmul(torch.softmax(s, -1), v)
        return self.o_proj(o.transpose(1, 2).reshape(B, T, -1))


class Experts(torch.autograd.Function):
    """y[t] = sum_k weight[t,k] * w2[e] (silu(gate) * up), [gate; up] = w1[e] x[t], e = ids[t,k]"""

    @staticmethod
    def forward(ctx, x, weight, ids, w1, w2):
        N, K = ids.shape
        E, f2, H = w1.shape
        f = f2 // 2
        order = ids.reshape(-1).argsort()
        tok = torch.div(order, K, rounding_mode="floor")
        counts = torch.bincount(ids.reshape(-1), minlength=E).tolist()
        xs = x.index_select(0, tok)
        u = x.new_empty(N * K, f2)
        o, spans = 0, []
        for e, c in enumerate(counts):
            if c:
                torch.mm(xs[o:o + c], w1[e].t(), out=u[o:o + c])
            spans.append((e, o, o + c))
            o += c
        gate, up = u[:, :f], u[:, f:]
        sig = torch.sigmoid(gate)
        act = gate * sig
        hmid = act * up
        ys = x.new_empty(N * K, H)
        for e, a, b in spans:
            if b > a:
                torch.mm(hmid[a:b], w2[e].t(), out=ys[a:b])
        ws = weight.reshape(-1).index_select(0, order)
        y = x.new_zeros(N, H).index_add_(0, tok, ys * ws[:, None])
        ctx.save_for_backward(xs, u, sig, hmid, ys, ws, order, tok, w1, w2)
        ctx.spans, ctx.shape = spans, (N, K)
        return y

    @staticmethod
    def backward(ctx, dy):
        xs, u, sig, hmid, ys, ws, order, tok, w1, w2 = ctx.saved_tensors
        N, K = ctx.shape
        E, f2, H = w1.shape
        f = f2 // 2
        d = dy.index_select(0, tok)
        dws = (d * ys).sum(1)
        d = d * ws[:, None]
        dw1, dw2 = torch.empty_like(w1), torch.empty_like(w2)
        dh = d.new_empty(N * K, f)
        for e, a, b in ctx.spans:
            if b > a:
                torch.mm(d[a:b], w2[e], out=dh[a:b])
                torch.mm(d[a:b].t(), hmid[a:b], out=dw2[e])
            else:
                dw1[e].zero_(), dw2[e].zero_()
        gate, up = u[:, :f], u[:, f:]
        act = gate * sig
        du = torch.cat([dh * up * (sig + act * (1 - sig)), dh * act], 1)
        dxs = torch.empty_like(xs)
        for e, a, b in ctx.spans:
            if b > a:
                torch.mm(du[a:b], w1[e], out=dxs[a:b])
                torch.mm(du[a:b].t(), xs[a:b], out=dw1[e])
        dx = dy.new_zeros(N, H).index_add_(0, tok, dxs)
        dweight = torch.empty_like(dws)
        dweight[order] = dws
        return dx, dweight.view(N, K), None, dw1, dw2


class MoE(nn.Module):
    def __init__(self, c):
        super().__init__()
        m, h = c["moe_config"], c["hidden_size"]
        self.E, self.k, f = m["moe_num_experts"], m["moe_top_k"], m["ffn_hidden_size"]
        self.query, self.key, self.value = (nn.Linear(h, self.E, bias=False) for _ in range(3))
        self.w1 = nn.Parameter(torch.empty(self.E, 2 * f, h))
        self.w2 = nn.Parameter(torch.empty(self.E, h, f))
        self.trace = None

    def forward(self, m):
        x = m.reshape(-1, m.shape[-1])
        q, k, v = self.query(x), self.key(x), self.value(x)
        a = torch.softmax(q[:, :, None] * k[:, None, :], -1)
        logits = torch.bmm(a, v[:, :, None])[:, :, 0]
        top, ids = logits.topk(self.k, -1)
        weight = torch.softmax(top, -1)
        if self.trace is not None:
            self.trace.append((logits.detach().clone(), ids.clone(), weight.detach().clone()))
        # load balance (Switch form): experts * sum_e (share of choices) * (mean probability)
        share = torch.bincount(ids.reshape(-1), minlength=self.E).float() / ids.numel()
        aux = self.E * (share * torch.softmax(logits, -1).mean(0)).sum()
        return Experts.apply(x, weight, ids, self.w1, self.w2).view_as(m), aux


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        h = c["hidden_size"]
        self.input_layernorm = RMSNorm(h, c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(h, c["rms_norm_eps"])
        self.mlp = MoE(c)

    def forward(self, x, cos, sin, mask):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        y, aux = self.mlp(self.post_attention_layernorm(x))
        return x + y, aux


class Yuan(nn.Module):
    def __init__(self, c, max_pos=None):
        super().__init__()
        self.c, self.rot = c, c["hidden_size"] // c["num_attention_heads"]
        self.max_pos = max_pos or c["max_position_embeddings"]
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.lm_head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)
        self.rope("f32")

    def rope(self, kind):
        self.cos, self.sin = rope_tables(kind, self.max_pos, self.rot)
        return self

    def init(self, seed):
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for n, p in self.named_parameters():
                if n.endswith("norm.weight"):
                    p.fill_(1.0)
                elif n.endswith("bias"):
                    p.zero_()
                else:
                    std = 0.02
                    if n.endswith("o_proj.weight") or n.endswith("mlp.w2"):
                        std = 0.02 / math.sqrt(2 * len(self.layers))
                    elif n.endswith("embed_tokens.weight"):
                        std = 0.1
                    elif ".mlp.query" in n or ".mlp.key" in n:
                        std = 1 / 16
                    elif ".mlp.value" in n:
                        std = 2 / 16
                    p.copy_(torch.randn(p.shape, generator=g) * std)
        return self

    def hidden(self, ids):
        T = ids.shape[1]
        mask = torch.full((T, T), -1e30).triu(1)
        x, aux = self.embed_tokens(ids), 0.0
        for l in self.layers:
            x, a = l(x, self.cos[:T], self.sin[:T], mask)
            aux = aux + a
        return self.norm(x), aux / len(self.layers)

    def forward(self, ids):
        return self.lm_head(self.hidden(ids)[0])

    # names of the published checkpoints -------------------------------------------------
    def export(self):
        out = {}
        for n, p in self.state_dict().items():
            full = n if n.startswith("lm_head") else "model." + n
            if ".mlp.query." in n or ".mlp.key." in n or ".mlp.value." in n:
                out[full.replace(".mlp.", ".mlp.gate.")] = p
            elif n.endswith(".mlp.w1") or n.endswith(".mlp.w2"):
                base, w = full.rsplit(".", 1)
                for e in range(p.shape[0]):
                    out[f"{base}.experts.{e}.{w}.weight"] = p[e]
            else:
                out[full] = p
        return out

    def import_(self, weights):
        """weights: {published name: float32 tensor}"""
        with torch.no_grad():
            for n, p in self.export().items():
                p.copy_(weights[n])          # the exported tensors are views of the parameters
        return self
