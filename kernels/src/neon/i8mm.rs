//! `dotprod` with `smmla` where it is faster: panels for blocks of at least 4 rows of activations.
//!
//! Registers: `smmla` multiplies 2 rows of 8 weights with 2 rows of 8 activations, side by side in a vector each. Of
//! its four sums two belong to the first row of weights and two to the second, so scales lie twice beside each other. What
//! a panel adds is sorted by rows of activations at its end.
//!
//! Where it departs from `dotprod`:
//! 1. Two lines' words of a row become 8 columns in a row by a `zip` of their nibbles.
//! 2. Activations are paired once a panel, for its four quarters.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::sync::LazyLock;

use bytemuck::cast;

use super::dotprod::{block_q4_0, block_q4_k, block_q8_0};
use super::*;

/// The table, where this CPU has the instructions.
pub(crate) fn table() -> Option<&'static Kernels> {
    static TABLE: LazyLock<Option<Kernels>> = LazyLock::new(|| {
        let dotprod = super::dotprod::table().filter(|_| is_aarch64_feature_detected!("i8mm"))?;
        Some(Kernels {
            name: "neon_i8mm",
            // SAFETY: `TABLE` holds these only where this CPU has NEON, `sdot` and `smmla`.
            panels_q8_0: |panels, x, acc, _| unsafe { panels_q8_0(panels, x, acc) },
            // SAFETY: as above.
            panels_q4_0: |panels, x, acc, _| unsafe { panels_q4_0(panels, x, acc) },
            // SAFETY: as above.
            panels_q4_k: |panels, x, acc, _| unsafe { panels_q4_k(panels, x, acc) },
            ..*dotprod
        })
    });
    TABLE.as_ref()
}

#[target_feature(enable = "neon,dotprod,i8mm")]
fn panels_q8_0(panels: &[PanelQ8_0], x: &[BlockQ8x8], acc: &mut [[f32; 16]]) {
    in_blocks!(panels, x, acc,
        8 => pairs_q8_0::<8, 4>, 4 => pairs_q8_0::<4, 2>, 2 => block_q8_0::<2, 1>, 1 => block_q8_0::<1, 4>);
}

#[target_feature(enable = "neon,dotprod,i8mm")]
fn panels_q4_0(panels: &[PanelQ4_0], x: &[BlockQ8], acc: &mut [[f32; 16]]) {
    in_blocks!(panels, x, acc,
        8 => pairs_q4_0::<8, 4>, 4 => pairs_q4_0::<4, 2>, 2 => block_q4_0::<2, 1>, 1 => block_q4_0::<1, 4>);
}

#[target_feature(enable = "neon,dotprod,i8mm")]
fn panels_q4_k(panels: &[PanelQ4K], x: &[BlockQ8], acc: &mut [[f32; 16]]) {
    in_blocks!(panels, x, acc,
        8 => pairs_q4_k::<8, 4>, 4 => pairs_q4_k::<4, 2>, 2 => block_q4_k::<2, 1>, 1 => block_q4_k::<1, 4>);
}

/// `T` rows of activations in `P` pairs.
#[target_feature(enable = "neon,dotprod,i8mm")]
#[inline]
fn pairs_q8_0<const T: usize, const P: usize>(
    panels: &[PanelQ8_0],
    x: [&[BlockQ8x8]; T],
    acc: &mut [[f32; 16]; T],
) {
    for (i, panel) in panels.iter().enumerate() {
        let x: [&BlockQ8x8; T] = std::array::from_fn(|t| &x[t][i]);
        let weights = |s, q| weights::<T>(&panel.qs, s, q);
        // Of two rows of weights the products with both rows of activations.
        let scaled = |p: usize, s: usize, dots| {
            let [a, b] = [x[2 * p].d[s], x[2 * p + 1].d[s]];
            vmulq_f32(dots, cast([a, b, a, b]))
        };
        scaled_pairs::<T, P>(&panel.d, weights, x.map(|x| &x.qs), [[0; 8]; T], scaled, |_, part| part, acc);
    }
}

/// The same for `Q4_0`.
#[target_feature(enable = "neon,dotprod,i8mm")]
#[inline]
fn pairs_q4_0<const T: usize, const P: usize>(
    panels: &[PanelQ4_0],
    x: [&[BlockQ8]; T],
    acc: &mut [[f32; 16]; T],
) {
    for (i, panel) in panels.iter().enumerate() {
        let x: [&BlockQ8; T] = std::array::from_fn(|t| &x[t][i]);
        let starts = x.map(|x| minus_eights(x.sums));
        let weights = |s, q| nibbles::<T>(sub_block(&panel.qs, s), q);
        let scaled = |t: usize, part| vmulq_n_f32(part, x[t].d);
        scaled_pairs::<T, P>(&panel.d, weights, x.map(|x| &x.qs), starts, |_, _, dots| dots, scaled, acc);
    }
}

/// A panel with a scale for each sub-block `s`, whose integer sums begin at `starts[t][s]`. `each` brings the scales of activations to what sub-block `s` gives
/// to pair `p`, `(p, s, dots)`, or `all` brings them to what the panel gives to row `t`, `(t, part)`.
#[target_feature(enable = "neon,dotprod,i8mm")]
#[inline]
fn scaled_pairs<const T: usize, const P: usize>(
    d: &[[f16; 16]; 8],
    weights: impl Fn(usize, usize) -> [[int8x16_t; 4]; 2],
    x: [&[i8; 256]; T],
    starts: [[i32; 8]; T],
    each: impl Fn(usize, usize, float32x4_t) -> float32x4_t,
    all: impl Fn(usize, float32x4_t) -> float32x4_t,
    acc: &mut [[f32; 16]; T],
) {
    let acc: &mut [[[f32; 4]; 4]; T] = bytemuck::cast_mut(acc);
    let mut pairs = [[[vdupq_n_s8(0); 4]; P]; 8];
    let mut start_pairs = [[[0; 2]; P]; 8];
    for p in 0..P {
        pair_up(&mut pairs, p, x[2 * p], x[2 * p + 1]);
        for s in 0..8 {
            start_pairs[s][p] = [starts[2 * p][s], starts[2 * p + 1][s]];
        }
    }
    for q in 0..4 {
        let mut part = [[vdupq_n_f32(0.0); 2]; P];
        for s in 0..8 {
            let d = widen_rows(&d[s], q);
            let d = [vzip1q_f32(d, d), vzip2q_f32(d, d)];
            let w = rows_in_pairs(&weights(s, q));
            for p in 0..P {
                let start = vreinterpretq_s32_s64(vdupq_n_s64(cast(start_pairs[s][p])));
                for h in 0..2 {
                    let dots = vmulq_f32(d[h], vcvtq_f32_s32(dots(start, &w[h], &pairs[s][p])));
                    part[p][h] = vaddq_f32(part[p][h], each(p, s, dots));
                }
            }
        }
        for (p, [first, second]) in part.into_iter().enumerate() {
            let rows = [vuzp1q_f32(first, second), vuzp2q_f32(first, second)];
            for (t, row) in (2 * p..).zip(rows) {
                let acc = &mut acc[t][q];
                *acc = cast(vaddq_f32(cast(*acc), all(t, row)));
            }
        }
    }
}

/// The same for `Q4_K`.
#[target_feature(enable = "neon,dotprod,i8mm")]
#[inline]
fn pairs_q4_k<const T: usize, const P: usize>(
    panels: &[PanelQ4K],
    x: [&[BlockQ8]; T],
    acc: &mut [[f32; 16]; T],
) {
    let acc: &mut [[[f32; 4]; 4]; T] = bytemuck::cast_mut(acc);
    for (i, panel) in panels.iter().enumerate() {
        let (scales, mins) = unpack_scales(panel);
        let mins = widen_mins(mins);
        let mut pairs = [[[vdupq_n_s8(0); 4]; P]; 8];
        for p in 0..P {
            pair_up(&mut pairs, p, &x[2 * p][i].qs, &x[2 * p + 1][i].qs);
        }
        for q in 0..4 {
            let mut sum = [[vdupq_n_s32(0); 2]; P];
            for s in 0..8 {
                let scale = vreinterpretq_s32_u8(vqtbl1q_u8(scales[s], cast(ROWS[q])));
                let scale = [vzip1q_s32(scale, scale), vzip2q_s32(scale, scale)];
                let w = rows_in_pairs(&nibbles::<T>(sub_block(&panel.qs, s), q));
                for p in 0..P {
                    for h in 0..2 {
                        let dots = dots(vdupq_n_s32(0), &w[h], &pairs[s][p]);
                        sum[p][h] = vmlaq_s32(sum[p][h], dots, scale[h]);
                    }
                }
            }
            let d = [widen_rows(&panel.d, q), widen_rows(&panel.dmin, q)];
            for p in 0..P {
                let sums = [vuzp1q_s32(sum[p][0], sum[p][1]), vuzp2q_s32(sum[p][0], sum[p][1])];
                for j in 0..2 {
                    let (acc, x) = (&mut acc[2 * p + j][q], &x[2 * p + j][i]);
                    let part = part_q4_k(d, sums[j], min_dots(&mins, q, x));
                    *acc = cast(vaddq_f32(cast(*acc), vmulq_n_f32(part, x.d)));
                }
            }
        }
    }
}

/// Columns `8 k..8 k + 8` of sub-block `s` of two rows of activations, side by side at `[s][p][k]`.
#[target_feature(enable = "neon")]
#[inline]
fn pair_up<const P: usize>(pairs: &mut [[[int8x16_t; 4]; P]; 8], p: usize, a: &[i8; 256], b: &[i8; 256]) {
    let halves: [&[[[i64; 2]; 2]; 8]; 2] = [bytemuck::cast_ref(a), bytemuck::cast_ref(b)];
    for s in 0..8 {
        for part in 0..2 {
            let [a, b] = halves.map(|x| cast(x[s][part]));
            pairs[s][p][2 * part] = vreinterpretq_s8_s64(vzip1q_s64(a, b));
            pairs[s][p][2 * part + 1] = vreinterpretq_s8_s64(vzip2q_s64(a, b));
        }
    }
}

/// Columns `8 k..8 k + 8` of rows 0 and 1 at `[0][k]`, of rows 2 and 3 at `[1][k]`.
#[target_feature(enable = "neon")]
#[inline]
fn rows_in_pairs(nibbles: &[[int8x16_t; 4]; 2]) -> [[int8x16_t; 4]; 2] {
    let mut rows = [[vdupq_n_s8(0); 4]; 2];
    for k in 0..4 {
        let [a, b] = [0, 1].map(|i| vreinterpretq_s32_s8(nibbles[k / 2][2 * (k % 2) + i]));
        rows[0][k] = vreinterpretq_s8_s32(vzip1q_s32(a, b));
        rows[1][k] = vreinterpretq_s8_s32(vzip2q_s32(a, b));
    }
    rows
}

/// `start` and the products of 2 rows of 32 weights with 2 rows of 32 activations.
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn dots(start: int32x4_t, w: &[int8x16_t; 4], x: &[int8x16_t; 4]) -> int32x4_t {
    let mut sum = start;
    for k in 0..4 {
        sum = smmla(sum, w[k], x[k]);
    }
    sum
}

/// `sum` and the products of 2 rows of 8 weights with 2 rows of 8 activations.
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn smmla(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: reads and writes the registers that it names; the CPU has it, as this function's features say.
    unsafe {
        asm!("smmla {0:v}.4s, {1:v}.16b, {2:v}.16b", inlateout(vreg) sum, in(vreg) w, in(vreg) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}
