//! Blocks of activations in 8 bits, whose rows `floats.rs` walks.

use std::arch::x86_64::*;

use bytemuck::cast;

use super::sum_each;
use crate::blocks::{BlockQ8, BlockQ8x8, QK};
use crate::scalar::scale_of;

#[target_feature(enable = "avx2,f16c")]
pub(super) fn quantize_block(x: &[f32; QK], out: &mut BlockQ8) {
    let x: &[[[f32; 8]; 4]; 8] = bytemuck::cast_ref(x);
    let (d, inverse) = scale_of(largest(x.as_flattened()));
    *out = BlockQ8 { d, ..bytemuck::Zeroable::zeroed() };
    if inverse == 0.0 {
        return;
    }
    let qs: &mut [[i8; 32]; 8] = bytemuck::cast_mut(&mut out.qs);
    let mut sums = [_mm256_setzero_si256(); 8];
    for s in 0..8 {
        (qs[s], sums[s]) = round(&x[s], inverse);
    }
    out.sums = cast::<_, [i32; 8]>(sum_each(sums)).map(|sum| sum as i16);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn quantize_eight(x: &[f32; QK], out: &mut BlockQ8x8) {
    let x: &[[[f32; 8]; 4]; 8] = bytemuck::cast_ref(x);
    *out = bytemuck::Zeroable::zeroed();
    let qs: &mut [[i8; 32]; 8] = bytemuck::cast_mut(&mut out.qs);
    let mut sums = [_mm256_setzero_si256(); 8];
    for s in 0..8 {
        let (d, inverse) = scale_of(largest(&x[s]));
        out.d[s] = d;
        if inverse != 0.0 {
            (qs[s], sums[s]) = round(&x[s], inverse);
        }
    }
    // 128 = 2^7.
    out.starts = cast(_mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32::<7>(sum_each(sums))));
}

/// The bits of the largest absolute value.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn largest(x: &[[f32; 8]]) -> u32 {
    let mut amax = _mm256_setzero_si256();
    for &x in x {
        amax = _mm256_max_epi32(amax, _mm256_and_si256(cast(x), _mm256_set1_epi32(i32::MAX)));
    }
    cast::<_, [u32; 8]>(amax).into_iter().fold(0, u32::max)
}

/// 32 activations times the inverse of their scale, rounded, and eight sums of those.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn round(x: &[[f32; 8]; 4], inverse: f32) -> ([i8; 32], __m256i) {
    let [a, b, c, d] = x.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(cast(x), _mm256_set1_ps(inverse))));
    // The packs work within 128 bits, so the words come out in the order 0 2 4 6 1 3 5 7.
    let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    (cast(bytes), _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d)))
}
