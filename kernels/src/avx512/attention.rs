//! Attention on 512-bit vectors. Scores of fewer than four queries are bound by memory and stay with `avx2`.
//!
//! Keys and values are widened a few positions at a time, once for all queries, and stay in the nearest cache while these pass by fours.
//! Scores: two vectors hold the 32 lanes of a product; four queries meet two keys. Eight sums of lanes become one vector, by the additions of
//! `scalar::sum_lanes`.
//! Mixing: 64 dims of four queries stay in registers while the positions pass; 256 dims of one that is alone, so that its values pass in the order in
//! which they lie in memory.

use std::arch::x86_64::*;

use bytemuck::cast;
use half::f16;

use crate::avx2::floats;
use crate::blocks::{BlockQ4_0, BlockQ8_0};

/// Queries that pass together.
const QUERIES: usize = 4;

/// Numbers that are widened at a time: half of the nearest cache.
const NEAR: usize = 4096;

/// Dims of one query that stay in registers, of which they take half.
const ALONE: usize = 256;

#[target_feature(enable = "avx512f")]
pub(super) fn scores_f32(q: &[f32], dim: usize, keys: &[f32], scores: &mut [f32]) {
    let (q, scores) = fours_of_scores(q, dim, keys, scores, |w: &[f32; 16]| cast(*w));
    floats::scores_f32(q, dim, keys, scores);
}

#[target_feature(enable = "avx512f")]
pub(super) fn scores_f16(q: &[f32], dim: usize, keys: &[f16], scores: &mut [f32]) {
    let (q, scores) = fours_of_scores(q, dim, keys, scores, |w: &[f16; 16]| _mm512_cvtph_ps(cast(*w)));
    floats::scores_f16(q, dim, keys, scores);
}

#[target_feature(enable = "avx512f")]
pub(super) fn mix_f32(p: &[f32], dim: usize, values: &[f32], y: &mut [f32]) {
    let (p, y) = mix(p, dim, values, y, |w: &[f32; 16]| cast(*w));
    floats::mix_f32(p, dim, values, y);
}

#[target_feature(enable = "avx512f")]
pub(super) fn mix_f16(p: &[f32], dim: usize, values: &[f16], y: &mut [f32]) {
    let (p, y) = mix(p, dim, values, y, |w: &[f16; 16]| _mm512_cvtph_ps(cast(*w)));
    floats::mix_f16(p, dim, values, y);
}

// The two types of blocks share no such function: behind one more, a single query took half as long again (12.2 microseconds a page, and 7.5).

#[target_feature(enable = "avx512f")]
pub(super) fn mix_q8_0(p: &[f32], dim: usize, values: &[BlockQ8_0], y: &mut [f32]) {
    let (fours, rest) = y.split_at_mut(by_fours(y, dim, 32));
    let positions = values.len() / (dim / 32);
    let (of_fours, of_rest) = p.split_at(fours.len() / dim * positions);
    let quants = |block: &BlockQ8_0| {
        let halves: [__m128i; 2] = cast(block.qs);
        (block.d, [_mm512_cvtepi8_epi32(halves[0]), _mm512_cvtepi8_epi32(halves[1])])
    };
    mix_blocks(of_fours, dim, values, fours, quants);
    if dim.is_multiple_of(ALONE) && positions > 0 {
        for (p, y) in of_rest.chunks_exact(positions).zip(rest.chunks_exact_mut(dim)) {
            mix_blocks_alone(p, values, y, quants);
        }
    } else {
        floats::mix_q8_0(of_rest, dim, values, rest);
    }
}

#[target_feature(enable = "avx512f")]
pub(super) fn mix_q4_0(p: &[f32], dim: usize, values: &[BlockQ4_0], y: &mut [f32]) {
    let (fours, rest) = y.split_at_mut(by_fours(y, dim, 32));
    let positions = values.len() / (dim / 32);
    let (of_fours, of_rest) = p.split_at(fours.len() / dim * positions);
    let quants = |block: &BlockQ4_0| {
        let bytes = _mm512_cvtepu8_epi32(cast(block.qs));
        let nibbles = [_mm512_and_si512(bytes, _mm512_set1_epi32(15)), _mm512_srli_epi32::<4>(bytes)];
        (block.d, nibbles.map(|q| _mm512_sub_epi32(q, _mm512_set1_epi32(8))))
    };
    mix_blocks(of_fours, dim, values, fours, quants);
    if dim.is_multiple_of(ALONE) && positions > 0 {
        for (p, y) in of_rest.chunks_exact(positions).zip(rest.chunks_exact_mut(dim)) {
            mix_blocks_alone(p, values, y, quants);
        }
    } else {
        floats::mix_q4_0(of_rest, dim, values, rest);
    }
}

/// The scores of queries by fours; the queries that are left, and their scores.
#[target_feature(enable = "avx512f")]
#[inline]
fn fours_of_scores<'a, W>(
    q: &'a [f32],
    dim: usize,
    keys: &[W],
    scores: &'a mut [f32],
    sixteen: impl Fn(&[W; 16]) -> __m512,
) -> (&'a [f32], &'a mut [f32]) {
    let positions = keys.len() / dim;
    let (fours, rest) = q.split_at(by_fours(q, dim, 32));
    let (of_fours, of_rest) = scores.split_at_mut(fours.len() / dim * positions);
    if !fours.is_empty() {
        let (mut near, together) = ([0.0; NEAR], NEAR / dim);
        for (first, keys) in (0..positions).step_by(together).zip(keys.chunks(together * dim)) {
            near_scores(fours, dim, widened(keys, &mut near, &sixteen), of_fours, positions, first);
        }
    }
    (rest, of_rest)
}

/// Mixes values for queries by fours, and for those that are left where their dims fill the registers; otherwise their weights and sums are what is left.
#[target_feature(enable = "avx512f")]
#[inline]
fn mix<'a, W>(
    p: &'a [f32],
    dim: usize,
    values: &[W],
    y: &'a mut [f32],
    sixteen: impl Fn(&[W; 16]) -> __m512,
) -> (&'a [f32], &'a mut [f32]) {
    let positions = values.len() / dim;
    let (fours, rest) = y.split_at_mut(by_fours(y, dim, 16));
    let (of_fours, of_rest) = p.split_at(fours.len() / dim * positions);
    if !fours.is_empty() {
        let (mut near, together) = ([0.0; NEAR], NEAR / dim);
        for (first, values) in (0..positions).step_by(together).zip(values.chunks(together * dim)) {
            mix_near(of_fours, dim, widened(values, &mut near, &sixteen), fours, positions, first);
        }
    }
    if !dim.is_multiple_of(ALONE) || positions == 0 {
        return (of_rest, rest);
    }
    for (p, y) in of_rest.chunks_exact(positions).zip(rest.chunks_exact_mut(dim)) {
        mix_alone(p, values, y, &sixteen);
    }
    (&[], &mut [])
}

/// Numbers in the rows of `x` that pass by fours: none where a row is not so many whole vectors, or does not fit in the nearest cache.
fn by_fours(x: &[f32], dim: usize, vector: usize) -> usize {
    if dim.is_multiple_of(vector) && dim <= NEAR { x.len() / dim / QUERIES * QUERIES * dim } else { 0 }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn widened<'n, W>(x: &[W], near: &'n mut [f32; NEAR], sixteen: &impl Fn(&[W; 16]) -> __m512) -> &'n [f32] {
    let near = &mut near[..x.len()];
    for (near, x) in near.as_chunks_mut::<16>().0.iter_mut().zip(x.as_chunks::<16>().0) {
        *near = cast(sixteen(x));
    }
    near
}

/// Scores of the positions from `first` on, whose keys are given, of `positions` in all.
#[target_feature(enable = "avx512f")]
#[inline]
fn near_scores(q: &[f32], dim: usize, keys: &[f32], scores: &mut [f32], positions: usize, first: usize) {
    assert_eq!(q.len() / dim * positions, scores.len(), "scores");
    for (q, scores) in
        q.chunks_exact(QUERIES * dim).zip(scores.chunks_exact_mut((QUERIES * positions).max(1)))
    {
        for (i, pair) in (first..).step_by(2).zip(keys.chunks(2 * dim)) {
            // The last key of an odd number meets the queries twice.
            let second = if pair.len() > dim { dim } else { 0 };
            let found = eight_scores(q, dim, [&pair[..dim], &pair[second..]]);
            for t in 0..QUERIES {
                let scores = &mut scores[t * positions + i..];
                scores[0] = found[2 * t];
                if second > 0 {
                    scores[1] = found[2 * t + 1];
                }
            }
        }
    }
}

/// Products of four queries with two keys, a query's two side by side.
#[target_feature(enable = "avx512f")]
#[inline]
fn eight_scores(q: &[f32], dim: usize, keys: [&[f32]; 2]) -> [f32; 8] {
    let chunks = dim / 32;
    let mut qs = [&[][..]; QUERIES];
    for t in 0..QUERIES {
        qs[t] = &q[t * dim..][..dim].as_chunks::<32>().0[..chunks];
    }
    let keys = [&keys[0].as_chunks::<32>().0[..chunks], &keys[1].as_chunks::<32>().0[..chunks]];
    // By query and key, the lower and the upper lanes.
    let mut lanes = [[_mm512_setzero_ps(); 2]; 8];
    for i in 0..chunks {
        let keys: [[__m512; 2]; 2] = [cast(keys[0][i]), cast(keys[1][i])];
        for t in 0..QUERIES {
            let q: [__m512; 2] = cast(qs[t][i]);
            for k in 0..2 {
                for half in 0..2 {
                    let lane = &mut lanes[2 * t + k][half];
                    *lane = _mm512_add_ps(*lane, _mm512_mul_ps(keys[k][half], q[half]));
                }
            }
        }
    }
    sum_each(lanes)
}

/// The sums of eight times 32 lanes: the upper half of the lanes onto the lower half, until one is left.
#[target_feature(enable = "avx512f")]
#[inline]
fn sum_each(lanes: [[__m512; 2]; 8]) -> [f32; 8] {
    let mut sixteens = [_mm512_setzero_ps(); 8];
    for i in 0..8 {
        sixteens[i] = _mm512_add_ps(lanes[i][0], lanes[i][1]);
    }
    // Two sums of eight lanes in a vector, then four of four, in the order of 128 bits 0, 1, 2, 3.
    let mut eights = [_mm512_setzero_ps(); 4];
    for i in 0..4 {
        let [a, b] = [sixteens[2 * i], sixteens[2 * i + 1]];
        eights[i] = _mm512_add_ps(
            _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
            _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
        );
    }
    let mut quads = [_mm512_setzero_ps(); 2];
    for i in 0..2 {
        let [a, b] = [eights[2 * i], eights[2 * i + 1]];
        quads[i] = _mm512_add_ps(
            _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
        );
    }
    let [a, b] = quads.map(|quad| _mm512_castps_pd(quad));
    let pairs =
        _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    let ones: [f32; 16] = cast(_mm512_add_ps(pairs, _mm512_permute_ps::<0b10_11_00_01>(pairs)));
    // The first four sums are in the first halves of the 128 bits, the others in the second.
    [ones[0], ones[4], ones[8], ones[12], ones[2], ones[6], ones[10], ones[14]]
}

/// Adds `values`, of the positions from `first` on of `positions` in all, each times its weight: dims by 64 and by sixteen.
#[target_feature(enable = "avx512f")]
#[inline]
fn mix_near(p: &[f32], dim: usize, values: &[f32], y: &mut [f32], positions: usize, first: usize) {
    assert_eq!(y.len() / dim * positions, p.len(), "weights of positions");
    let by_64 = dim / 64 * 64;
    for (p, y) in p.chunks_exact(QUERIES * positions).zip(y.chunks_exact_mut(QUERIES * dim)) {
        let mut weights = [&[][..]; QUERIES];
        for t in 0..QUERIES {
            weights[t] = &p[t * positions + first..][..values.len() / dim];
        }
        for k in (0..by_64).step_by(64) {
            mix_dims::<4>(weights, dim, values, y, k);
        }
        for k in (by_64..dim).step_by(16) {
            mix_dims::<1>(weights, dim, values, y, k);
        }
    }
}

/// Mixes blocks of 32, whose quants are widened once for all queries; a position's weight times the block's scale is one factor.
#[target_feature(enable = "avx512f")]
#[inline]
fn mix_blocks<B>(
    p: &[f32],
    dim: usize,
    values: &[B],
    y: &mut [f32],
    quants: impl Fn(&B) -> (f16, [__m512i; 2]),
) {
    let blocks = dim / 32;
    let positions = values.len() / blocks;
    assert_eq!(y.len() / dim * positions, p.len(), "weights of positions");
    if y.is_empty() || positions == 0 {
        return;
    }
    // Scales and factors by block and position.
    let (mut near, mut scales, mut factors) = ([0.0; NEAR], [0.0; NEAR / 32], [[0.0; NEAR / 32]; QUERIES]);
    let together = NEAR / dim;
    for (first, values) in (0..positions).step_by(together).zip(values.chunks(together * blocks)) {
        let n = values.len() / blocks;
        for (i, (values, near)) in values.chunks_exact(blocks).zip(near.chunks_exact_mut(dim)).enumerate() {
            for (b, (block, near)) in values.iter().zip(near.as_chunks_mut::<32>().0).enumerate() {
                let (d, q) = quants(block);
                scales[b * n + i] = to_f32(d);
                *near = cast([_mm512_cvtepi32_ps(q[0]), _mm512_cvtepi32_ps(q[1])]);
            }
        }
        let near = &near[..n * dim];
        for (p, y) in p.chunks_exact(QUERIES * positions).zip(y.chunks_exact_mut(QUERIES * dim)) {
            for (p, factors) in p.chunks_exact(positions).zip(&mut factors) {
                let by_block = factors.chunks_exact_mut(n).zip(scales.chunks_exact(n)).take(blocks);
                for (factors, scales) in by_block {
                    for ((factor, weight), scale) in factors.iter_mut().zip(&p[first..][..n]).zip(scales) {
                        *factor = weight * scale;
                    }
                }
            }
            for b in 0..blocks {
                let mut of_block = [&[][..]; QUERIES];
                for t in 0..QUERIES {
                    of_block[t] = &factors[t][b * n..][..n];
                }
                mix_dims::<2>(of_block, dim, near, y, 32 * b);
            }
        }
    }
}

/// Dims `k..k + 16 V` of four queries.
#[target_feature(enable = "avx512f")]
#[inline]
fn mix_dims<const V: usize>(p: [&[f32]; QUERIES], dim: usize, values: &[f32], y: &mut [f32], k: usize) {
    let mut sums = [[_mm512_setzero_ps(); V]; QUERIES];
    for t in 0..QUERIES {
        let y = &y[t * dim + k..][..16 * V].as_chunks::<16>().0;
        for v in 0..V {
            sums[t][v] = cast(y[v]);
        }
    }
    for (i, values) in values.chunks_exact(dim).enumerate() {
        let values = values[k..][..16 * V].as_chunks::<16>().0;
        for t in 0..QUERIES {
            let p = _mm512_set1_ps(p[t][i]);
            for v in 0..V {
                sums[t][v] = _mm512_add_ps(sums[t][v], _mm512_mul_ps(p, cast(values[v])));
            }
        }
    }
    for t in 0..QUERIES {
        let y = y[t * dim + k..][..16 * V].as_chunks_mut::<16>().0;
        for v in 0..V {
            y[v] = cast(sums[t][v]);
        }
    }
}

/// Adds the values of all positions to the sums of one query.
#[target_feature(enable = "avx512f")]
#[inline]
fn mix_alone<W>(p: &[f32], values: &[W], y: &mut [f32], sixteen: &impl Fn(&[W; 16]) -> __m512) {
    let dim = y.len();
    for (k, y) in (0..dim).step_by(ALONE).zip(y.as_chunks_mut::<ALONE>().0) {
        let mut sums: [__m512; ALONE / 16] = cast(*y);
        for (values, p) in values.chunks_exact(dim).zip(p) {
            let (values, p) = (values[k..][..ALONE].as_chunks::<16>().0, _mm512_set1_ps(*p));
            for v in 0..ALONE / 16 {
                sums[v] = _mm512_add_ps(sums[v], _mm512_mul_ps(p, sixteen(&values[v])));
            }
        }
        *y = cast(sums);
    }
}

/// The same of blocks of 32.
#[target_feature(enable = "avx512f")]
#[inline]
fn mix_blocks_alone<B>(p: &[f32], values: &[B], y: &mut [f32], quants: impl Fn(&B) -> (f16, [__m512i; 2])) {
    const BLOCKS: usize = ALONE / 32;
    let blocks = y.len() / 32;
    // Factors of some positions before their sums: made between these, each would be made in a register that still waits for one.
    let mut factors = [[0.0; BLOCKS]; 16];
    for (b, y) in (0..blocks).step_by(BLOCKS).zip(y.as_chunks_mut::<ALONE>().0) {
        let mut sums: [[__m512; 2]; BLOCKS] = cast(*y);
        for (values, p) in values.chunks(factors.len() * blocks).zip(p.chunks(factors.len())) {
            for ((values, p), factors) in values.chunks_exact(blocks).zip(p).zip(&mut factors) {
                for (block, factor) in values[b..].iter().zip(factors) {
                    *factor = p * to_f32(quants(block).0);
                }
            }
            for (values, factors) in values.chunks_exact(blocks).zip(&factors) {
                let values: &[B; BLOCKS] = values[b..].first_chunk().expect("blocks of 256 dims");
                for i in 0..BLOCKS {
                    let (factor, q) = (_mm512_set1_ps(factors[i]), quants(&values[i]).1);
                    for v in 0..2 {
                        sums[i][v] =
                            _mm512_add_ps(sums[i][v], _mm512_mul_ps(factor, _mm512_cvtepi32_ps(q[v])));
                    }
                }
            }
        }
        *y = cast(sums);
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn to_f32(x: f16) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x.to_bits().into())))
}
