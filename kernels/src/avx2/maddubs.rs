//! Panels by `vpmaddubsw` and `vpmaddwd`: AVX2 alone.

use std::arch::x86_64::*;

use bytemuck::cast;
use half::f16;

use super::panels::{
    ROWS_TWICE, Sixteen, Starts, Walk, load, panels, prefetch, prefetch_header, six_bits, store, three_bits,
    unpack_scales, unpack_scales_q3_k,
};
use crate::blocks::{BlockQ8, BlockQ8x8};
use crate::panel::{PanelQ3K, PanelQ4_0, PanelQ4K, PanelQ6K, PanelQ8_0, sub_block};

panels!("avx2,f16c");

/// The integer products of half `h` of a sub-block's lines with T rows of activations, for each of 8 rows.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn byte_dots<const T: usize>(
    lines: &[[[i8; 32]; 2]; 8],
    h: usize,
    x: &[&[BlockQ8x8]; T],
    i: usize,
    s: usize,
) -> [__m256i; T] {
    let mut dots = [_mm256_setzero_si256(); T];
    for (g, line) in lines.iter().enumerate() {
        let w = cast(line[h]);
        let size = _mm256_abs_epi8(w);
        for t in 0..T {
            let xs: &[[[i8; 4]; 8]; 8] = bytemuck::cast_ref(&x[t][i].qs);
            let x = _mm256_set1_epi32(cast(xs[s][g]));
            let pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(x, w));
            dots[t] = add_pairs(dots[t], pairs, _mm256_set1_epi16(1));
        }
    }
    dots
}

/// The integer products of a sub-block's nibbles less 8 with T rows of activations, for each of 8 rows of both halves.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn nibble_dots<const T: usize>(
    nibbles: &[u8; 256],
    x: &[&[BlockQ8]; T],
    i: usize,
    s: usize,
) -> [[__m256i; 2]; T] {
    let mut dots = nibble_pairs(nibbles, x, i, s);
    for t in 0..T {
        let eights = _mm256_set1_epi32(-8 * i32::from(x[t][i].sums[s]));
        for dots in &mut dots[t] {
            *dots = add_pairs(eights, *dots, _mm256_set1_epi16(1));
        }
    }
    dots
}

/// The integer products of sub-block `s` with T rows of activations: two `i16` for each of 8 rows of both halves. A line
/// meets all rows of activations before the next, so that sums, and not lines, are what stays in registers.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn nibble_pairs<const T: usize>(
    nibbles: &[u8; 256],
    x: &[&[BlockQ8]; T],
    i: usize,
    s: usize,
) -> [[__m256i; 2]; T] {
    let lines: &[[[u8; 32]; 2]; 4] = bytemuck::cast_ref(nibbles);
    let mask = _mm256_set1_epi8(15);
    let mut pairs = [[_mm256_setzero_si256(); 2]; T];
    for g in 0..4 {
        let bytes: [__m256i; 2] = cast(lines[g]);
        let (mut low, mut high) = (bytes, bytes);
        for h in 0..2 {
            low[h] = _mm256_and_si256(bytes[h], mask);
            high[h] = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes[h]), mask);
        }
        for t in 0..T {
            let xs: &[[[i32; 4]; 2]; 8] = bytemuck::cast_ref(&x[t][i].qs);
            let (first, second) = (_mm256_set1_epi32(xs[s][0][g]), _mm256_set1_epi32(xs[s][1][g]));
            for h in 0..2 {
                pairs[t][h] = _mm256_add_epi16(pairs[t][h], _mm256_maddubs_epi16(low[h], first));
                pairs[t][h] = _mm256_add_epi16(pairs[t][h], _mm256_maddubs_epi16(high[h], second));
            }
        }
    }
    pairs
}

/// `sum` and the products of pairs, added in their row's lane.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn add_pairs(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
}

/// Signs move to the activations here, so sums begin at zero.
#[inline]
fn begin_sixes(_: &BlockQ8) -> Starts {
    Starts::default()
}

/// `sum` and the integer products of 6-bit numbers less 32, each sum times its row's scale.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn add_sixes(sum: __m256i, q: &[__m256i; 4], x: Sixteen<'_>, scale: __m256i) -> __m256i {
    let mut pairs = _mm256_setzero_si256();
    for (g, q) in q.iter().enumerate() {
        let w = _mm256_sub_epi8(*q, _mm256_set1_epi8(32));
        let x = _mm256_sign_epi8(_mm256_set1_epi32(x.word(g)), w);
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(_mm256_abs_epi8(w), x));
    }
    add_pairs(sum, pairs, twice(scale))
}

/// For each sixteen activations, 4 times the sums of their even pairs and of their odd pairs, as two `i16`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn begin_threes(x: &BlockQ8) -> Starts {
    let xs: &[[i8; 32]; 8] = bytemuck::cast_ref(&x.qs);
    let mut starts = Starts::default();
    for s in 0..8 {
        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(4), cast(xs[s]));
        let pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b01_00_11_10>(pairs));
        let pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b10_11_00_01>(pairs));
        let words: [i32; 8] = cast(pairs);
        (starts[s / 4][0][s % 4], starts[s / 4][1][s % 4]) = (words[0], words[4]);
    }
    starts
}

/// `sum` and the integer products of 3-bit numbers less 4, each sum times its row's scale.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn add_threes(sum: __m256i, q: &[__m256i; 4], x: Sixteen<'_>, scale: __m256i) -> __m256i {
    let mut pairs = _mm256_setzero_si256();
    for (g, q) in q.iter().enumerate() {
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(*q, _mm256_set1_epi32(x.word(g))));
    }
    let fours = _mm256_set1_epi32(x.starts[x.s / 4][x.part][x.s % 4]);
    add_pairs(sum, _mm256_sub_epi16(pairs, fours), twice(scale))
}

/// Each `i32`, which fits 16 bits, as two `i16`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn twice(scale: __m256i) -> __m256i {
    _mm256_blend_epi16::<0b1010_1010>(scale, _mm256_slli_epi32::<16>(scale))
}
