//! The operations of `scalar` on 128-bit vectors (64-bit Arm), same functions in the same order, same bits.
//!
//! Three tables: `neon` runs everywhere, [`dotprod`] multiplies bytes with `sdot`, [`i8mm`] blocks of rows with
//! `smmla`. What they share is here; `quantized.rs` is compiled once for each of the first two.
//!
//! Registers:
//! - Floats: `floats.rs`, whose vectors of eight are two of these; four hold the 32 lanes of a product.
//! - Rows: 16 weights beside 16 activations; their products are added up in 4 `i32` of one row, in no special order.
//! - Panels: a quarter of a line is a vector, 4 rows x 4 columns, beside one word of 4 activations for all rows.
//!   Sums, scales and results stay in the row's lane.
//!
//! Where it departs from the scalar text:
//! 1. Nibbles stay 0..=15 and are multiplied as signed bytes; the -8 of `Q4_0` is where its sums begin.
//! 2. Without `sdot`, products are added up as `i16` first, which never overflows: the sums are at most 8 * 15 * 127 =
//!    15240 (panels), 4 * 32 * 127 = 16256 (panels of `Q6_K`) and 2 * 128 * 127 = 32512 (rows).
//! 3. The nibbles of 4 rows of a sub-block (8 vectors) stay in registers while up to 4 rows of activations pass. A
//!    single row of activations passes all 16 rows of a sub-block before the next one, so that panels are read in order.
//! 4. Tails, and what is left of a row after its last 256 columns, go through the scalar code.

#[macro_use]
mod quantized;

pub(crate) mod dotprod;
mod floats;
pub(crate) mod i8mm;
mod quantize;
mod vector;

use std::arch::{aarch64::*, is_aarch64_feature_detected};

use bytemuck::cast;
use half::f16;

use self::floats::{
    dot_bf16, dot_f16, dot_f32, exp_sum, exps, mix_f16, mix_f32, mix_q4_0, mix_q8_0, quantize, quantize_x8,
    scores_f16, scores_f32, swiglu,
};
use self::vector::{of_f16, prefetch, to_f32};
use crate::Kernels;
use crate::blocks::{BlockQ3K, BlockQ4_0, BlockQ4K, BlockQ6K, BlockQ8, BlockQ8_0, BlockQ8x8};
use crate::panel::{PanelQ3K, PanelQ4_0, PanelQ4K, PanelQ6K, PanelQ8_0, SixBits, ThreeBits, sub_block};
use crate::scalar::{part_q4_0, part_q8_0};

/// The table, where this CPU has the instructions.
pub(crate) fn table() -> Option<&'static Kernels> {
    /// A plain function of one that needs the instructions.
    macro_rules! enter {
        ($function:ident($($argument:ident),*) $(, $unused:tt)?) => {
            // SAFETY: `table` gives `TABLE` away only where this CPU has NEON.
            |$($argument),* $(, $unused)?| unsafe { $function($($argument),*) }
        };
    }
    static TABLE: Kernels = Kernels {
        name: "neon",
        ahead: 0,
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
        panels_q8_0: enter!(panels_q8_0(panels, x, acc), _),
        panels_q4_0: enter!(panels_q4_0(panels, x, acc), _),
        panels_q3_k: enter!(panels_q3_k(panels, x, acc), _),
        panels_q4_k: enter!(panels_q4_k(panels, x, acc), _),
        panels_q6_k: enter!(panels_q6_k(panels, x, acc), _),
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
    is_aarch64_feature_detected!("neon").then_some(&TABLE)
}

quantized!("neon", dot, dots, dots_8, half_dots);

/// `sum` and the products of 16 weights with 16 activations.
#[target_feature(enable = "neon")]
#[inline]
fn dot(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    vpadalq_s16(sum, vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), w, x))
}

/// `start` and the integer products of sub-block `s` with the activations `qs`, for each of 4 rows.
#[target_feature(enable = "neon")]
#[inline]
fn dots(start: int32x4_t, nibbles: &[[int8x16_t; 4]; 2], qs: &[i8; 256], s: usize) -> int32x4_t {
    let xs: &[[[i32; 4]; 2]; 8] = bytemuck::cast_ref(qs);
    // Four sums of each row, of rows 0 and 1 and of rows 2 and 3.
    let mut sums = [vdupq_n_s16(0); 2];
    for (w, x) in nibbles.iter().zip(xs[s]) {
        for (w, x) in w.iter().zip(words(cast(x))) {
            sums[0] = vmlal_s8(sums[0], vget_low_s8(*w), vget_low_s8(x));
            sums[1] = vmlal_high_s8(sums[1], *w, x);
        }
    }
    vpadalq_s16(start, vpaddq_s16(sums[0], sums[1]))
}

/// [`dots`] for 16 columns: part `part` of the sub-block.
#[target_feature(enable = "neon")]
#[inline]
fn half_dots(
    start: int32x4_t,
    weights: &[[int8x16_t; 4]; 2],
    qs: &[i8; 256],
    s: usize,
    part: usize,
) -> int32x4_t {
    let xs: &[[[i32; 4]; 2]; 8] = bytemuck::cast_ref(qs);
    let mut sums = [vdupq_n_s16(0); 2];
    for (w, x) in weights[part].iter().zip(words(cast(xs[s][part]))) {
        sums[0] = vmlal_s8(sums[0], vget_low_s8(*w), vget_low_s8(x));
        sums[1] = vmlal_high_s8(sums[1], *w, x);
    }
    vpadalq_s16(start, vpaddq_s16(sums[0], sums[1]))
}

/// [`dots`] for weights of 8 bits, of which two products fit an `i16`.
#[target_feature(enable = "neon")]
#[inline]
fn dots_8(start: int32x4_t, weights: &[[int8x16_t; 4]; 2], qs: &[i8; 256], s: usize) -> int32x4_t {
    let xs: &[[[i32; 4]; 2]; 8] = bytemuck::cast_ref(qs);
    // Two sums of each row, of rows 0 and 1 and of rows 2 and 3.
    let mut sums = [vdupq_n_s32(0); 2];
    for (w, x) in weights.iter().zip(xs[s]) {
        let words = words(cast(x));
        for g in [0, 2] {
            let (w, x) = ([w[g], w[g + 1]], [words[g], words[g + 1]]);
            let low = vmull_s8(vget_low_s8(w[0]), vget_low_s8(x[0]));
            sums[0] = vpadalq_s16(sums[0], vmlal_s8(low, vget_low_s8(w[1]), vget_low_s8(x[1])));
            sums[1] = vpadalq_s16(sums[1], vmlal_high_s8(vmull_high_s8(w[0], x[0]), w[1], x[1]));
        }
    }
    vaddq_s32(start, vpaddq_s32(sums[0], sums[1]))
}

/// Each word of four activations, for all rows.
#[target_feature(enable = "neon")]
#[inline]
fn words(x: int32x4_t) -> [int8x16_t; 4] {
    [vdupq_laneq_s32::<0>(x), vdupq_laneq_s32::<1>(x), vdupq_laneq_s32::<2>(x), vdupq_laneq_s32::<3>(x)]
        .map(|word| vreinterpretq_s8_s32(word))
}

/// The 8-bit weights of rows `4 q..4 q + 4` of sub-block `s`: of its first four lines, then of the others.
#[target_feature(enable = "neon")]
#[inline]
fn weights<const T: usize>(qs: &[i8; 4096], s: usize, q: usize) -> [[int8x16_t; 4]; 2] {
    let lines: &[[[[[i8; 16]; 4]; 4]; 2]; 8] = bytemuck::cast_ref(qs);
    let mut out = [[vdupq_n_s8(0); 4]; 2];
    for part in 0..2 {
        for g in 0..4 {
            let quarter = &lines[s][part][g][q];
            if T == 1 && q == 0 {
                prefetch(quarter, 4096);
            }
            out[part][g] = cast(*quarter);
        }
    }
    out
}

/// The nibbles of rows `4 q..4 q + 4` of a sub-block, as bytes: the low ones of the four lines, then the high ones.
#[target_feature(enable = "neon")]
#[inline]
fn nibbles<const T: usize>(nibbles: &[u8; 256], q: usize) -> [[int8x16_t; 4]; 2] {
    let lines: &[[[u8; 16]; 4]; 4] = bytemuck::cast_ref(nibbles);
    let low = vdupq_n_u8(15);
    let mut out = [[vdupq_n_s8(0); 4]; 2];
    for g in 0..4 {
        let quarter = &lines[g][q];
        // A single row of activations is bound by memory; a block of them finds its panels in cache.
        if T == 1 && q == 0 {
            prefetch(quarter, 4096);
        }
        let bytes = cast(*quarter);
        out[0][g] = vreinterpretq_s8_u8(vandq_u8(bytes, low));
        out[1][g] = vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes));
    }
    out
}

/// The 3-bit numbers less 4 of rows `4 q..4 q + 4` of a sub-block, in the order of [`nibbles`].
#[target_feature(enable = "neon")]
#[inline]
fn three_bits<const T: usize>(bits: &ThreeBits, q: usize) -> [[int8x16_t; 4]; 2] {
    let low: &[[[u8; 16]; 4]; 2] = bytemuck::cast_ref(&bits.low);
    let high: &[[u8; 16]; 4] = bytemuck::cast_ref(&bits.high);
    if T == 1 && q == 0 {
        prefetch(bits, 4096);
    }
    let third = cast(high[q]);
    let mut out = [[vdupq_n_s8(0); 4]; 2];
    for part in 0..2 {
        let pairs = cast(low[part][q]);
        for (g, out) in out[part].iter_mut().enumerate() {
            // The pair to the lowest places, the third bit to the third.
            let pair = vandq_u8(vshlq_u8(pairs, vdupq_n_s8(-2 * g as i8)), vdupq_n_u8(3));
            let third = vandq_u8(vshlq_u8(third, vdupq_n_s8(2 - 4 * part as i8 - g as i8)), vdupq_n_u8(4));
            *out = vsubq_s8(vreinterpretq_s8_u8(vorrq_u8(pair, third)), vdupq_n_s8(4));
        }
    }
    out
}

/// The scales of a panel of `Q3_K`: of sixteen `s` and row `r` at `[s][r]`.
#[target_feature(enable = "neon")]
#[inline]
fn unpack_scales_q3_k(panel: &PanelQ3K) -> [[i8; 16]; 16] {
    let bytes: [uint8x16_t; 12] = cast(panel.scales);
    let mut out = [vdupq_n_s8(0); 16];
    for s in 0..16 {
        let lower = if s < 8 { vandq_u8(bytes[s], vdupq_n_u8(15)) } else { vshrq_n_u8::<4>(bytes[s - 8]) };
        let upper = vandq_u8(vshlq_u8(bytes[8 + s % 4], vdupq_n_s8(4 - 2 * (s / 4) as i8)), vdupq_n_u8(0x30));
        out[s] = vsubq_s8(vreinterpretq_s8_u8(vorrq_u8(lower, upper)), vdupq_n_s8(32));
    }
    cast(out)
}

/// The 6-bit numbers less 32 of rows `4 q..4 q + 4` of a sub-block, in the order of [`nibbles`].
#[target_feature(enable = "neon")]
#[inline]
fn six_bits<const T: usize>(bits: &SixBits, q: usize) -> [[int8x16_t; 4]; 2] {
    let lines: &[[[u8; 16]; 4]; 2] = bytemuck::cast_ref(&bits.high);
    let mut out = nibbles::<T>(&bits.low, q);
    for j in 0..2 {
        let quarter = &lines[j][q];
        if T == 1 && q == 0 {
            prefetch(quarter, 4096);
        }
        let bits = cast(*quarter);
        let upper = [vshlq_n_u8::<4>(bits), vshlq_n_u8::<2>(bits), bits, vshrq_n_u8::<2>(bits)];
        for i in 0..4 {
            let q = &mut out[i % 2][2 * j + i / 2];
            let upper = vreinterpretq_s8_u8(vandq_u8(upper[i], vdupq_n_u8(0x30)));
            *q = vsubq_s8(vorrq_s8(*q, upper), vdupq_n_s8(32));
        }
    }
    out
}

/// The scales of rows `4 q..4 q + 4`.
#[target_feature(enable = "neon")]
#[inline]
fn row_scales(scales: &[i8; 16], q: usize) -> int32x4_t {
    let quarters: &[[i8; 4]; 4] = bytemuck::cast_ref(scales);
    let [a, b, c, d] = quarters[q];
    vmovl_s16(vget_low_s16(vmovl_s8(cast([a, b, c, d, 0, 0, 0, 0]))))
}

/// Where the sums of a `Q4_0` panel begin: -8 times the sum of each sub-block's activations.
#[target_feature(enable = "neon")]
#[inline]
fn minus_eights(sums: [i16; 8]) -> [i32; 8] {
    let sums = vnegq_s16(cast(sums));
    cast([vshll_n_s16::<3>(vget_low_s16(sums)), vshll_high_n_s16::<3>(sums)])
}

/// The scales and the mins of a panel: of sub-block `s` and row `r` at `[s][r]`.
#[target_feature(enable = "neon")]
#[inline]
fn unpack_scales(panel: &PanelQ4K) -> ([uint8x16_t; 8], [uint8x16_t; 8]) {
    let (scales_lo, mins_lo): ([uint8x16_t; 4], [uint8x16_t; 4]) =
        (cast(panel.scales_lo), cast(panel.mins_lo));
    let hi: [uint8x16_t; 4] = cast(panel.hi);
    let six = vdupq_n_u8(63);
    let (mut scales, mut mins) = ([vdupq_n_u8(0); 8], [vdupq_n_u8(0); 8]);
    for s in 0..4 {
        // `vsliq_n_u8` puts the second number above the low 4 bits of the first one.
        scales[s] = vandq_u8(vsliq_n_u8::<4>(scales_lo[s], hi[s]), six);
        scales[s + 4] = vandq_u8(vsliq_n_u8::<4>(vshrq_n_u8::<4>(scales_lo[s]), vshrq_n_u8::<2>(hi[s])), six);
        mins[s] = vandq_u8(vsliq_n_u8::<4>(mins_lo[s], vshrq_n_u8::<4>(hi[s])), six);
        mins[s + 4] = vsliq_n_u8::<4>(vshrq_n_u8::<4>(mins_lo[s]), vshrq_n_u8::<6>(hi[s]));
    }
    (scales, mins)
}

/// Bytes as `i16`.
#[target_feature(enable = "neon")]
#[inline]
fn widen_mins(mins: [uint8x16_t; 8]) -> [[i16; 16]; 8] {
    let mut out = [[0; 16]; 8];
    for s in 0..8 {
        out[s] = cast([vmovl_u8(vget_low_u8(mins[s])), vmovl_high_u8(mins[s])]);
    }
    out
}

/// The sums of the mins of rows `4 q..4 q + 4`, each times the sum of its sub-block's activations.
#[target_feature(enable = "neon")]
#[inline]
fn min_dots(mins: &[[i16; 16]; 8], q: usize, x: &BlockQ8) -> int32x4_t {
    let mins: &[[[i16; 4]; 4]; 8] = bytemuck::cast_ref(mins);
    let (min, sums) = (|s: usize| cast(mins[s][q]), cast(x.sums));
    let sum = vmull_laneq_s16::<0>(min(0), sums);
    let sum = vmlal_laneq_s16::<1>(sum, min(1), sums);
    let sum = vmlal_laneq_s16::<2>(sum, min(2), sums);
    let sum = vmlal_laneq_s16::<3>(sum, min(3), sums);
    let sum = vmlal_laneq_s16::<4>(sum, min(4), sums);
    let sum = vmlal_laneq_s16::<5>(sum, min(5), sums);
    let sum = vmlal_laneq_s16::<6>(sum, min(6), sums);
    vmlal_laneq_s16::<7>(sum, min(7), sums)
}

/// What a `Q4_K` panel adds to 4 rows, but for the scale of the activations.
#[target_feature(enable = "neon")]
#[inline]
fn part_q4_k([d, dmin]: [float32x4_t; 2], sum: int32x4_t, min_sum: int32x4_t) -> float32x4_t {
    vsubq_f32(vmulq_f32(d, vcvtq_f32_s32(sum)), vmulq_f32(dmin, vcvtq_f32_s32(min_sum)))
}

/// For byte shuffles: bytes `4 q..4 q + 4`, each as an `i32`.
const ROWS: [[u8; 16]; 4] = {
    let mut rows = [[255; 16]; 4];
    let mut r = 0;
    while r < 16 {
        rows[r / 4][4 * (r % 4)] = r as u8;
        r += 1;
    }
    rows
};

/// The numbers `4 q..4 q + 4` in f32.
#[target_feature(enable = "neon")]
#[inline]
fn widen_rows(d: &[f16; 16], q: usize) -> float32x4_t {
    let d: &[[f16; 4]; 4] = bytemuck::cast_ref(d);
    vcvt_f32_f16(vreinterpret_f16_u16(cast(d[q])))
}

/// The products of eight sums with their scales, added up from the first to the last.
#[target_feature(enable = "neon")]
#[inline]
fn scaled_sum(d: [f16; 8], sums: [int32x4_t; 2]) -> f32 {
    in_order(scaled(d, sums))
}

#[target_feature(enable = "neon")]
#[inline]
fn scaled(d: [f16; 8], sums: [int32x4_t; 2]) -> [float32x4_t; 2] {
    let d = of_f16(d);
    [0, 1].map(|i| vmulq_f32(d[i], vcvtq_f32_s32(sums[i])))
}

/// The sum of eight lanes, from the first to the last.
#[target_feature(enable = "neon")]
#[inline]
fn in_order(v: [float32x4_t; 2]) -> f32 {
    cast::<_, [f32; 8]>(v).into_iter().fold(0.0, |acc, x| acc + x)
}

/// Lane `i` of the result is the sum of the lanes of vector `i`.
#[target_feature(enable = "neon")]
#[inline]
fn sum_each(v: [int32x4_t; 8]) -> [int32x4_t; 2] {
    let four = |i: usize| vpaddq_s32(vpaddq_s32(v[i], v[i + 1]), vpaddq_s32(v[i + 2], v[i + 3]));
    [four(0), four(4)]
}

/// `sum` and the sum of the lanes of each vector, times its scale.
#[target_feature(enable = "neon")]
#[inline]
fn scale_each(sum: int32x4_t, v: [int32x4_t; 8], scales: int16x8_t) -> int32x4_t {
    let [low, high] = sum_each(v);
    vmlaq_s32(vmlaq_s32(sum, low, vmovl_s16(vget_low_s16(scales))), high, vmovl_high_s16(scales))
}
