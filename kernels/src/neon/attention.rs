//! SwiGLU and attention on 128-bit vectors.
//!
//! Scores: the eight vectors of a query's 32 lanes stay in registers; two queries share a key that is widened once.
//! Mixing: four vectors of each of four queries' sums stay in registers while all positions pass.

use std::arch::aarch64::*;

use bytemuck::cast;
use half::f16;

use super::{dot_floats, to_f32, widen};
use crate::blocks::{BlockQ4_0, BlockQ8_0};
use crate::scalar::{
    EXP_LEAST, EXP_MOST, EXP_SERIES, LN_2_LOWER, LN_2_UPPER, WEIGHT_LEAST, all_scores, exp, sum_lanes, weight,
};

#[target_feature(enable = "neon")]
#[inline]
fn exp_4(x: float32x4_t) -> float32x4_t {
    // A NaN passes both.
    let x = vminq_f32(vmaxq_f32(x, vdupq_n_f32(EXP_LEAST)), vdupq_n_f32(EXP_MOST));
    let n = vrndnq_f32(vmulq_n_f32(x, std::f32::consts::LOG2_E));
    let r = vsubq_f32(vsubq_f32(x, vmulq_n_f32(n, LN_2_UPPER)), vmulq_n_f32(n, LN_2_LOWER));
    let mut series = vdupq_n_f32(EXP_SERIES[0]);
    for factor in &EXP_SERIES[1..] {
        series = vaddq_f32(vmulq_f32(series, r), vdupq_n_f32(*factor));
    }
    let power = vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)));
    vmulq_f32(series, vreinterpretq_f32_s32(power))
}

#[target_feature(enable = "neon")]
pub(super) fn swiglu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "neurons");
    let ((gate, gate_tail), (up, up_tail)) = (gate.as_chunks_mut::<4>(), up.as_chunks::<4>());
    for (gate, up) in gate.iter_mut().zip(up) {
        let x = cast(*gate);
        let silu = vdivq_f32(x, vaddq_f32(vdupq_n_f32(1.0), exp_4(vnegq_f32(x))));
        *gate = cast(vmulq_f32(silu, cast(*up)));
    }
    for (gate, up) in gate_tail.iter_mut().zip(up_tail) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

#[target_feature(enable = "neon")]
pub(super) fn exp_sum(x: &mut [f32], max: f32) -> f32 {
    let mut lanes = [vdupq_n_f32(0.0); 8];
    let (whole, tail) = x.as_chunks_mut::<32>();
    for x in whole {
        for (lane, x) in lanes.iter_mut().zip(x.as_chunks_mut::<4>().0) {
            let score = vsubq_f32(cast(*x), vdupq_n_f32(max));
            let nothing = vcltq_f32(score, vdupq_n_f32(WEIGHT_LEAST));
            let power: float32x4_t = cast(vbicq_u32(cast(exp_4(score)), nothing));
            *x = cast(power);
            *lane = vaddq_f32(*lane, power);
        }
    }
    let mut lanes: [f32; 32] = cast(lanes);
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *x = weight(*x - max);
        *lane += *x;
    }
    sum_lanes(lanes)
}

#[target_feature(enable = "neon")]
pub(super) fn scores_f32(q: &[f32], dim: usize, keys: &[f32], scores: &mut [f32]) {
    let pair = |key: &[f32], q: [&[f32]; 2]| dot_floats(key, q, |w: [f32; 8]| cast(w), |w| w);
    let one = |key: &[f32], q: [&[f32]; 1]| dot_floats(key, q, |w: [f32; 8]| cast(w), |w| w);
    all_scores(q, dim, keys, scores, pair, one);
}

#[target_feature(enable = "neon")]
pub(super) fn scores_f16(q: &[f32], dim: usize, keys: &[f16], scores: &mut [f32]) {
    let pair = |key: &[f16], q: [&[f32]; 2]| dot_floats(key, q, |w: [f16; 8]| widen(w), f16::to_f32);
    let one = |key: &[f16], q: [&[f32]; 1]| dot_floats(key, q, |w: [f16; 8]| widen(w), f16::to_f32);
    all_scores(q, dim, keys, scores, pair, one);
}

#[target_feature(enable = "neon")]
pub(super) fn mix_f32(p: &[f32], dim: usize, values: &[f32], y: &mut [f32]) {
    let value = |i: usize, k: usize| {
        let eight: &[f32; 8] = values[i * dim + k..].first_chunk().expect("eight values of a position");
        cast(*eight)
    };
    mix(p, dim, values.len() / dim, y, value, |i, k| values[i * dim + k]);
}

#[target_feature(enable = "neon")]
pub(super) fn mix_f16(p: &[f32], dim: usize, values: &[f16], y: &mut [f32]) {
    let value = |i: usize, k: usize| {
        let eight: &[f16; 8] = values[i * dim + k..].first_chunk().expect("eight values of a position");
        widen(*eight)
    };
    mix(p, dim, values.len() / dim, y, value, |i, k| values[i * dim + k].to_f32());
}

#[target_feature(enable = "neon")]
pub(super) fn mix_q8_0(p: &[f32], dim: usize, values: &[BlockQ8_0], y: &mut [f32]) {
    mix_blocks(p, dim, values, y, |block| (block.d, cast(block.qs)));
}

#[target_feature(enable = "neon")]
pub(super) fn mix_q4_0(p: &[f32], dim: usize, values: &[BlockQ4_0], y: &mut [f32]) {
    mix_blocks(p, dim, values, y, |block| {
        let bytes = cast(block.qs);
        let nibbles = [vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes)];
        (block.d, nibbles.map(|q| vsubq_s8(vreinterpretq_s8_u8(q), vdupq_n_s8(8))))
    });
}

/// Positions whose values pass while they are in the nearest cache.
const NEAR: usize = 16;

/// A query's 32 sums of one block's dims stay in registers while [`NEAR`] positions pass.
#[target_feature(enable = "neon")]
#[inline]
fn mix_blocks<B>(
    p: &[f32],
    dim: usize,
    values: &[B],
    y: &mut [f32],
    quants: impl Fn(&B) -> (f16, [int8x16_t; 2]),
) {
    assert_eq!(dim % 32, 0, "whole blocks");
    let blocks = dim / 32;
    let positions = values.len() / blocks;
    assert_eq!(y.len() / dim * positions, p.len(), "weights of positions");
    for (p, y) in p.chunks_exact(positions.max(1)).zip(y.chunks_exact_mut(dim)) {
        for (p, values) in p.chunks(NEAR).zip(values.chunks(NEAR * blocks)) {
            for (b, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let mut sums: [[float32x4_t; 4]; 2] = cast(*y);
                for (p, values) in p.iter().zip(values.chunks_exact(blocks)) {
                    let (d, q) = quants(&values[b]);
                    let weight = p * to_f32(d);
                    for i in 0..2 {
                        let q = floats(q[i]);
                        for v in 0..4 {
                            sums[i][v] = vaddq_f32(sums[i][v], vmulq_n_f32(q[v], weight));
                        }
                    }
                }
                *y = cast(sums);
            }
        }
    }
}

/// Sixteen bytes in f32.
#[target_feature(enable = "neon")]
#[inline]
fn floats(q: int8x16_t) -> [float32x4_t; 4] {
    let (low, high) = (vmovl_s8(vget_low_s8(q)), vmovl_high_s8(q));
    [
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
        vcvtq_f32_s32(vmovl_high_s16(low)),
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
        vcvtq_f32_s32(vmovl_high_s16(high)),
    ]
}

/// Queries by four and alone, dims by sixteen, by eight and alone.
#[target_feature(enable = "neon")]
#[inline]
fn mix(
    p: &[f32],
    dim: usize,
    positions: usize,
    y: &mut [f32],
    value: impl Fn(usize, usize) -> [float32x4_t; 2],
    one: impl Fn(usize, usize) -> f32,
) {
    let queries = y.len() / dim;
    assert_eq!(queries * positions, p.len(), "weights of positions");
    let (whole, by_16, by_8) = (queries / 4 * 4, dim / 16 * 16, dim / 8 * 8);
    for t in (0..whole).step_by(4) {
        (0..by_16).step_by(16).for_each(|k| mix_block::<4, 2>(p, dim, positions, y, t, k, &value));
        (by_16..by_8).step_by(8).for_each(|k| mix_block::<4, 1>(p, dim, positions, y, t, k, &value));
    }
    for t in whole..queries {
        let by_64 = dim / 64 * 64;
        (0..by_64).step_by(64).for_each(|k| mix_block::<1, 8>(p, dim, positions, y, t, k, &value));
        (by_64..by_8).step_by(8).for_each(|k| mix_block::<1, 1>(p, dim, positions, y, t, k, &value));
    }
    for t in 0..queries {
        for k in by_8..dim {
            for i in 0..positions {
                y[t * dim + k] += p[t * positions + i] * one(i, k);
            }
        }
    }
}

/// Dims `k..k + 8 V` of queries `t..t + T`.
#[target_feature(enable = "neon")]
#[inline]
fn mix_block<const T: usize, const V: usize>(
    p: &[f32],
    dim: usize,
    positions: usize,
    y: &mut [f32],
    t: usize,
    k: usize,
    value: &impl Fn(usize, usize) -> [float32x4_t; 2],
) {
    let at = |i: usize, v: usize| (t + i) * dim + k + 8 * v;
    let mut sums = [[[vdupq_n_f32(0.0); 2]; V]; T];
    for i in 0..T {
        for v in 0..V {
            sums[i][v] = cast::<[f32; 8], _>(*y[at(i, v)..].first_chunk().expect("eight sums"));
        }
    }
    for position in 0..positions {
        let mut values = [[vdupq_n_f32(0.0); 2]; V];
        for (v, values) in values.iter_mut().enumerate() {
            *values = value(position, k + 8 * v);
        }
        for i in 0..T {
            let p = p[(t + i) * positions + position];
            for v in 0..V {
                for h in 0..2 {
                    sums[i][v][h] = vaddq_f32(sums[i][v][h], vmulq_n_f32(values[v][h], p));
                }
            }
        }
    }
    for i in 0..T {
        for v in 0..V {
            *y[at(i, v)..].first_chunk_mut().expect("eight sums") = cast::<_, [f32; 8]>(sums[i][v]);
        }
    }
}
