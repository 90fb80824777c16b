#!/usr/bin/env python3
"""The forward pass of Yuan 2.0 and Yuan 3.0 in NumPy: the executable twin of MODEL.md.

The sections, names and steps are those of src/model/*.rs; read the two side by side. It is made to be read and to
check numbers, not for speed: all weights are widened when the checkpoint is opened.

Shapes: T tokens, V vocabulary, H hidden, n heads, hd head dim, P = n * hd, E experts, F neurons of an expert.
"""
import argparse
import json
import re
from pathlib import Path

import numpy as np

PRECISIONS = ("mixed", "f32", "hfbf16")


# ---- Checkpoint: a Hugging Face folder with one safetensors file or shards of them, floats or GPTQ.

class Config:
    """The facts of config.json under the names of src/config.rs; `experts` is 0 in a dense model. `changes` replace keys."""

    def __init__(self, folder, family, changes):
        c = json.loads((folder / "config.json").read_text())
        c = {**c.get("llm_config", c), **changes}
        moe = c.get("moe_config") or {}
        assert moe.get("gated_linear_unit", True), "experts without a gated linear unit are not described"
        self.vocab, self.hidden = c["vocab_size"], c["hidden_size"]
        self.layers, self.heads = c["num_hidden_layers"], c["num_attention_heads"]
        self.projection = c.get("attention_projection_size") or self.hidden
        self.head_dim = self.projection // self.heads
        self.ffn = moe.get("ffn_hidden_size") or c["intermediate_size"]
        self.experts, self.experts_used = moe.get("moe_num_experts", 0), moe.get("moe_top_k", 0)
        self.norm_topk = moe.get("norm_topk_prob", True)
        # The authors' converter writes attn_router or linear.
        self.router = "linear" if moe.get("router_type") == "linear" else "attention"
        self.rms_eps = c["rms_norm_eps"]
        self.rope_base = c.get("rotary_base") or c.get("rope_theta") or 10000.0
        # (factor, original context); the authors' code does not hand the base on to it.
        self.yarn = None
        if c.get("use_yarn"):
            self.yarn, self.rope_base = (c.get("yarn_scale_factor", 128), c["max_position_embeddings"]), 10000.0
        share = c.get("rotary_percent") or c.get("partial_rotary_factor")
        self.rope_dims = round(share * self.head_dim) if share else self.hidden // self.heads
        self.tied_embeddings = family == "yuan2" and c.get("tie_word_embeddings", False)


def read_safetensors(path):
    """{name: array} of one file: 8 bytes of header length, a JSON header, the data. bf16 becomes float32."""
    data = np.memmap(path, np.uint8, "r")
    end = 8 + int(data[:8].view("<u8")[0])
    types = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U8": "u1"}
    def tensor(t):
        first, last = t["data_offsets"]
        x = data[end + first:end + last].view(types[t["dtype"]]).reshape(t["shape"])
        return (x.astype("<u4") << 16).view("<f4") if t["dtype"] == "BF16" else x
    header = json.loads(data[8:end].tobytes())
    return {name: tensor(t) for name, t in header.items() if name != "__metadata__"}


def read_weights(folder):
    """All tensors of a checkpoint folder, quantized matrices as float32."""
    index = folder / "model.safetensors.index.json"
    files = [f.name for f in folder.glob("gptq_model-*.safetensors")]
    if not files:
        files = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else ["model.safetensors"]
    w = {name: x for f in sorted(files) for name, x in read_safetensors(folder / f).items()}
    quantized = [name[:-len(".qweight")] for name in w if name.endswith(".qweight")]
    settings = gptq_settings(folder) if quantized else None
    for name in quantized:
        parts = {part: w.pop(f"{name}.{part}", None) for part in ("qweight", "qzeros", "scales", "g_idx", "bias")}
        bias = parts.pop("bias")
        assert bias is None or not bias.any(), "matrices have no biases"
        w[f"{name}.weight"] = dequantize_gptq(**parts, **settings)
    return w


# ---- GPTQ: codes of 4 or 8 bits, packed into words, transposed; scales and zeros for each group of inputs.

def gptq_settings(folder):
    """Bits, inputs of a group (-1: all) and what is added to zeros as they are stored."""
    names = ("quantize_config.json", "quant_config.json")
    file = next((folder / name for name in names if (folder / name).exists()), None)
    q = json.loads((file or folder / "config.json").read_text())
    q = q if file else q["quantization_config"]
    first = lambda *keys: next((q[key] for key in keys if q.get(key) is not None), None)
    shift = {"gptq": 1, "gptq_v2": 0}[first("checkpoint_format", "format") or "gptq"]
    return {"bits": first("bits", "w_bit"), "group": first("group_size", "q_group_size"), "shift": shift}


def dequantize_gptq(qweight, qzeros, scales, g_idx, bits, group, shift):
    """scale * (code - zero), [out, in]: exact in float32, whatever the order."""
    field = np.arange(0, 32, bits, dtype=np.uint32)
    mask = np.uint32(2 ** bits - 1)
    codes = qweight.view(np.uint32)[:, None, :] >> field[None, :, None] & mask
    codes = codes.reshape(-1, qweight.shape[1])                                    # [in, out]
    zeros = qzeros.view(np.uint32)[:, :, None] >> field & mask
    zeros = zeros.reshape(len(qzeros), -1)                                         # [groups, out]
    zeros = zeros[:, :codes.shape[1]] + np.uint32(shift) & mask
    if g_idx is None:
        g_idx = np.arange(len(codes)) // (group if group > 0 else len(codes))
    steps = codes.astype(np.int32) - zeros.astype(np.int32)[g_idx]
    return np.ascontiguousarray((scales.astype(np.float32)[g_idx] * steps.astype(np.float32)).T)


# ---- Families

def unify(w):
    """The family of these tensors, and the tensors under the names of Yuan 2.0: those of Yuan 3.0 are fused and named otherwise."""
    if not any(name.endswith("get_query_key.weight") for name in w):
        return "yuan2", w
    parts = {
        "self_attn.get_query_key.weight": [f"self_attn.{x}_proj.weight" for x in "qk"],
        "mlp.router.query_key_value.weight": [f"mlp.gate.{x}.weight" for x in ("query", "key", "value")],
        "mlp.router.weight": ["mlp.gate.weight"],
    }
    out = {}
    for name, x in w.items():
        name = name.removeprefix("language_model.")
        if name.startswith(("vision_model.", "imagemlp")) or "rotary_pos_emb" in name:
            continue
        if (expert := re.fullmatch(r"(.*mlp\.experts)\.(w[12])\.(\d+)\.weight", name)):
            name = "{}.{}.{}.weight".format(expert[1], expert[3], expert[2])
        fused = next((fused for fused in parts if name.endswith(fused)), None)
        if fused is None:
            out[name] = x
            continue
        for part, rows in zip(parts[fused], np.split(x, len(parts[fused]))):
            out[name.removesuffix(fused) + part] = rows
    return "yuan3", out


# ---- Norm

def rms_norm(x, weight, eps):
    """x * rsqrt(mean(x^2) + eps) * weight, row by row."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps)) * weight


# ---- Rotary embedding

def bf(x):
    """Rounded to bf16, ties to even, and widened again."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


class Rope:
    """The inverse frequencies of one convention. float32 in the end: the conventions are about rounding."""

    def __init__(self, dims, base, precision, yarn=None):
        exponent = np.arange(0, dims, 2) / dims
        inverse = (float(base) ** -exponent / (stretch(dims, base, *yarn) if yarn else 1)).astype(np.float32)
        self.inverse = inverse if precision == "f32" else bf(inverse)
        self.precision = precision

    def at(self, positions):
        """cos and sin [T, dims / 2] of every angle at `positions`."""
        positions = np.asarray(positions, np.float32)[:, None]
        if self.precision == "hfbf16":
            angle = bf(bf(positions) * self.inverse)
            return bf(np.cos(angle)), bf(np.sin(angle))
        angle = positions * self.inverse
        return np.cos(angle), np.sin(angle)


def stretch(dims, base, factor, original):
    """By what YaRN divides the frequencies in Yuan 3.0: 1 for many turns in the original context, `factor` for none."""
    turns = lambda turns: dims * np.log(original / (turns * 2 * np.pi)) / (2 * np.log(base))
    low, high = max(np.floor(turns(32)), 0), min(np.ceil(turns(1)), dims - 1)
    keep = 1 - np.clip((np.arange(dims // 2) - low) / (high - low or 0.001), 0, 1)
    return (1 - keep) * factor + keep


def rotate(heads, cos, sin):
    """Rotates the leading dims of heads [T, n, hd]: entry j pairs with entry j + dims / 2; the others pass."""
    half = cos.shape[-1]
    a, b, rest = heads[..., :half], heads[..., half:2 * half], heads[..., 2 * half:]
    cos, sin = cos[:, None].astype(heads.dtype), sin[:, None].astype(heads.dtype)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)


# ---- Localized filter

class FilterState:
    """The last input of each convolution; zero (not the bias) before the first token."""

    def __init__(self, hidden, dtype):
        self.input = np.zeros(hidden, dtype)       # a[t-1]
        self.conv1 = np.zeros(hidden // 2, dtype)  # o1[t-1]


class Filter:
    """Two convolutions, H -> H/2 -> H, and a norm whose epsilon is always 1e-6."""

    def __init__(self, w, at):
        taps = lambda conv: np.moveaxis(w[f"{at}{conv}.weight"][..., 0], 2, 0)  # [2, out, in]: previous, current
        # Models of Yuan 3.0 may have no biases.
        bias = lambda conv: w.get(f"{at}{conv}.bias", np.zeros(1, w[f"{at}{conv}.weight"].dtype))
        self.conv1, self.bias1 = taps("conv1"), bias("conv1")
        self.conv2, self.bias2 = taps("conv2"), bias("conv2")
        self.norm = w[f"{at}output_layernorm.weight"]

    def apply(self, a, state):
        """g = norm(conv2(conv1(a)) + a) for the T rows of a; moves the state on by T steps."""
        o1, state.input = self.conv(self.conv1, self.bias1, a, state.input)
        o2, state.conv1 = self.conv(self.conv2, self.bias2, o1, state.conv1)
        return rms_norm(o2 + a, self.norm, 1e-6)

    @staticmethod
    def conv(taps, bias, x, last):
        """out[t] = W0 x[t-1] + W1 x[t] + bias, where x[-1] is `last`; also the last row of x."""
        previous = np.concatenate([last[None], x[:-1]])
        return previous @ taps[0].T + x @ taps[1].T + bias, x[-1]


# ---- Attention

class KvCache:
    """Rotated keys and values of all positions so far, [position, n, hd]."""

    def __init__(self, heads, head_dim, dtype):
        self.keys = np.zeros((0, heads, head_dim), dtype)
        self.values = self.keys

    def push(self, k, v):
        self.keys, self.values = np.concatenate([self.keys, k]), np.concatenate([self.values, v])

    def attend(self, q):
        """Causal attention of the last T positions: softmax(q.k / sqrt(hd)) v, heads side by side, [T, P]."""
        rows, visible = len(q), len(self.keys)
        scores = np.einsum("tnd,snd->nts", q, self.keys) / q.dtype.type(np.sqrt(q.shape[-1]))
        future = np.arange(visible) > np.arange(visible - rows, visible)[:, None]
        scores[:, future] = -np.inf
        return np.einsum("nts,snd->tnd", softmax(scores), self.values).reshape(rows, -1)


def join_and_split(q, k, heads, head_dim):
    """The joined row q | k is cut into slices of hd: head i's query is slice 2i, its key slice 2i + 1."""
    slices = np.concatenate([q, k], -1).reshape(len(q), heads, 2, head_dim)
    return slices[:, :, 0], slices[:, :, 1]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# ---- Router

class Router:
    """Projections [E, H]: three of the attention router, one of the linear router."""

    def __init__(self, w, at, config):
        names = {"attention": ("query.", "key.", "value."), "linear": ("",)}[config.router]
        self.projections = [w[f"{at}{name}weight"] for name in names]
        self.used, self.normalize = config.experts_used, config.norm_topk

    def route(self, m):
        """Logits [T, E] before the softmax over the experts; the chosen and their weights [T, used], best first."""
        logits = self.score(*(m @ projection.T for projection in self.projections))
        p = softmax(logits)
        chosen = np.argsort(-p, -1, "stable")[:, :self.used]
        weights = np.take_along_axis(p, chosen, -1)
        return logits, chosen, weights / weights.sum(-1, keepdims=True) if self.normalize else weights

    @staticmethod
    def score(q, k=None, v=None):
        """Of a linear router the one projection; else attention of each expert's query over the keys of all, without scale and mask."""
        return q if k is None else (softmax(q[:, :, None] * k[:, None, :]) * v[:, None, :]).sum(-1)


# ---- Feed forward

def silu(x):
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


class Mlp:
    """down (gate(m) * silu(up(m))): in the dense model the activation is on *up*."""

    def __init__(self, w, at):
        self.gate, self.up, self.down = (w[f"{at}{name}_proj.weight"] for name in ("gate", "up", "down"))

    def apply(self, m):
        return (m @ self.gate.T * silu(m @ self.up.T)) @ self.down.T


class Experts:
    """The experts of one layer."""

    def __init__(self, w, at, config):
        self.ffn = config.ffn
        self.experts = [(w[f"{at}{e}.w1.weight"], w[f"{at}{e}.w2.weight"]) for e in range(config.experts)]

    def apply(self, m, chosen, weights):
        """The sum of weight * expert(m), added up in the order of the experts' numbers."""
        y = np.zeros_like(m)
        for e in np.unique(chosen):
            tokens, place = np.nonzero(chosen == e)
            y[tokens] += weights[tokens, place, None] * self.expert(e, m[tokens])
        return y

    def expert(self, e, m):
        """w2 (silu(gate) * up); w1 has the gate's rows over those of up."""
        w1, w2 = self.experts[e]
        u = m @ w1.T
        return (silu(u[:, :self.ffn]) * u[:, self.ffn:]) @ w2.T


# ---- Forward

class State:
    """The memory of one sequence: a KV cache and the filter's last inputs for every layer."""

    def __init__(self, model):
        c, dtype = model.config, model.dtype
        self.layers = [(KvCache(c.heads, c.head_dim, dtype), FilterState(c.hidden, dtype)) for _ in range(c.layers)]
        self.position = 0


class Layer:
    """Weights of one decoder layer."""

    def __init__(self, w, at, config):
        self.input_norm = w[f"{at}input_layernorm.weight"]
        self.post_norm = w[f"{at}post_attention_layernorm.weight"]
        self.q, self.k, self.v, self.o = (w[f"{at}self_attn.{name}_proj.weight"] for name in "qkvo")
        self.filter = Filter(w, f"{at}self_attn.lf_gate.")
        self.router = Router(w, f"{at}mlp.gate.", config) if config.experts else None
        self.experts = Experts(w, f"{at}mlp.experts.", config) if config.experts else None
        self.mlp = None if config.experts else Mlp(w, f"{at}mlp.")


class Model:
    """A checkpoint, ready to run under one rotary convention."""

    def __init__(self, folder, rope=None, dtype=np.float32, changes={}, edit=lambda weights: weights):
        """`changes` replace keys of the config; `edit` gets the tensors as they are read, and returns those to use."""
        folder = Path(folder)
        self.family, w = unify(edit(read_weights(folder)))
        self.config, self.dtype = Config(folder, self.family, changes), np.dtype(dtype)
        w = {name: x.astype(dtype) for name, x in w.items()}
        self.embedding = w["model.embed_tokens.weight"]
        self.layers = [Layer(w, f"model.layers.{l}.", self.config) for l in range(self.config.layers)]
        self.final_norm = w["model.norm.weight"]
        self.head = self.embedding if self.config.tied_embeddings else w["lm_head.weight"]
        self.use_rope(rope or ("mixed" if self.family == "yuan2" else "f32"))

    def use_rope(self, precision):
        assert precision == "f32" or self.family == "yuan2", "Yuan 3.0 has one convention, f32"
        self.rope = Rope(self.config.rope_dims, self.config.rope_base, precision, self.config.yarn)

    def forward(self, tokens, state, probe=lambda stage, layer, rows: None):
        """Runs `tokens` behind those that `state` holds and returns their logits [T, V]."""
        config, start = self.config, state.position
        cos, sin = self.rope.at(range(start, start + len(tokens)))
        split = lambda rows: rows.reshape(len(tokens), config.heads, config.head_dim)

        x = self.embedding[tokens]
        probe("embedding", 0, x)
        for l, (layer, (kv, filter_state)) in enumerate(zip(self.layers, state.layers)):
            # Attention: v sees the normed input, q and k see its filtered form.
            a = rms_norm(x, layer.input_norm, config.rms_eps)
            v = a @ layer.v.T
            g = layer.filter.apply(a, filter_state)
            q, k = join_and_split(g @ layer.q.T, g @ layer.k.T, config.heads, config.head_dim)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            kv.push(k, split(v))
            o = kv.attend(q) @ layer.o.T
            x = x + o
            stages = {"input norm": a, "filter": g, "query": q, "key": k, "value": v, "attention": o}
            for stage, rows in stages.items():
                probe(stage, l, rows)

            # Feed forward: the experts that the router picks, or the one MLP of a dense model.
            m = rms_norm(x, layer.post_norm, config.rms_eps)
            if layer.mlp:
                y = layer.mlp.apply(m)
            else:
                logits, chosen, weights = layer.router.route(m)
                for stage, rows in {"router logits": logits, "chosen": chosen, "weights": weights}.items():
                    probe(stage, l, rows)
                y = layer.experts.apply(m, chosen, weights)
            x = x + y
            probe("feed forward", l, y)
            probe("hidden", l, x)
        state.position += len(tokens)

        last = rms_norm(x, self.final_norm, config.rms_eps)
        probe("final norm", 0, last)
        return last @ self.head.T

    def greedy(self, logits, state, n):
        """The n likeliest tokens behind `logits`, one after another, and the logits that each was taken from."""
        ids, rows = [], []
        for _ in range(n):
            if ids:
                logits = self.forward(ids[-1:], state)
            rows.append(logits[-1])
            ids.append(int(logits[-1].argmax()))
        return ids, np.array(rows)


def main():
    parser = argparse.ArgumentParser(description="Logits of a Yuan checkpoint, computed by the twin of MODEL.md.")
    parser.add_argument("checkpoint", type=Path, help="folder with config.json and safetensors files")
    parser.add_argument("--tokens", required=True, help="token ids, for example 1,2,3")
    parser.add_argument("--rope", choices=PRECISIONS, help="by default mixed for Yuan 2.0, f32 for Yuan 3.0")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--output", type=Path, help="write the logits [T, V] to this .npy file")
    parser.add_argument("--greedy", type=int, default=0, metavar="N", help="continue with the N likeliest tokens")
    args = parser.parse_args()

    model = Model(args.checkpoint, args.rope, args.dtype)
    tokens = [int(t) for t in args.tokens.split(",")]
    if not all(0 <= t < model.config.vocab for t in tokens):
        parser.error(f"token ids are 0 to {model.config.vocab - 1}")
    state = State(model)
    logits = model.forward(tokens, state)
    if args.output:
        np.save(args.output, logits)
    for t in np.argsort(-logits[-1], kind="stable")[:5]:
        print(f"{t}\t{logits[-1, t]:.5f}")
    if args.greedy:
        print(",".join(map(str, model.greedy(logits, state, args.greedy)[0])))


if __name__ == "__main__":
    main()
