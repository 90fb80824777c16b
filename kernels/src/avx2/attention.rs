//! SwiGLU and attention on 256-bit vectors.
//!
//! Scores: the four vectors of a query's 32 lanes stay in registers; two queries share a key that is widened once.
//! Mixing: two vectors of each of four queries' sums stay in registers while all positions pass.

use std::arch::x86_64::*;

use bytemuck::cast;
use half::f16;

use crate::blocks::{BlockQ4_0, BlockQ8_0};
use crate::scalar::{
    EXP_LEAST, EXP_MOST, EXP_SERIES, LN_2_LOWER, LN_2_UPPER, add_to_lanes, each_score, exp, sum_lanes,
};

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn exp_8(x: __m256) -> __m256 {
    // NaN is the second operand of each: it passes.
    let x = _mm256_min_ps(_mm256_set1_ps(EXP_MOST), _mm256_max_ps(_mm256_set1_ps(EXP_LEAST), x));
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
        x,
        _mm256_set1_ps(std::f32::consts::LOG2_E),
    ));
    let r = _mm256_sub_ps(
        _mm256_sub_ps(x, _mm256_mul_ps(n, _mm256_set1_ps(LN_2_UPPER))),
        _mm256_mul_ps(n, _mm256_set1_ps(LN_2_LOWER)),
    );
    let mut series = _mm256_set1_ps(EXP_SERIES[0]);
    for factor in &EXP_SERIES[1..] {
        series = _mm256_add_ps(_mm256_mul_ps(series, r), _mm256_set1_ps(*factor));
    }
    let power = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
    _mm256_mul_ps(series, _mm256_castsi256_ps(power))
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn swiglu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "neurons");
    let one = _mm256_set1_ps(1.0);
    let ((gate, gate_tail), (up, up_tail)) = (gate.as_chunks_mut::<8>(), up.as_chunks::<8>());
    for (gate, up) in gate.iter_mut().zip(up) {
        let x: __m256 = cast(*gate);
        let minus = _mm256_xor_ps(x, _mm256_set1_ps(-0.0));
        let silu = _mm256_div_ps(x, _mm256_add_ps(one, exp_8(minus)));
        *gate = cast(_mm256_mul_ps(silu, cast(*up)));
    }
    for (gate, up) in gate_tail.iter_mut().zip(up_tail) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn exp_sum(x: &mut [f32], max: f32) -> f32 {
    let mut lanes = [_mm256_setzero_ps(); 4];
    let (whole, tail) = x.as_chunks_mut::<32>();
    for x in whole {
        for (lane, x) in lanes.iter_mut().zip(x.as_chunks_mut::<8>().0) {
            let power = exp_8(_mm256_sub_ps(cast(*x), _mm256_set1_ps(max)));
            *x = cast(power);
            *lane = _mm256_add_ps(*lane, power);
        }
    }
    let mut lanes: [f32; 32] = cast(lanes);
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *x = exp(*x - max);
        *lane += *x;
    }
    sum_lanes(lanes)
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn scores_f32(q: &[f32], dim: usize, keys: &[f32], scores: &mut [f32]) {
    let pair = |key: &[f32], q: [&[f32]; 2]| dots(key, q, |w: [f32; 8]| cast(w), |w| w);
    let one = |key: &[f32], q: [&[f32]; 1]| dots(key, q, |w: [f32; 8]| cast(w), |w| w);
    all_scores(q, dim, keys, scores, pair, one);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn scores_f16(q: &[f32], dim: usize, keys: &[f16], scores: &mut [f32]) {
    let pair =
        |key: &[f16], q: [&[f32]; 2]| dots(key, q, |w: [f16; 8]| _mm256_cvtph_ps(cast(w)), f16::to_f32);
    let one = |key: &[f16], q: [&[f32]; 1]| dots(key, q, |w: [f16; 8]| _mm256_cvtph_ps(cast(w)), f16::to_f32);
    all_scores(q, dim, keys, scores, pair, one);
}

/// Queries in pairs, and what is left alone.
#[inline]
fn all_scores<K>(
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

/// The dot products of one key with `T` queries, each in the lanes of a single one.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn dots<K: Copy, const T: usize>(
    key: &[K],
    q: [&[f32]; T],
    eight: impl Fn([K; 8]) -> __m256,
    one: impl Fn(K) -> f32,
) -> [f32; T] {
    let (whole, tail) = key.as_chunks::<32>();
    let mut lanes = [[_mm256_setzero_ps(); 4]; T];
    for (i, key) in whole.iter().enumerate() {
        for (v, key) in key.as_chunks::<8>().0.iter().enumerate() {
            let key = eight(*key);
            for t in 0..T {
                let q: [f32; 8] = *q[t][32 * i + 8 * v..].first_chunk().expect("a query is as long as a key");
                lanes[t][v] = _mm256_add_ps(lanes[t][v], _mm256_mul_ps(key, cast(q)));
            }
        }
    }
    std::array::from_fn(|t| {
        let mut lanes = cast(lanes[t]);
        add_to_lanes(&mut lanes, tail, &q[t][32 * whole.len()..], &one);
        sum_lanes(lanes)
    })
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn mix_f32(p: &[f32], dim: usize, values: &[f32], y: &mut [f32]) {
    let value = |i: usize, k: usize| {
        let eight: &[f32; 8] = values[i * dim + k..].first_chunk().expect("eight values of a position");
        cast(*eight)
    };
    mix(p, dim, values.len() / dim, y, value, |i, k| values[i * dim + k]);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn mix_f16(p: &[f32], dim: usize, values: &[f16], y: &mut [f32]) {
    let value = |i: usize, k: usize| {
        let eight: &[f16; 8] = values[i * dim + k..].first_chunk().expect("eight values of a position");
        _mm256_cvtph_ps(cast(*eight))
    };
    mix(p, dim, values.len() / dim, y, value, |i, k| values[i * dim + k].to_f32());
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn mix_q8_0(p: &[f32], dim: usize, values: &[BlockQ8_0], y: &mut [f32]) {
    let blocks = dim / 32;
    let value = |i: usize, k: usize| {
        let block = &values[i * blocks + k / 32];
        let eight: &[i8; 8] = block.qs[k % 32..].first_chunk().expect("eight of a block");
        let q = _mm256_cvtepi8_epi32(_mm_cvtsi64_si128(cast(*eight)));
        _mm256_mul_ps(_mm256_set1_ps(block.d.to_f32()), _mm256_cvtepi32_ps(q))
    };
    mix(p, dim, values.len() / blocks, y, value, |_, _| 0.0);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn mix_q4_0(p: &[f32], dim: usize, values: &[BlockQ4_0], y: &mut [f32]) {
    let blocks = dim / 32;
    let value = |i: usize, k: usize| {
        let block = &values[i * blocks + k / 32];
        let eight: &[u8; 8] = block.qs[k % 16..].first_chunk().expect("eight of a block");
        let bytes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(cast(*eight)));
        let shift = if k % 32 < 16 { 0 } else { 4 };
        let nibbles =
            _mm256_and_si256(_mm256_srl_epi32(bytes, _mm_cvtsi32_si128(shift)), _mm256_set1_epi32(15));
        let q = _mm256_cvtepi32_ps(_mm256_sub_epi32(nibbles, _mm256_set1_epi32(8)));
        _mm256_mul_ps(_mm256_set1_ps(block.d.to_f32()), q)
    };
    mix(p, dim, values.len() / blocks, y, value, |_, _| 0.0);
}

/// Queries by four and alone, dims by sixteen, by eight and alone.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn mix(
    p: &[f32],
    dim: usize,
    positions: usize,
    y: &mut [f32],
    value: impl Fn(usize, usize) -> __m256,
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
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn mix_block<const T: usize, const V: usize>(
    p: &[f32],
    dim: usize,
    positions: usize,
    y: &mut [f32],
    t: usize,
    k: usize,
    value: &impl Fn(usize, usize) -> __m256,
) {
    let at = |i: usize, v: usize| (t + i) * dim + k + 8 * v;
    let mut sums = [[_mm256_setzero_ps(); V]; T];
    for i in 0..T {
        for v in 0..V {
            sums[i][v] = cast::<[f32; 8], _>(*y[at(i, v)..].first_chunk().expect("eight sums"));
        }
    }
    for position in 0..positions {
        let values: [__m256; V] = std::array::from_fn(|v| value(position, k + 8 * v));
        for i in 0..T {
            let p = _mm256_set1_ps(p[(t + i) * positions + position]);
            for v in 0..V {
                sums[i][v] = _mm256_add_ps(sums[i][v], _mm256_mul_ps(p, values[v]));
            }
        }
    }
    for i in 0..T {
        for v in 0..V {
            *y[at(i, v)..].first_chunk_mut().expect("eight sums") = cast::<_, [f32; 8]>(sums[i][v]);
        }
    }
}
