"""A random-weight GGUF file with the matrices of Yuan2.0-M32 as a graph that llama.cpp runs: that of Mixtral (architecture
`llama` with experts). There is no localized filter in it, and the router is linear. Nothing but NumPy is needed.

usage: mkpeer.py OUT [--layers N] [--experts f16|q4_k|q4_0|q8_0] [--trunk f16|q4_k|q4_0|q8_0]"""

import argparse
import struct
from pathlib import Path

import numpy as np

HIDDEN, PROJECTION, HEADS = 2048, 4096, 16
EXPERTS, USED, FFN = 32, 2, 8192
VOCAB, CONTEXT = 135_040, 4096

# The number of the type in GGUF, and the weights and bytes of a block.
TYPES = {"f32": (0, 1, 4), "f16": (1, 1, 2), "q4_0": (2, 32, 18), "q8_0": (8, 32, 34), "q4_k": (12, 256, 144)}
FILE_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 7, "q4_k": 15}
ALIGNMENT = 32
# Blocks that are made; a tensor is made of them over and over. A prime, so that no two experts are the same.
POOL = 65_521


def tensors(layers: int, experts: str, trunk: str):
    """Every tensor as (name, dims with the innermost first, type)."""
    head = HIDDEN, VOCAB
    yield "token_embd.weight", head, trunk
    yield "output_norm.weight", (HIDDEN,), "f32"
    yield "output.weight", head, trunk
    for layer in range(layers):
        b = f"blk.{layer}."
        yield b + "attn_norm.weight", (HIDDEN,), "f32"
        for projection in "qkv":
            yield b + f"attn_{projection}.weight", (HIDDEN, PROJECTION), trunk
        yield b + "attn_output.weight", (PROJECTION, HIDDEN), trunk
        yield b + "ffn_norm.weight", (HIDDEN,), "f32"
        yield b + "ffn_gate_inp.weight", (HIDDEN, EXPERTS), "f32"
        yield b + "ffn_gate_exps.weight", (HIDDEN, FFN, EXPERTS), experts
        yield b + "ffn_up_exps.weight", (HIDDEN, FFN, EXPERTS), experts
        yield b + "ffn_down_exps.weight", (FFN, HIDDEN, EXPERTS), experts


def metadata(layers: int, experts: str) -> dict[str, object]:
    return {
        "general.architecture": "llama",
        "general.name": "random weights, the matrices of Yuan2.0-M32",
        "general.file_type": FILE_TYPES[experts],
        "llama.vocab_size": VOCAB,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": HIDDEN,
        "llama.block_count": layers,
        "llama.feed_forward_length": FFN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": HEADS,
        "llama.attention.key_length": PROJECTION // HEADS,
        "llama.attention.value_length": PROJECTION // HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.rope.dimension_count": PROJECTION // HEADS,
        "llama.rope.freq_base": 10_000.0,
        "llama.expert_count": EXPERTS,
        "llama.expert_used_count": USED,
        "tokenizer.ggml.model": "no_vocab",
    }


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def value(v: object) -> bytes:
    """A value behind the number of its type: u32 (4), f32 (6) or a string (8)."""
    match v:
        case str():
            return struct.pack("<I", 8) + string(v)
        case float():
            return struct.pack("<If", 6, v)
        case _:
            return struct.pack("<II", 4, v)


def size(dims: tuple[int, ...], dtype: str) -> int:
    _, weights, length = TYPES[dtype]
    return int(np.prod(dims, dtype=np.int64)) // weights * length


def bytes_a_token(layers: int, experts: str, trunk: str) -> int:
    """What one token reads of the file: its matrices, of the experts those that it uses; of the embedding a row, which counts as nothing."""
    matrices = ((name, size(dims, dtype)) for name, dims, dtype in tensors(layers, experts, trunk) if len(dims) > 1)
    used = (length * USED // EXPERTS if name.endswith("_exps.weight") else length for name, length in matrices if name != "token_embd.weight")
    return sum(used)


def padded(n: int) -> int:
    return -n % ALIGNMENT


def header(layers: int, experts: str, trunk: str) -> bytes:
    listed, values = list(tensors(layers, experts, trunk)), metadata(layers, experts)
    out = [struct.pack("<4sIQQ", b"GGUF", 3, len(listed), len(values))]
    out += [string(key) + value(v) for key, v in values.items()]
    offset = 0
    for name, dims, dtype in listed:
        kind = TYPES[dtype][0]
        out.append(string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset))
        offset += size(dims, dtype) + padded(size(dims, dtype))
    data = b"".join(out)
    return data + bytes(padded(len(data)))


def pool(dtype: str, rng: np.random.Generator, deviation: float = 0.02) -> bytes:
    """Random blocks whose weights have the mean 0 and about this deviation."""
    q = lambda *n: rng.integers(0, 256, (POOL, *n), dtype=np.uint8)
    scale = lambda d: np.broadcast_to(np.asarray(d, "<f2"), POOL).copy().view(np.uint8).reshape(POOL, 2)
    if dtype == "q4_k":
        # Scales of 32..63 with mins that equal them, and nibbles less 7.5: the scale of the mins is 7.5 times as large.
        d = np.float16(deviation / (4.6 * 48))
        low = q(4) | 0x20
        # The upper two bits of the last four lie above the first four; their low nibbles stand alone.
        low = (low & 0x3F) | 0x80 | (q(4) & 0x40)
        nibble = q(4) & 15
        return np.concatenate([scale(d), scale(7.5 * d), low, low, nibble | nibble << 4, q(128)], axis=1).tobytes()
    if dtype == "f16":
        return (rng.standard_normal(256 * POOL, "<f4") * deviation).astype("<f2").tobytes()
    # Quants are centred half a step below 0: scales of both signs.
    d = deviation / {"q4_0": 4.6, "q8_0": 74.0}[dtype] * rng.choice([-1, 1], POOL)
    return np.concatenate([scale(d), q({"q4_0": 16, "q8_0": 32}[dtype])], axis=1).tobytes()


def write(out: Path, layers: int, experts: str, trunk: str) -> None:
    """Writes beside the place and renames."""
    rng = np.random.default_rng(1)
    pools = {dtype: memoryview(pool(dtype, rng)) for dtype in sorted({experts, trunk})}
    part = out.with_name(out.name + ".partial")
    with open(part, "wb") as file:
        file.write(header(layers, experts, trunk))
        for name, dims, dtype in tensors(layers, experts, trunk):
            left = size(dims, dtype)
            if dtype == "f32":
                ones = np.ones(dims[0], "<f4") if len(dims) == 1 else rng.standard_normal(dims, "<f4") * 0.02
                file.write(np.asarray(ones, "<f4").tobytes())
            else:
                while left > 0:
                    left -= file.write(pools[dtype][:left])
            file.write(bytes(padded(size(dims, dtype))))
    part.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--experts", choices=FILE_TYPES, default="q4_k")
    parser.add_argument("--trunk", choices=FILE_TYPES, default="q4_k")
    args = parser.parse_args()
    write(args.out, args.layers, args.experts, args.trunk)


if __name__ == "__main__":
    main()
