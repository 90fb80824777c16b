//! The operations of `scalar` on 512-bit vectors (AVX-512 F, BW and VNNI), where they are faster than `avx2`: the panels,
//! and attention (`attention`). Rows of weights are bound by memory either way and stay with `avx2`.
//!
//! Registers: a line is a vector, 16 rows x 4 columns, beside one word of 4 activations broadcast to all rows.
//! `vpdpbusd` adds the four products of each row to its `i32` lane; sums, scales and results stay in that lane.
//!
//! Where it departs from the scalar text:
//! 1. `vpdpbusd` multiplies unsigned with signed bytes. Nibbles are unsigned; the -8 of `Q4_0` is where its sums begin. To
//!    the weights of `Q8_0` 128 is added, and their sums begin at -128 times that of the activations.
//! 2. `Q3_K` and `Q6_K` stay unsigned too: their sums begin at -4 and -32 times those of sixteen activations.
//! 3. The eight vectors of a sub-block stay in registers while up to eight rows of activations pass.

mod attention;

use std::arch::asm;
use std::arch::x86_64::*;

use bytemuck::cast;
use half::f16;

use self::attention::{mix_f16, mix_f32, mix_q4_0, mix_q8_0, scores_f16, scores_f32};
use crate::Kernels;
use crate::avx2::panels::{Walk, prefetch, prefetch_header, product, starts, unpack_scales_q3_k};
use crate::blocks::{BlockQ8, BlockQ8x8};
use crate::panel::{PanelQ3K, PanelQ4_0, PanelQ4K, PanelQ6K, PanelQ8_0, SixBits, ThreeBits, sub_block};

/// The table, where this CPU has the instructions.
pub(crate) fn table() -> Option<&'static Kernels> {
    static TABLE: std::sync::LazyLock<Option<Kernels>> = std::sync::LazyLock::new(|| {
        let here = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni");
        let avx2 = super::avx2::table().filter(|_| here)?;
        Some(Kernels {
            name: "avx512",
            // SAFETY: `TABLE` holds these only where this CPU has AVX-512 F, BW and VNNI.
            panels_q8_0: |panels, x, acc, ahead| unsafe { panels_q8_0(panels, x, acc, ahead) },
            // SAFETY: as above.
            panels_q4_0: |panels, x, acc, ahead| unsafe { panels_q4_0(panels, x, acc, ahead) },
            // SAFETY: as above.
            panels_q3_k: |panels, x, acc, ahead| unsafe { panels_q3_k(panels, x, acc, ahead) },
            // SAFETY: as above.
            panels_q4_k: |panels, x, acc, ahead| unsafe { panels_q4_k(panels, x, acc, ahead) },
            // SAFETY: as above.
            panels_q6_k: |panels, x, acc, ahead| unsafe { panels_q6_k(panels, x, acc, ahead) },
            // SAFETY: as above.
            scores_f32: |q, dim, keys, scores| unsafe { scores_f32(q, dim, keys, scores) },
            // SAFETY: as above.
            scores_f16: |q, dim, keys, scores| unsafe { scores_f16(q, dim, keys, scores) },
            // SAFETY: as above.
            mix_f32: |p, dim, values, y| unsafe { mix_f32(p, dim, values, y) },
            // SAFETY: as above.
            mix_f16: |p, dim, values, y| unsafe { mix_f16(p, dim, values, y) },
            // SAFETY: as above.
            mix_q8_0: |p, dim, values, y| unsafe { mix_q8_0(p, dim, values, y) },
            // SAFETY: as above.
            mix_q4_0: |p, dim, values, y| unsafe { mix_q4_0(p, dim, values, y) },
            ..*avx2
        })
    });
    TABLE.as_ref()
}

product!("avx512f,avx512bw,avx512vnni", panels_q8_0(PanelQ8_0, BlockQ8x8) by block_q8_0, [8, 4, 2], _MM_HINT_T1);
product!("avx512f,avx512bw,avx512vnni", panels_q4_0(PanelQ4_0, BlockQ8) by block_q4_0, [8, 4, 2], _MM_HINT_T1);
product!("avx512f,avx512bw,avx512vnni", panels_q3_k(PanelQ3K, BlockQ8) by block_q3_k, [8, 4, 2], _MM_HINT_T1);
product!("avx512f,avx512bw,avx512vnni", panels_q4_k(PanelQ4K, BlockQ8) by block_q4_k, [8, 4, 2], _MM_HINT_T1);
product!("avx512f,avx512bw,avx512vnni", panels_q6_k(PanelQ6K, BlockQ8) by block_q6_k, [8, 4, 2], _MM_HINT_T1);

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn block_q8_0<const T: usize, const HINT: i32>(
    walk: Walk<'_, PanelQ8_0>,
    x: [&[BlockQ8x8]; T],
    acc: &mut [[f32; 16]; T],
) {
    let ahead = ahead::<T, _>(&walk);
    for (i, panel) in walk.panels.iter().enumerate() {
        prefetch_header::<HINT, _>(panel, ahead);
        let lines: &[[[i8; 64]; 8]; 8] = bytemuck::cast_ref(&panel.qs);
        let mut part = [_mm512_setzero_ps(); T];
        for (s, d) in panel.d.iter().enumerate() {
            let mut unsigned = [_mm512_setzero_si512(); 8];
            for g in 0..8 {
                prefetch::<HINT, _>(&lines[s][g], ahead);
                unsigned[g] = _mm512_xor_si512(cast(lines[s][g]), _mm512_set1_epi8(-128));
            }
            let d = widen(d);
            let mut words = [&[0; 8]; T];
            let mut starts = [_mm512_setzero_si512(); T];
            for t in 0..T {
                (words[t], starts[t]) = (words_of(&x[t][i].qs, s), _mm512_set1_epi32(x[t][i].starts[s]));
            }
            let dots = dots(unsigned, words, starts);
            for t in 0..T {
                let dot = _mm512_mul_ps(d, _mm512_cvtepi32_ps(dots[t]));
                part[t] = _mm512_add_ps(part[t], _mm512_mul_ps(dot, _mm512_set1_ps(x[t][i].d[s])));
            }
        }
        // In memory between panels: registers are for what a panel adds.
        for t in 0..T {
            acc[t] = cast(_mm512_add_ps(cast(acc[t]), part[t]));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn block_q4_0<const T: usize, const HINT: i32>(
    walk: Walk<'_, PanelQ4_0>,
    x: [&[BlockQ8]; T],
    acc: &mut [[f32; 16]; T],
) {
    let (mut sums, ahead) = (load(acc), ahead::<T, _>(&walk));
    for (i, panel) in walk.panels.iter().enumerate() {
        prefetch_header::<HINT, _>(panel, ahead);
        let mut part = [_mm512_setzero_ps(); T];
        for (s, d) in panel.d.iter().enumerate() {
            let d = widen(d);
            let mut words = [&[0; 8]; T];
            let mut starts = [_mm512_setzero_si512(); T];
            for t in 0..T {
                let start = -8 * i32::from(x[t][i].sums[s]);
                (words[t], starts[t]) = (words_of(&x[t][i].qs, s), _mm512_set1_epi32(start));
            }
            let dots = dots(nibbles::<HINT>(sub_block(&panel.qs, s), ahead), words, starts);
            for t in 0..T {
                part[t] = _mm512_add_ps(part[t], _mm512_mul_ps(d, _mm512_cvtepi32_ps(dots[t])));
            }
        }
        for t in 0..T {
            sums[t] = _mm512_add_ps(sums[t], _mm512_mul_ps(part[t], _mm512_set1_ps(x[t][i].d)));
        }
    }
    store(sums, acc);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn block_q4_k<const T: usize, const HINT: i32>(
    walk: Walk<'_, PanelQ4K>,
    x: [&[BlockQ8]; T],
    acc: &mut [[f32; 16]; T],
) {
    let (mut sums, ahead) = (load(acc), ahead::<T, _>(&walk));
    for (i, panel) in walk.panels.iter().enumerate() {
        prefetch_header::<HINT, _>(panel, ahead);
        let (scales, mins) = unpack_scales(panel);
        let mut sum = [_mm512_setzero_si512(); T];
        for (s, scale) in scales.into_iter().enumerate() {
            let scale = _mm512_cvtepu8_epi32(cast(scale));
            let mut words = [&[0; 8]; T];
            for t in 0..T {
                words[t] = words_of(&x[t][i].qs, s);
            }
            let weights = nibbles::<HINT>(sub_block(&panel.qs, s), ahead);
            let dots = dots(weights, words, [_mm512_setzero_si512(); T]);
            for t in 0..T {
                sum[t] = _mm512_add_epi32(sum[t], _mm512_mullo_epi32(dots[t], scale));
            }
        }
        let mut min_sum = [_mm512_setzero_si512(); T];
        for s in 0..4 {
            // Each row's mins of two neighbouring sub-blocks, side by side as their sums are.
            let (min, next) =
                (_mm512_cvtepu8_epi32(cast(mins[2 * s])), _mm512_cvtepu8_epi32(cast(mins[2 * s + 1])));
            let pairs = _mm512_or_si512(min, _mm512_slli_epi32::<16>(next));
            for t in 0..T {
                min_sum[t] = add_pairs(min_sum[t], pairs, &sum_pairs(&x[t][i])[s]);
            }
        }
        let (d, dmin) = (widen(&panel.d), widen(&panel.dmin));
        for t in 0..T {
            let dot = _mm512_mul_ps(d, _mm512_cvtepi32_ps(sum[t]));
            let min_dot = _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(min_sum[t]));
            let part = _mm512_mul_ps(_mm512_sub_ps(dot, min_dot), _mm512_set1_ps(x[t][i].d));
            sums[t] = _mm512_add_ps(sums[t], part);
        }
    }
    store(sums, acc);
}

/// The block function of panels that have a scale for each 16 columns and row: `$bits` makes bytes of theirs, which are `$offset` too large.
macro_rules! sixteens {
    ($block:ident($panel:ty), $offset:literal, $bits:ident, $here:ident => $scales:expr) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        #[inline]
        fn $block<const T: usize, const HINT: i32>(
            walk: Walk<'_, $panel>,
            x: [&[BlockQ8]; T],
            acc: &mut [[f32; 16]; T],
        ) {
            let (mut sums, ahead) = (load(acc), ahead::<T, _>(&walk));
            for (i, $here) in walk.panels.iter().enumerate() {
                prefetch_header::<HINT, _>($here, ahead);
                let scales: &[[i8; 16]; 16] = $scales;
                let mut begin = [[[[0; 4]; 2]; 2]; T];
                let mut words = [&[[[0; 4]; 2]; 8]; T];
                for t in 0..T {
                    (begin[t], words[t]) = (starts::<$offset>(&x[t][i]), bytemuck::cast_ref(&x[t][i].qs));
                }
                let mut sum = [_mm512_setzero_si512(); T];
                for s in 0..8 {
                    let q = $bits::<HINT>(&$here.sub_blocks[s], ahead);
                    for part in 0..2 {
                        let mut dots = [_mm512_setzero_si512(); T];
                        for t in 0..T {
                            dots[t] = _mm512_set1_epi32(begin[t][s / 4][part][s % 4]);
                        }
                        for g in 0..4 {
                            for t in 0..T {
                                let x = _mm512_set1_epi32(words[t][s][part][g]);
                                dots[t] = _mm512_dpbusd_epi32(dots[t], q[4 * part + g], x);
                            }
                        }
                        let scale = _mm512_cvtepi8_epi32(cast(scales[2 * s + part]));
                        for t in 0..T {
                            sum[t] = _mm512_add_epi32(sum[t], _mm512_mullo_epi32(dots[t], scale));
                        }
                    }
                }
                let d = widen(&$here.d);
                for t in 0..T {
                    let part = _mm512_mul_ps(d, _mm512_cvtepi32_ps(sum[t]));
                    sums[t] = _mm512_add_ps(sums[t], _mm512_mul_ps(part, _mm512_set1_ps(x[t][i].d)));
                }
            }
            store(sums, acc);
        }
    };
}
sixteens!(block_q3_k(PanelQ3K), 4, three_bits, panel => &unpack_scales_q3_k(panel));
sixteens!(block_q6_k(PanelQ6K), 32, six_bits, panel => &panel.scales);

// Loops, where `map` would be a call: it is compiled without these instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn load<const T: usize>(acc: &[[f32; 16]; T]) -> [__m512; T] {
    let mut sums = [_mm512_setzero_ps(); T];
    for t in 0..T {
        sums[t] = cast(acc[t]);
    }
    sums
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn store<const T: usize>(sums: [__m512; T], acc: &mut [[f32; 16]; T]) {
    for t in 0..T {
        acc[t] = cast(sums[t]);
    }
}

/// The nibbles of a sub-block, as bytes, in the order of the activations' words: of each line the low ones, then of
/// each line the high ones.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn nibbles<const HINT: i32>(nibbles: &[u8; 256], ahead: usize) -> [__m512i; 8] {
    let lines: &[[u8; 64]; 4] = bytemuck::cast_ref(nibbles);
    let low = _mm512_set1_epi8(15);
    let mut out = [_mm512_setzero_si512(); 8];
    for g in 0..4 {
        prefetch::<HINT, _>(&lines[g], ahead);
        let bytes = cast(lines[g]);
        out[g] = _mm512_and_si512(bytes, low);
        out[g + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low);
    }
    out
}

/// The 6-bit numbers of a sub-block, as bytes, in the order of [`nibbles`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn six_bits<const HINT: i32>(bits: &SixBits, ahead: usize) -> [__m512i; 8] {
    let lines: &[[u8; 64]; 2] = bytemuck::cast_ref(&bits.high);
    let mut out = nibbles::<HINT>(&bits.low, ahead);
    for j in 0..2 {
        prefetch::<HINT, _>(&lines[j], ahead);
        let bits: __m512i = cast(lines[j]);
        let upper =
            [_mm512_slli_epi16::<4>(bits), _mm512_slli_epi16::<2>(bits), bits, _mm512_srli_epi16::<2>(bits)];
        for i in 0..4 {
            let q = &mut out[2 * j + i / 2 + 4 * (i % 2)];
            *q = _mm512_or_si512(*q, _mm512_and_si512(upper[i], _mm512_set1_epi8(0x30)));
        }
    }
    out
}

/// The 3-bit numbers of a sub-block, as bytes, in the order of [`nibbles`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn three_bits<const HINT: i32>(bits: &ThreeBits, ahead: usize) -> [__m512i; 8] {
    prefetch::<HINT, _>(bits, ahead);
    let lines: [__m512i; 2] = cast(bits.low);
    let third: __m512i = cast(bits.high);
    let thirds = [
        _mm512_slli_epi16::<2>(third),
        _mm512_slli_epi16::<1>(third),
        third,
        _mm512_srli_epi16::<1>(third),
        _mm512_srli_epi16::<2>(third),
        _mm512_srli_epi16::<3>(third),
        _mm512_srli_epi16::<4>(third),
        _mm512_srli_epi16::<5>(third),
    ];
    let mut out = [_mm512_setzero_si512(); 8];
    for j in 0..2 {
        let line = lines[j];
        let pairs =
            [line, _mm512_srli_epi16::<2>(line), _mm512_srli_epi16::<4>(line), _mm512_srli_epi16::<6>(line)];
        for g in 0..4 {
            let pair = _mm512_and_si512(pairs[g], _mm512_set1_epi8(3));
            let third = _mm512_and_si512(thirds[4 * j + g], _mm512_set1_epi8(4));
            out[4 * j + g] = _mm512_or_si512(pair, third);
        }
    }
    out
}

/// The activations of sub-block `s`, four to a word.
#[inline]
fn words_of(qs: &[i8; 256], s: usize) -> &[i32; 8] {
    let sub_blocks: &[[i32; 8]; 8] = bytemuck::cast_ref(qs);
    &sub_blocks[s]
}

/// `starts` and the integer products of a sub-block, whose 8 x 4 columns are `w`, with T rows of activations, for each of
/// 16 rows. The rows of activations take turns, so that no product waits for the one before it; a single row has two sums for that.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn dots<const T: usize>(w: [__m512i; 8], words: [&[i32; 8]; T], starts: [__m512i; T]) -> [__m512i; T] {
    let mut sums = [starts, [_mm512_setzero_si512(); T]];
    for g in 0..8 {
        let sums = &mut sums[if T == 1 { g % 2 } else { 0 }];
        for t in 0..T {
            sums[t] = _mm512_dpbusd_epi32(sums[t], w[g], _mm512_set1_epi32(words[t][g]));
        }
    }
    if T == 1 { [_mm512_add_epi32(sums[0][0], sums[1][0]); T] } else { sums[0] }
}

/// `sum` and the products of pairs with one pair, added in their row's lane. (The compiler makes three instructions of the
/// intrinsic, and the adders of this Zen 4 then take longer than its multipliers.)
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn add_pairs(mut sum: __m512i, pairs: __m512i, pair: &i32) -> __m512i {
    // SAFETY: reads the four bytes of `pair` and the registers that it names, and writes `sum`; the CPU has it, as this
    // function's features say.
    unsafe {
        asm!("vpdpwssd {0}, {1}, dword ptr [{2}]{{1to16}}", inout(zmm_reg) sum, in(zmm_reg) pairs, in(reg) pair,
            options(pure, readonly, nostack, preserves_flags));
    }
    sum
}

/// The sums of the activations of two neighbouring sub-blocks, two to a word.
#[inline]
fn sum_pairs(x: &BlockQ8) -> &[i32; 4] {
    bytemuck::cast_ref(&x.sums)
}

/// The scales and the mins of a panel: of sub-block `s` and row `r` at `[s][r]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn unpack_scales(panel: &PanelQ4K) -> ([[u8; 16]; 8], [[u8; 16]; 8]) {
    let (low, high) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
    let (scales, mins, hi): (__m512i, __m512i, __m512i) =
        (cast(panel.scales_lo), cast(panel.mins_lo), cast(panel.hi));
    let join = |lo, hi| _mm512_or_si512(_mm512_and_si512(lo, low), _mm512_and_si512(hi, high));
    let scales = [
        join(scales, _mm512_slli_epi16::<4>(hi)),
        join(_mm512_srli_epi16::<4>(scales), _mm512_slli_epi16::<2>(hi)),
    ];
    let mins = [join(mins, hi), join(_mm512_srli_epi16::<4>(mins), _mm512_srli_epi16::<2>(hi))];
    (cast(scales), cast(mins))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn widen(d: &[f16; 16]) -> __m512 {
    _mm512_cvtph_ps(cast(*d))
}

/// How far ahead weights are asked for: a single row of activations, which is bound by memory, as far as the caller says; blocks of
/// them have time, and want the next row of panels in the L2 cache.
#[inline]
fn ahead<const T: usize, P>(walk: &Walk<'_, P>) -> usize {
    if T == 1 { walk.ahead } else { size_of_val(walk.panels).max(4096) }
}
