//! Eight floats as one vector: what `floats.rs` needs of AVX2 and F16C.

use std::arch::x86_64::*;

use bytemuck::cast;
use half::{bf16, f16};

use crate::{
    blocks::{BlockQ4_0, BlockQ8_0},
    scalar::{EXP_LEAST, EXP_MOST},
};

pub type Eight = __m256;
/// Eight integers that become floats.
pub type Eights = __m256i;

/// Functions of vectors.
macro_rules! each {
    ($($name:ident($($x:ident: $of:ty),*) -> $out:ty = $body:expr;)*) => {
        $(
            #[target_feature(enable = "avx2,f16c")]
            #[inline]
            pub fn $name($($x: $of),*) -> $out {
                $body
            }
        )*
    };
}
each! {
    splat(x: f32) -> Eight = _mm256_set1_ps(x);
    add(a: Eight, b: Eight) -> Eight = _mm256_add_ps(a, b);
    sub(a: Eight, b: Eight) -> Eight = _mm256_sub_ps(a, b);
    mul(a: Eight, b: Eight) -> Eight = _mm256_mul_ps(a, b);
    div(a: Eight, b: Eight) -> Eight = _mm256_div_ps(a, b);
    minus(x: Eight) -> Eight = _mm256_xor_ps(x, _mm256_set1_ps(-0.0));
    round(x: Eight) -> Eight = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
    of_i32(x: Eights) -> Eight = _mm256_cvtepi32_ps(x);
    of_f16(x: [f16; 8]) -> Eight = _mm256_cvtph_ps(cast(x));
    of_bf16(x: [bf16; 8]) -> Eight =
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(cast::<_, __m128i>(x))));
    to_f32(x: f16) -> f32 = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(x.to_bits()))));
}

/// `x` within the bounds of the exponential. NaN is the second operand of each: it passes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub fn within_exp(x: Eight) -> Eight {
    _mm256_min_ps(_mm256_set1_ps(EXP_MOST), _mm256_max_ps(_mm256_set1_ps(EXP_LEAST), x))
}

/// 2 to the power of whole numbers.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub fn two_to_the(n: Eight) -> Eight {
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
        _mm256_cvtps_epi32(n),
        _mm256_set1_epi32(127),
    )))
}

/// `value`, and 0 where `x` is below `bound`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub fn zero_below(x: Eight, bound: f32, value: Eight) -> Eight {
    _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(bound)), value)
}

/// The upper half of the lanes onto the lower half, until one is left.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub fn sum_32(lanes: [Eight; 4]) -> f32 {
    let [a, b, c, d] = lanes;
    let eight = _mm256_add_ps(_mm256_add_ps(a, c), _mm256_add_ps(b, d));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
pub fn quants_q8_0(block: &BlockQ8_0) -> [Eights; 4] {
    let qs: &[[i8; 8]; 4] = bytemuck::cast_ref(&block.qs);
    let mut q = [_mm256_setzero_si256(); 4];
    for v in 0..4 {
        q[v] = _mm256_cvtepi8_epi32(_mm_cvtsi64_si128(cast(qs[v])));
    }
    q
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
pub fn quants_q4_0(block: &BlockQ4_0) -> [Eights; 4] {
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
    q
}

/// Asks for what lies `ahead` bytes further on: where positions are visited by blocks of dims, the machine does not see that
/// they are read from the first byte to the last.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub fn prefetch<V>(value: &V, ahead: usize) {
    _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).wrapping_byte_add(ahead).cast());
}
