//! SwiGLU and attention on 256-bit vectors.
//!
//! Scores: the four vectors of a query's 32 lanes stay in registers; two queries share a key that is widened once.
//! Mixing: two vectors of each of four queries' sums stay in registers while all positions pass.

use std::arch::x86_64::*;

use bytemuck::cast;
use half::f16;

use crate::blocks::{BlockQ4_0, BlockQ8_0};
use crate::scalar::{
    EXP_LEAST, EXP_MOST, EXP_SERIES, LN_2_LOWER, LN_2_UPPER, WEIGHT_LEAST, add_to_lanes, all_scores, exp,
    sum_lanes, weight,
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
            let score = _mm256_sub_ps(cast(*x), _mm256_set1_ps(max));
            let nothing = _mm256_cmp_ps::<_CMP_LT_OQ>(score, _mm256_set1_ps(WEIGHT_LEAST));
            let power = _mm256_andnot_ps(nothing, exp_8(score));
            *x = cast(power);
            *lane = _mm256_add_ps(*lane, power);
        }
    }
    let mut lanes: [f32; 32] = cast(lanes);
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *x = weight(*x - max);
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
    let queries = q.map(|q| &q.as_chunks::<32>().0[..whole.len()]);
    let mut lanes = [[_mm256_setzero_ps(); 4]; T];
    for (i, key) in whole.iter().enumerate() {
        prefetch(key, 4096);
        for (v, key) in key.as_chunks::<8>().0.iter().enumerate() {
            let key = eight(*key);
            for t in 0..T {
                let q = cast(queries[t][i].as_chunks::<8>().0[v]);
                lanes[t][v] = _mm256_add_ps(lanes[t][v], _mm256_mul_ps(key, q));
            }
        }
    }
    let mut out = [0.0; T];
    for t in 0..T {
        if tail.is_empty() {
            out[t] = sum_32(lanes[t]);
        } else {
            let mut lanes = cast(lanes[t]);
            add_to_lanes(&mut lanes, tail, &q[t][32 * whole.len()..], &one);
            out[t] = sum_lanes(lanes);
        }
    }
    out
}

/// The upper half of the lanes onto the lower half, until one is left.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn sum_32(lanes: [__m256; 4]) -> f32 {
    let [a, b, c, d] = lanes;
    let eight = _mm256_add_ps(_mm256_add_ps(a, c), _mm256_add_ps(b, d));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn mix_f32(p: &[f32], dim: usize, values: &[f32], y: &mut [f32]) {
    let value = |i: usize, k: usize| {
        let eight: &[f32; 8] = values[i * dim + k..].first_chunk().expect("eight values of a position");
        cast(*eight)
    };
    mix(
        p,
        dim,
        values.len() / dim,
        y,
        value,
        |i, k| prefetch(&values[i * dim + k], 4096),
        |i, k| values[i * dim + k],
    );
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn mix_f16(p: &[f32], dim: usize, values: &[f16], y: &mut [f32]) {
    let value = |i: usize, k: usize| {
        let eight: &[f16; 8] = values[i * dim + k..].first_chunk().expect("eight values of a position");
        _mm256_cvtph_ps(cast(*eight))
    };
    mix(
        p,
        dim,
        values.len() / dim,
        y,
        value,
        |i, k| prefetch(&values[i * dim + k], 4096),
        |i, k| values[i * dim + k].to_f32(),
    );
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn mix_q8_0(p: &[f32], dim: usize, values: &[BlockQ8_0], y: &mut [f32]) {
    mix_blocks(p, dim, values, y, |block| {
        let qs: &[[i8; 8]; 4] = bytemuck::cast_ref(&block.qs);
        let mut q = [_mm256_setzero_si256(); 4];
        for v in 0..4 {
            q[v] = _mm256_cvtepi8_epi32(_mm_cvtsi64_si128(cast(qs[v])));
        }
        (block.d, q)
    });
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn mix_q4_0(p: &[f32], dim: usize, values: &[BlockQ4_0], y: &mut [f32]) {
    mix_blocks(p, dim, values, y, |block| {
        let qs: &[[u8; 8]; 2] = bytemuck::cast_ref(&block.qs);
        let mut q = [_mm256_setzero_si256(); 4];
        for v in 0..2 {
            let bytes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(cast(qs[v])));
            q[v] = _mm256_and_si256(bytes, _mm256_set1_epi32(15));
            q[v + 2] = _mm256_srli_epi32::<4>(bytes);
        }
        for q in &mut q {
            *q = _mm256_sub_epi32(*q, _mm256_set1_epi32(8));
        }
        (block.d, q)
    });
}

/// Asks for what lies `ahead` bytes further on: where positions are visited by blocks of dims, the machine does not see that
/// they are read from the first byte to the last.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn prefetch<V>(value: &V, ahead: usize) {
    _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).wrapping_byte_add(ahead).cast());
}

/// Positions whose values pass while they are in the nearest cache.
const NEAR: usize = 16;

/// A few sums of one or four queries stay in registers while [`NEAR`] positions pass.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn mix_blocks<B>(
    p: &[f32],
    dim: usize,
    values: &[B],
    y: &mut [f32],
    quants: impl Fn(&B) -> (f16, [__m256i; 4]),
) {
    assert_eq!(dim % 32, 0, "whole blocks");
    let blocks = dim / 32;
    let positions = values.len() / blocks;
    assert_eq!(y.len() / dim * positions, p.len(), "weights of positions");
    let queries = y.len() / dim;
    let whole = queries / 4 * 4;
    for start in (0..positions).step_by(NEAR) {
        let near = &values[start * blocks..positions.min(start + NEAR) * blocks];
        for t in (0..whole).step_by(4) {
            mix_near::<4, 2, B>(p, positions, start, near, blocks, t, y, &quants);
        }
        for t in whole..queries {
            mix_near::<1, 4, B>(p, positions, start, near, blocks, t, y, &quants);
        }
    }
}

/// Adds the values `near`, positions from `start` on, to the sums of queries `t..t + T`, of which `8 V` dims stay in registers.
#[allow(clippy::too_many_arguments)]
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn mix_near<const T: usize, const V: usize, B>(
    p: &[f32],
    positions: usize,
    start: usize,
    near: &[B],
    blocks: usize,
    t: usize,
    y: &mut [f32],
    quants: &impl Fn(&B) -> (f16, [__m256i; 4]),
) {
    let dim = 32 * blocks;
    for (b, first) in (0..blocks).flat_map(|b| (0..4).step_by(V).map(move |first| (b, first))) {
        let at = |i: usize, v: usize| (t + i) * dim + 32 * b + 8 * (first + v);
        let mut sums = [[_mm256_setzero_ps(); V]; T];
        for i in 0..T {
            for v in 0..V {
                sums[i][v] = cast::<[f32; 8], _>(*y[at(i, v)..].first_chunk().expect("eight sums"));
            }
        }
        for (position, values) in near.chunks_exact(blocks).enumerate() {
            prefetch(&values[b], size_of::<B>() * NEAR * blocks);
            let (d, q) = quants(&values[b]);
            let d = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(d.to_bits()))));
            for i in 0..T {
                let weight = _mm256_set1_ps(p[(t + i) * positions + start + position] * d);
                for v in 0..V {
                    let q = _mm256_cvtepi32_ps(q[first + v]);
                    sums[i][v] = _mm256_add_ps(sums[i][v], _mm256_mul_ps(weight, q));
                }
            }
        }
        for i in 0..T {
            for v in 0..V {
                *y[at(i, v)..].first_chunk_mut().expect("eight sums") = cast::<_, [f32; 8]>(sums[i][v]);
            }
        }
    }
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
    ahead: impl Fn(usize, usize),
    one: impl Fn(usize, usize) -> f32,
) {
    let queries = y.len() / dim;
    assert_eq!(queries * positions, p.len(), "weights of positions");
    let (whole, by_16, by_8) = (queries / 4 * 4, dim / 16 * 16, dim / 8 * 8);
    for t in (0..whole).step_by(4) {
        (0..by_16).step_by(16).for_each(|k| mix_block::<4, 2>(p, dim, positions, y, t, k, &value, &ahead));
        (by_16..by_8).step_by(8).for_each(|k| mix_block::<4, 1>(p, dim, positions, y, t, k, &value, &ahead));
    }
    for t in whole..queries {
        let by_64 = dim / 64 * 64;
        (0..by_64).step_by(64).for_each(|k| mix_block::<1, 8>(p, dim, positions, y, t, k, &value, &ahead));
        (by_64..by_8).step_by(8).for_each(|k| mix_block::<1, 1>(p, dim, positions, y, t, k, &value, &ahead));
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
#[allow(clippy::too_many_arguments)]
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
    ahead: &impl Fn(usize, usize),
) {
    let at = |i: usize, v: usize| (t + i) * dim + k + 8 * v;
    let mut sums = [[_mm256_setzero_ps(); V]; T];
    for i in 0..T {
        for v in 0..V {
            sums[i][v] = cast::<[f32; 8], _>(*y[at(i, v)..].first_chunk().expect("eight sums"));
        }
    }
    for position in 0..positions {
        let mut values = [_mm256_setzero_ps(); V];
        for (v, values) in values.iter_mut().enumerate() {
            *values = value(position, k + 8 * v);
            if T == 1 && v % 2 == 0 {
                ahead(position, k + 8 * v);
            }
        }
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
