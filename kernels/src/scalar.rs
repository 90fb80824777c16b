//! The definition of every operation: short, obvious, slow.
//!
//! Each float operation below is rounded once, in the order in which it is written; nothing is fused. The other
//! modules must give the same bits.

use half::{bf16, f16};

use crate::Kernels;
use crate::blocks::{BlockQ3K, BlockQ4_0, BlockQ4K, BlockQ6K, BlockQ8, BlockQ8_0, BlockQ8x8, QK};
use crate::panel::{PanelQ3K, PanelQ4_0, PanelQ4K, PanelQ6K, PanelQ8_0};

pub(crate) static TABLE: Kernels = Kernels {
    name: "scalar",
    ahead: 0,
    quantize,
    quantize_x8,
    dot_f32,
    dot_f16,
    dot_bf16,
    dot_q8_0,
    dot_q4_0,
    dot_q3_k,
    dot_q4_k,
    dot_q6_k,
    panels_q8_0: |panels, x, acc, _| panels_q8_0(panels, x, acc),
    panels_q4_0: |panels, x, acc, _| panels_q4_0(panels, x, acc),
    panels_q3_k: |panels, x, acc, _| panels_q3_k(panels, x, acc),
    panels_q4_k: |panels, x, acc, _| panels_q4_k(panels, x, acc),
    panels_q6_k: |panels, x, acc, _| panels_q6_k(panels, x, acc),
    swiglu,
    exps,
    exp_sum,
    scores_f32,
    scores_f16,
    mix_f32,
    mix_f16,
    mix_q8_0,
    mix_q4_0,
};

/// See [`Kernels::quantize`]. `q = x * (127 / amax)`, rounded half to even, and `d = amax / 127`.
fn quantize(x: &[f32], out: &mut [BlockQ8]) {
    assert_eq!(x.len().div_ceil(QK), out.len(), "blocks of activations");
    for (x, out) in x.chunks(QK).zip(out) {
        let (d, inverse) = scale_of(x.iter().map(|x| x.abs().to_bits()).max().unwrap_or(0));
        *out = BlockQ8 { d, ..bytemuck::Zeroable::zeroed() };
        if inverse == 0.0 {
            continue;
        }
        for (q, x) in out.qs.iter_mut().zip(x) {
            *q = (x * inverse).round_ties_even() as i8;
        }
        for (sum, q) in out.sums.iter_mut().zip(out.qs.chunks_exact(32)) {
            *sum = q.iter().map(|&q| i16::from(q)).sum();
        }
    }
}

/// See [`Kernels::quantize_x8`]: [`quantize`] for each 32.
fn quantize_x8(x: &[f32], out: &mut [BlockQ8x8]) {
    assert_eq!(x.len().div_ceil(QK), out.len(), "blocks of activations");
    for (x, out) in x.chunks(QK).zip(out) {
        *out = bytemuck::Zeroable::zeroed();
        for (s, x) in x.chunks(32).enumerate() {
            let (d, inverse) = scale_of(x.iter().map(|x| x.abs().to_bits()).max().unwrap_or(0));
            out.d[s] = d;
            if inverse == 0.0 {
                continue;
            }
            for (q, x) in out.qs[32 * s..].iter_mut().zip(x) {
                *q = (x * inverse).round_ties_even() as i8;
                out.starts[s] -= 128 * i32::from(*q);
            }
        }
    }
}

/// The scale of a block and its inverse, from the bits of its largest absolute value. (As integers the bits of absolute
/// values have the order of the values, with infinity and then NaN above all numbers.)
///
/// The inverse is 0 where all `q` are 0: a block of zeros, one so small (below 4e-37) that its inverse would
/// overflow, or one that is not finite, whose scale is NaN.
pub(crate) fn scale_of(amax_bits: u32) -> (f32, f32) {
    let amax = f32::from_bits(amax_bits);
    if !amax.is_finite() {
        return (f32::NAN, 0.0);
    }
    let inverse = 127.0 / amax;
    if inverse.is_finite() { (amax / 127.0, inverse) } else { (0.0, 0.0) }
}

fn dot_f32(w: &[f32], x: &[f32]) -> f32 {
    dot(w, x, |w| w)
}

fn dot_f16(w: &[f16], x: &[f32]) -> f32 {
    dot(w, x, f16::to_f32)
}

fn dot_bf16(w: &[bf16], x: &[f32]) -> f32 {
    dot(w, x, bf16::to_f32)
}

fn dot<W: Copy>(w: &[W], x: &[f32], to_f32: impl Fn(W) -> f32) -> f32 {
    assert_eq!(w.len(), x.len(), "columns");
    let mut lanes = [0.0; 32];
    add_to_lanes(&mut lanes, w, x, to_f32);
    sum_lanes(lanes)
}

/// The products of column `k` go to lane `k % 32`.
pub(crate) fn add_to_lanes<W: Copy>(lanes: &mut [f32; 32], w: &[W], x: &[f32], to_f32: impl Fn(W) -> f32) {
    for (w, x) in w.chunks(32).zip(x.chunks(32)) {
        for ((lane, &w), &x) in lanes.iter_mut().zip(w).zip(x) {
            *lane += to_f32(w) * x;
        }
    }
}

/// The upper half onto the lower half, until one lane is left.
pub(crate) fn sum_lanes(mut lanes: [f32; 32]) -> f32 {
    for half in [16, 8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
    }
    lanes[0]
}

fn dot_q8_0(w: &[BlockQ8_0], x: &[BlockQ8x8]) -> f32 {
    assert_eq!(w.len().div_ceil(8), x.len(), "blocks of activations");
    w.chunks(8).zip(x).fold(0.0, |acc, (w, x)| acc + part_q8_0(w, x))
}

fn dot_q4_0(w: &[BlockQ4_0], x: &[BlockQ8]) -> f32 {
    assert_eq!(w.len().div_ceil(8), x.len(), "blocks of activations");
    w.chunks(8).zip(x).fold(0.0, |acc, (w, x)| acc + part_q4_0(w, x))
}

/// What up to eight blocks of `Q8_0` add to a product.
pub(crate) fn part_q8_0(w: &[BlockQ8_0], x: &BlockQ8x8) -> f32 {
    let mut part = 0.0;
    for ((w, q), d) in w.iter().zip(x.qs.chunks_exact(32)).zip(x.d) {
        part += w.d.to_f32() * int_dot(&w.qs, q) as f32 * d;
    }
    part
}

/// What up to eight blocks of `Q4_0` add to a product.
pub(crate) fn part_q4_0(w: &[BlockQ4_0], x: &BlockQ8) -> f32 {
    let mut part = 0.0;
    for (w, x) in w.iter().zip(x.qs.chunks_exact(32)) {
        part += w.d.to_f32() * int_dot(&w.quants(), x) as f32;
    }
    part * x.d
}

fn dot_q3_k(w: &[BlockQ3K], x: &[BlockQ8]) -> f32 {
    assert_eq!(w.len(), x.len(), "blocks of activations");
    let mut acc = 0.0;
    for (w, x) in w.iter().zip(x) {
        acc += w.d.to_f32() * dot_sixteens(&w.quants(), w.unpack_scales(), x) as f32 * x.d;
    }
    acc
}

fn dot_q4_k(w: &[BlockQ4K], x: &[BlockQ8]) -> f32 {
    assert_eq!(w.len(), x.len(), "blocks of activations");
    let mut acc = 0.0;
    for (w, x) in w.iter().zip(x) {
        let (scales, mins) = w.unpack_scales();
        let q = w.quants();
        let (mut sum, mut min_sum) = (0, 0);
        for s in 0..8 {
            sum += i32::from(scales[s]) * int_dot(&q[32 * s..][..32], &x.qs[32 * s..][..32]);
            min_sum += i32::from(mins[s]) * i32::from(x.sums[s]);
        }
        acc += (w.d.to_f32() * sum as f32 - w.dmin.to_f32() * min_sum as f32) * x.d;
    }
    acc
}

fn dot_q6_k(w: &[BlockQ6K], x: &[BlockQ8]) -> f32 {
    assert_eq!(w.len(), x.len(), "blocks of activations");
    let mut acc = 0.0;
    for (w, x) in w.iter().zip(x) {
        acc += w.d.to_f32() * dot_sixteens(&w.quants(), w.scales, x) as f32 * x.d;
    }
    acc
}

/// The integer sum of weights that have a scale for each sixteen.
fn dot_sixteens(q: &[i8; QK], scales: [i8; 16], x: &BlockQ8) -> i32 {
    let sixteens = q.chunks_exact(16).zip(x.qs.chunks_exact(16)).zip(scales);
    sixteens.map(|((q, x), scale)| i32::from(scale) * int_dot(q, x)).sum()
}

fn int_dot(w: &[i8], x: &[i8]) -> i32 {
    w.iter().zip(x).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum()
}

fn panels_q8_0(panels: &[PanelQ8_0], x: &[BlockQ8x8], acc: &mut [[f32; 16]]) {
    for (x, acc) in rows(x, panels.len(), acc) {
        for (panel, x) in panels.iter().zip(x) {
            let mut part = [0.0; 16];
            for s in 0..8 {
                for (r, part) in part.iter_mut().enumerate() {
                    let weight = |k: usize| i32::from(panel.qs[512 * s + 64 * (k / 4) + 4 * r + k % 4]);
                    let sum: i32 = (0..32).map(|k| weight(k) * i32::from(x.qs[32 * s + k])).sum();
                    *part += panel.d[s][r].to_f32() * sum as f32 * x.d[s];
                }
            }
            for r in 0..16 {
                acc[r] += part[r];
            }
        }
    }
}

fn panels_q4_0(panels: &[PanelQ4_0], x: &[BlockQ8], acc: &mut [[f32; 16]]) {
    for (x, acc) in rows(x, panels.len(), acc) {
        for (panel, x) in panels.iter().zip(x) {
            let mut part = [0.0; 16];
            for s in 0..8 {
                let sums = nibble_dots(&panel.qs, x, s);
                for r in 0..16 {
                    part[r] += panel.d[s][r].to_f32() * (sums[r] - 8 * i32::from(x.sums[s])) as f32;
                }
            }
            for r in 0..16 {
                acc[r] += part[r] * x.d;
            }
        }
    }
}

fn panels_q3_k(panels: &[PanelQ3K], x: &[BlockQ8], acc: &mut [[f32; 16]]) {
    for (x, acc) in rows(x, panels.len(), acc) {
        for (panel, x) in panels.iter().zip(x) {
            for (r, acc) in acc.iter_mut().enumerate() {
                let sum = dot_sixteens(&panel.quants(r), panel.scales_of(r), x);
                *acc += panel.d[r].to_f32() * sum as f32 * x.d;
            }
        }
    }
}

fn panels_q4_k(panels: &[PanelQ4K], x: &[BlockQ8], acc: &mut [[f32; 16]]) {
    for (x, acc) in rows(x, panels.len(), acc) {
        for (panel, x) in panels.iter().zip(x) {
            let sub_blocks: [_; 8] = std::array::from_fn(|s| nibble_dots(&panel.qs, x, s));
            for r in 0..16 {
                let (scales, mins) = panel.scales_of(r);
                let (mut sum, mut min_sum) = (0, 0);
                for s in 0..8 {
                    sum += i32::from(scales[s]) * sub_blocks[s][r];
                    min_sum += i32::from(mins[s]) * i32::from(x.sums[s]);
                }
                acc[r] += (panel.d[r].to_f32() * sum as f32 - panel.dmin[r].to_f32() * min_sum as f32) * x.d;
            }
        }
    }
}

fn panels_q6_k(panels: &[PanelQ6K], x: &[BlockQ8], acc: &mut [[f32; 16]]) {
    for (x, acc) in rows(x, panels.len(), acc) {
        for (panel, x) in panels.iter().zip(x) {
            for (r, acc) in acc.iter_mut().enumerate() {
                let sum = dot_sixteens(&panel.quants(r), panel.scales.map(|s| s[r]), x);
                *acc += panel.d[r].to_f32() * sum as f32 * x.d;
            }
        }
    }
}

/// Rows of `width` blocks of activations, each with its sums.
fn rows<'a, X>(
    x: &'a [X],
    width: usize,
    acc: &'a mut [[f32; 16]],
) -> impl Iterator<Item = (&'a [X], &'a mut [f32; 16])> {
    assert_eq!(x.len(), width * acc.len(), "blocks of activations");
    x.chunks_exact(width.max(1)).zip(acc)
}

/// The sixteen rows' integer products of sub-block `s`.
fn nibble_dots(qs: &[u8; 2048], x: &BlockQ8, s: usize) -> [i32; 16] {
    let mut sums = [0; 16];
    for (g, line) in qs[256 * s..][..256].chunks_exact(64).enumerate() {
        for (r, word) in line.chunks_exact(4).enumerate() {
            for (i, byte) in word.iter().enumerate() {
                let k = 32 * s + 4 * g + i;
                sums[r] += i32::from(byte & 15) * i32::from(x.qs[k]);
                sums[r] += i32::from(byte >> 4) * i32::from(x.qs[k + 16]);
            }
        }
    }
    sums
}

/// `e^x` with `x` held within -87 and 88: `2^n e^r` with `n` the nearest whole number of `x / ln 2`, and `e^r` by its Taylor
/// series to the 7th power, whose error at `ln 2 / 2` is 5e-9.
pub fn exp(x: f32) -> f32 {
    let x = if x.is_nan() { x } else { x.clamp(EXP_LEAST, EXP_MOST) };
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = (x - n * LN_2_UPPER) - n * LN_2_LOWER;
    let series = EXP_SERIES.into_iter().fold(0.0, |sum, factor| sum * r + factor);
    series * f32::from_bits(((n as i32 + 127) << 23) as u32)
}
pub(crate) const EXP_LEAST: f32 = -87.0;
pub(crate) const EXP_MOST: f32 = 88.0;
/// The upper 12 bits of ln 2, so that multiples of it are exact, and the rest.
pub(crate) const LN_2_UPPER: f32 = 0.693_359_4;
pub(crate) const LN_2_LOWER: f32 = -2.121_944_4e-4;
/// 1 / 7!, 1 / 6!, …, 1.
pub(crate) const EXP_SERIES: [f32; 8] =
    [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];

/// `e^x`, or zero where it is nothing beside the largest score's 1: products with it would be subnormal, which some machines
/// take twenty times as long for.
pub(crate) fn weight(x: f32) -> f32 {
    if x < WEIGHT_LEAST { 0.0 } else { exp(x) }
}
pub(crate) const WEIGHT_LEAST: f32 = -60.0;

fn swiglu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "neurons");
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

fn exps(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = exp(*x));
}

fn exp_sum(x: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0.0; 32];
    for x in x.chunks_mut(32) {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *x = weight(*x - max);
            *lane += *x;
        }
    }
    sum_lanes(lanes)
}

fn scores_f32(q: &[f32], dim: usize, keys: &[f32], scores: &mut [f32]) {
    each_score(q, dim, keys, scores, dot_f32);
}

fn scores_f16(q: &[f32], dim: usize, keys: &[f16], scores: &mut [f32]) {
    each_score(q, dim, keys, scores, dot_f16);
}

/// `dot` of every key with every query.
pub(crate) fn each_score<K>(
    q: &[f32],
    dim: usize,
    keys: &[K],
    scores: &mut [f32],
    dot: impl Fn(&[K], &[f32]) -> f32,
) {
    let positions = keys.len() / dim;
    assert_eq!(q.len() / dim * positions, scores.len(), "scores");
    for (q, scores) in q.chunks_exact(dim).zip(scores.chunks_exact_mut(positions.max(1))) {
        for (key, score) in keys.chunks_exact(dim).zip(scores) {
            *score = dot(key, q);
        }
    }
}

/// [`each_score`] for vectors, which take queries in pairs; what is left goes alone.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline]
pub(crate) fn all_scores<K>(
    q: &[f32],
    dim: usize,
    keys: &[K],
    scores: &mut [f32],
    pair: impl Fn(&[K], [&[f32]; 2]) -> [f32; 2],
    one: impl Fn(&[K], [&[f32]; 1]) -> [f32; 1],
) {
    let positions = keys.len() / dim;
    assert_eq!(q.len() / dim * positions, scores.len(), "scores");
    let paired = q.len() / dim / 2 * 2;
    for t in (0..paired).step_by(2) {
        let q = [&q[t * dim..][..dim], &q[(t + 1) * dim..][..dim]];
        let (first, second) = scores[t * positions..][..2 * positions].split_at_mut(positions);
        for ((key, first), second) in keys.chunks_exact(dim).zip(first).zip(second) {
            [*first, *second] = pair(key, q);
        }
    }
    each_score(&q[paired * dim..], dim, keys, &mut scores[paired * positions..], |key, q| one(key, [q])[0]);
}

fn mix_f32(p: &[f32], dim: usize, values: &[f32], y: &mut [f32]) {
    mix(p, dim, values.len() / dim, y, |i, k| values[i * dim + k]);
}

fn mix_f16(p: &[f32], dim: usize, values: &[f16], y: &mut [f32]) {
    mix(p, dim, values.len() / dim, y, |i, k| values[i * dim + k].to_f32());
}

pub(crate) fn mix_q8_0(p: &[f32], dim: usize, values: &[BlockQ8_0], y: &mut [f32]) {
    mix_blocks(p, dim, values, y, |block| (block.d, block.qs));
}

pub(crate) fn mix_q4_0(p: &[f32], dim: usize, values: &[BlockQ4_0], y: &mut [f32]) {
    mix_blocks(p, dim, values, y, |block| (block.d, block.quants()));
}

/// [`mix`] for blocks: a position's weight times the block's scale is one factor.
fn mix_blocks<B>(p: &[f32], dim: usize, values: &[B], y: &mut [f32], quants: impl Fn(&B) -> (f16, [i8; 32])) {
    assert_eq!(dim % 32, 0, "whole blocks");
    let blocks = dim / 32;
    let positions = values.len() / blocks;
    assert_eq!(y.len() / dim * positions, p.len(), "weights of positions");
    for (p, y) in p.chunks_exact(positions.max(1)).zip(y.chunks_exact_mut(dim)) {
        for (p, values) in p.iter().zip(values.chunks_exact(blocks)) {
            for (block, y) in values.iter().zip(y.chunks_exact_mut(32)) {
                let (d, qs) = quants(block);
                let weight = p * d.to_f32();
                y.iter_mut().zip(qs).for_each(|(y, q)| *y += weight * f32::from(q));
            }
        }
    }
}

/// Adds the values of all positions, each times its weight, position after position.
fn mix(p: &[f32], dim: usize, positions: usize, y: &mut [f32], value: impl Fn(usize, usize) -> f32) {
    assert_eq!(y.len() / dim * positions, p.len(), "weights of positions");
    for (p, y) in p.chunks_exact(positions.max(1)).zip(y.chunks_exact_mut(dim)) {
        for (i, &p) in p.iter().enumerate() {
            for (k, y) in y.iter_mut().enumerate() {
                *y += p * value(i, k);
            }
        }
    }
}
