//! The operations of `scalar` on 256-bit vectors (AVX2 and F16C), same functions in the same order, same bits.
//!
//! Registers:
//! - Floats: `floats.rs`; four vectors hold the 32 lanes of a product, vector `v` the lanes `8 v..8 v + 8`.
//! - Rows: a vector holds one sub-block, 32 weights beside 32 activations; `maddubs` and `madd` leave 8 `i32` that are
//!   partial sums of one row. Eight such vectors become one with the sums of eight sub-blocks.
//! - Panels: half a line is a vector, 8 rows x 4 columns, beside one word of 4 activations broadcast to all
//!   rows. `maddubs` leaves two `i16` for each row, `madd` one `i32`; sums, scales and results stay in the row's lane.
//!
//! Where it departs from the scalar text:
//! 1. `maddubs` multiplies unsigned with signed bytes. Nibbles are unsigned; their -8 is taken from the sum, by
//!    `8 * sums[s]`. For `Q8_0` and panels of `Q6_K` the weight's sign moves to the activation, which can take it: it is within ±127.
//! 2. `maddubs` saturates at `i16`, which is never reached: the sums are at most 8 * 2 * 15 * 127 = 30480 (eight of
//!    them, panels), 2 * 128 * 127 = 32512 (`Q8_0`), 2 * 63 * 127 = 16002 (rows of `Q6_K`) and 4 * 2 * 32 * 127 = 32512 (panels),
//!    4 * 2 * 7 * 127 = 7112 (panels of `Q3_K`, whose 3 bits stay unsigned; 4 times the activations is taken from their sums).
//! 3. Up to four rows of activations pass together. The sums of panels of 4 bits stay in registers, and each line meets all rows before the
//!    next; `vnni.rs` keeps the eight vectors of half a sub-block instead.
//! 4. Tails, and what is left of a row after its last 256 columns, go through the scalar code.

pub(crate) mod floats;
mod maddubs;
pub(crate) mod panels;
mod quantize;
mod vector;
pub(crate) mod vnni;

use std::arch::x86_64::*;

use bytemuck::cast;
use half::f16;

use self::floats::{
    dot_bf16, dot_f16, dot_f32, exp_sum, exps, mix_f16, mix_f32, mix_q4_0, mix_q8_0, quantize, quantize_x8,
    scores_f16, scores_f32, swiglu,
};
use self::maddubs::{panels_q3_k, panels_q4_0, panels_q4_k, panels_q6_k, panels_q8_0};
use crate::blocks::{BlockQ3K, BlockQ4_0, BlockQ4K, BlockQ6K, BlockQ8, BlockQ8_0, BlockQ8x8};
use crate::scalar::{part_q4_0, part_q8_0};
use crate::{DEFAULT_AHEAD, Kernels};

/// The table, where this CPU has the instructions.
pub(crate) fn table() -> Option<&'static Kernels> {
    /// A plain function of one that needs the instructions.
    macro_rules! enter {
        ($function:ident($($argument:ident),*)) => {
            // SAFETY: `table` gives `TABLE` away only where this CPU has AVX2 and F16C.
            |$($argument),*| unsafe { $function($($argument),*) }
        };
    }
    static TABLE: Kernels = Kernels {
        name: "avx2",
        ahead: DEFAULT_AHEAD,
        quantize: enter!(quantize(x, out)),
        quantize_x8: enter!(quantize_x8(x, out)),
        dot_f32: enter!(dot_f32(w, x)),
        dot_f16: enter!(dot_f16(w, x)),
        dot_bf16: enter!(dot_bf16(w, x)),
        dot_q8_0: enter!(dot_q8_0(w, x)),
        dot_q4_0: enter!(dot_q4_0(w, x)),
        dot_q3_k: enter!(dot_q3_k(w, x)),
        dot_q4_k: enter!(dot_q4_k(w, x)),
        dot_q6_k: enter!(dot_q6_k(w, x)),
        panels_q8_0: enter!(panels_q8_0(panels, x, acc, ahead)),
        panels_q4_0: enter!(panels_q4_0(panels, x, acc, ahead)),
        panels_q3_k: enter!(panels_q3_k(panels, x, acc, ahead)),
        panels_q4_k: enter!(panels_q4_k(panels, x, acc, ahead)),
        panels_q6_k: enter!(panels_q6_k(panels, x, acc, ahead)),
        swiglu: enter!(swiglu(gate, up)),
        exps: enter!(exps(x)),
        exp_sum: enter!(exp_sum(x, max)),
        scores_f32: enter!(scores_f32(q, dim, keys, scores)),
        scores_f16: enter!(scores_f16(q, dim, keys, scores)),
        mix_f32: enter!(mix_f32(p, dim, values, y)),
        mix_f16: enter!(mix_f16(p, dim, values, y)),
        mix_q8_0: enter!(mix_q8_0(p, dim, values, y)),
        mix_q4_0: enter!(mix_q4_0(p, dim, values, y)),
    };
    (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(&TABLE)
}

#[target_feature(enable = "avx2,f16c")]
fn dot_q8_0(w: &[BlockQ8_0], x: &[BlockQ8x8]) -> f32 {
    assert_eq!(w.len().div_ceil(8), x.len(), "blocks of activations");
    let (whole, tail) = w.as_chunks::<8>();
    let mut acc = 0.0;
    for (w, x) in whole.iter().zip(x) {
        let xs: &[[i8; 32]; 8] = bytemuck::cast_ref(&x.qs);
        let mut sums = [_mm256_setzero_si256(); 8];
        for s in 0..8 {
            let (w, x): (__m256i, __m256i) = (cast(w[s].qs), cast(xs[s]));
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
            sums[s] = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        }
        let d = [w[0].d, w[1].d, w[2].d, w[3].d, w[4].d, w[5].d, w[6].d, w[7].d];
        acc += in_order(_mm256_mul_ps(scaled(d, sum_each(sums)), cast(x.d)));
    }
    if !tail.is_empty() {
        acc += part_q8_0(tail, &x[whole.len()]);
    }
    acc
}

#[target_feature(enable = "avx2,f16c")]
fn dot_q4_0(w: &[BlockQ4_0], x: &[BlockQ8]) -> f32 {
    assert_eq!(w.len().div_ceil(8), x.len(), "blocks of activations");
    let (whole, tail) = w.as_chunks::<8>();
    let mut acc = 0.0;
    for (w, x) in whole.iter().zip(x) {
        let xs: &[[i8; 32]; 8] = bytemuck::cast_ref(&x.qs);
        let mut sums = [_mm256_setzero_si256(); 8];
        for s in 0..8 {
            let bytes: __m128i = cast(w[s].qs);
            let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
            let nibbles = _mm256_and_si256(both, _mm256_set1_epi8(15));
            let pairs = _mm256_maddubs_epi16(nibbles, cast(xs[s]));
            sums[s] = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        }
        let eights = _mm256_slli_epi32::<3>(_mm256_cvtepi16_epi32(cast(x.sums)));
        let d = [w[0].d, w[1].d, w[2].d, w[3].d, w[4].d, w[5].d, w[6].d, w[7].d];
        acc += scaled_sum(d, _mm256_sub_epi32(sum_each(sums), eights)) * x.d;
    }
    if !tail.is_empty() {
        acc += part_q4_0(tail, &x[whole.len()]);
    }
    acc
}

#[target_feature(enable = "avx2,f16c")]
fn dot_q3_k(w: &[BlockQ3K], x: &[BlockQ8]) -> f32 {
    assert_eq!(w.len(), x.len(), "blocks of activations");
    let (low, high) = (_mm256_set1_epi8(3), _mm256_set1_epi8(4));
    let mut acc = 0.0;
    for (w, x) in w.iter().zip(x) {
        let qs: &[[u8; 32]; 2] = bytemuck::cast_ref(&w.qs);
        let xs: &[[i8; 32]; 8] = bytemuck::cast_ref(&x.qs);
        let third: __m256i = cast(w.hmask);
        let scales: [__m128i; 2] = cast(_mm256_cvtepi8_epi16(cast(w.unpack_scales())));
        let mut sum = _mm256_setzero_si256();
        for s in 0..8 {
            let lows = _mm256_srl_epi16(cast(qs[s / 4]), _mm_cvtsi32_si128(2 * (s as i32 % 4)));
            // The bit of these columns goes to the third place.
            let highs = match s {
                0 => _mm256_slli_epi16::<2>(third),
                1 => _mm256_slli_epi16::<1>(third),
                _ => _mm256_srl_epi16(third, _mm_cvtsi32_si128(s as i32 - 2)),
            };
            let q = _mm256_or_si256(_mm256_and_si256(lows, low), _mm256_and_si256(highs, high));
            let x = cast(xs[s]);
            let pairs = _mm256_sub_epi16(_mm256_maddubs_epi16(q, x), _mm256_maddubs_epi16(high, x));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, two_scales(scales, s)));
        }
        acc += w.d.to_f32() * sum_8(sum) as f32 * x.d;
    }
    acc
}

#[target_feature(enable = "avx2,f16c")]
fn dot_q4_k(w: &[BlockQ4K], x: &[BlockQ8]) -> f32 {
    assert_eq!(w.len(), x.len(), "blocks of activations");
    let low = _mm256_set1_epi8(15);
    let mut acc = 0.0;
    for (w, x) in w.iter().zip(x) {
        let qs: &[[u8; 32]; 4] = bytemuck::cast_ref(&w.qs);
        let xs: &[[i8; 32]; 8] = bytemuck::cast_ref(&x.qs);
        let (scales, mins) = w.unpack_scales();
        let [scales, mins] = [scales, mins].map(u64::from_le_bytes).map(u64::cast_signed);
        let scales = _mm256_broadcastsi128_si256(_mm_cvtepu8_epi16(_mm_cvtsi64_si128(scales)));
        let mut sum = _mm256_setzero_si256();
        for (p, bytes) in qs.iter().enumerate() {
            let bytes = cast(*bytes);
            let even = _mm256_and_si256(bytes, low);
            let odd = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low);
            for (s, nibbles) in [(2 * p, even), (2 * p + 1, odd)] {
                let scale = _mm256_shuffle_epi8(scales, _mm256_set1_epi16(WORD[s]));
                let pairs = _mm256_maddubs_epi16(nibbles, cast(xs[s]));
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, scale));
            }
        }
        let min_sum = sum_4(_mm_madd_epi16(_mm_cvtepu8_epi16(_mm_cvtsi64_si128(mins)), cast(x.sums)));
        acc += (w.d.to_f32() * sum_8(sum) as f32 - w.dmin.to_f32() * min_sum as f32) * x.d;
    }
    acc
}

#[target_feature(enable = "avx2,f16c")]
fn dot_q6_k(w: &[BlockQ6K], x: &[BlockQ8]) -> f32 {
    assert_eq!(w.len(), x.len(), "blocks of activations");
    let (low, high) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
    let mut acc = 0.0;
    for (w, x) in w.iter().zip(x) {
        let ql: &[[[u8; 32]; 2]; 2] = bytemuck::cast_ref(&w.ql);
        let qh: &[[u8; 32]; 2] = bytemuck::cast_ref(&w.qh);
        let xs: &[[[i8; 32]; 4]; 2] = bytemuck::cast_ref(&x.qs);
        let scales: [__m128i; 2] = cast(_mm256_cvtepi8_epi16(cast(w.scales)));
        let mut sum = _mm256_setzero_si256();
        for half in 0..2 {
            let (a, b, h): (__m256i, __m256i, __m256i) =
                (cast(ql[half][0]), cast(ql[half][1]), cast(qh[half]));
            let lows = [a, b, _mm256_srli_epi16::<4>(a), _mm256_srli_epi16::<4>(b)];
            let highs = [_mm256_slli_epi16::<4>(h), _mm256_slli_epi16::<2>(h), h, _mm256_srli_epi16::<2>(h)];
            for part in 0..4 {
                let q =
                    _mm256_or_si256(_mm256_and_si256(lows[part], low), _mm256_and_si256(highs[part], high));
                let x = cast(xs[half][part]);
                let offset = _mm256_maddubs_epi16(_mm256_set1_epi8(32), x);
                let pairs = _mm256_sub_epi16(_mm256_maddubs_epi16(q, x), offset);
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, two_scales(scales, 4 * half + part)));
            }
        }
        acc += w.d.to_f32() * sum_8(sum) as f32 * x.d;
    }
    acc
}

/// The scales of the sixteens of sub-block `s`: of its lower 16 columns, then of the upper 16.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn two_scales(scales: [__m128i; 2], s: usize) -> __m256i {
    let (eight, at) = (_mm256_broadcastsi128_si256(scales[s / 4]), 2 * (s % 4));
    let two = _mm256_set_m128i(_mm_set1_epi16(WORD[at + 1]), _mm_set1_epi16(WORD[at]));
    _mm256_shuffle_epi8(eight, two)
}

/// For byte shuffles: the two bytes of the `s`-th `i16`.
const WORD: [i16; 8] = [0x0100, 0x0302, 0x0504, 0x0706, 0x0908, 0x0b0a, 0x0d0c, 0x0f0e];

/// The products of eight sums with their scales, added up from the first to the last.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn scaled_sum(d: [f16; 8], sums: __m256i) -> f32 {
    in_order(scaled(d, sums))
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn scaled(d: [f16; 8], sums: __m256i) -> __m256 {
    _mm256_mul_ps(_mm256_cvtph_ps(cast(d)), _mm256_cvtepi32_ps(sums))
}

/// The sum of eight lanes, from the first to the last.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn in_order(v: __m256) -> f32 {
    cast::<_, [f32; 8]>(v).into_iter().fold(0.0, |acc, x| acc + x)
}

/// Lane `i` of the result is the sum of the lanes of vector `i`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn sum_each(v: [__m256i; 8]) -> __m256i {
    // Within 128 bits: a0+a2 b0+b2 a1+a3 b1+b3, then a b c d.
    let pair = |a, b| _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let four = |a, b| _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let first = four(pair(v[0], v[1]), pair(v[2], v[3]));
    let last = four(pair(v[4], v[5]), pair(v[6], v[7]));
    let lower = _mm256_permute2x128_si256::<0x20>(first, last);
    _mm256_add_epi32(lower, _mm256_permute2x128_si256::<0x31>(first, last))
}

/// The sum of eight lanes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn sum_8(v: __m256i) -> i32 {
    sum_4(_mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v)))
}

/// The sum of four lanes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn sum_4(v: __m128i) -> i32 {
    let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b11_10>(v));
    _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32::<0b01>(v)))
}
