//! Panels by `vpmaddubsw` and `vpmaddwd`: AVX2 alone.

use std::arch::x86_64::*;

use bytemuck::cast;
use half::f16;

use super::panels::{ROWS_TWICE, Sixteen, Starts, load, nibbles, panels, six_bits, store, unpack_scales};
use crate::blocks::BlockQ8;
use crate::panel::{PanelQ4_0, PanelQ4K, PanelQ6K, PanelQ8_0, sub_block};

panels!("avx2,f16c");

/// The integer products of half `h` of a sub-block's lines with T rows of activations, for each of 8 rows.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn byte_dots<const T: usize>(
    lines: &[[[i8; 32]; 2]; 8],
    h: usize,
    x: &[&[BlockQ8]; T],
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

/// The integer products of nibbles less 8 with one row of activations, for each of 8 rows.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn nibble_dots(nibbles: &[[__m256i; 2]; 4], x: &BlockQ8, s: usize) -> __m256i {
    let eights = _mm256_set1_epi32(-8 * i32::from(x.sums[s]));
    add_pairs(eights, nibble_pairs(nibbles, x, s), _mm256_set1_epi16(1))
}

/// The integer products of sub-block `s` with one row of activations: two `i16` for each of 8 rows.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn nibble_pairs(nibbles: &[[__m256i; 2]; 4], x: &BlockQ8, s: usize) -> __m256i {
    let xs: &[[[[i8; 4]; 4]; 2]; 8] = bytemuck::cast_ref(&x.qs);
    let pairs = |g: usize, part: usize| {
        _mm256_maddubs_epi16(nibbles[g][part], _mm256_set1_epi32(cast(xs[s][part][g])))
    };
    let mut sum = _mm256_add_epi16(pairs(0, 0), pairs(0, 1));
    for g in 1..4 {
        sum = _mm256_add_epi16(sum, _mm256_add_epi16(pairs(g, 0), pairs(g, 1)));
    }
    sum
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
    let twice = _mm256_blend_epi16::<0b1010_1010>(scale, _mm256_slli_epi32::<16>(scale));
    add_pairs(sum, pairs, twice)
}
