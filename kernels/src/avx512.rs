//! The operations of `scalar` on 512-bit vectors (AVX-512 F, BW and VNNI), where they are faster than `avx2`: the panels.
//! Rows of weights are bound by memory either way and stay with `avx2`.
//!
//! Registers: a line is a vector, 16 rows x 4 columns, beside one word of 4 activations broadcast to all rows.
//! `vpdpbusd` adds the four products of each row to its `i32` lane; sums, scales and results stay in that lane.
//!
//! Where it departs from the scalar text:
//! 1. `vpdpbusd` multiplies unsigned with signed bytes. Nibbles are unsigned; the -8 of `Q4_0` is where its sums begin. To
//!    the weights of `Q8_0` 128 is added, and their sums begin at -128 times that of the activations.
//! 2. The eight vectors of a sub-block stay in registers while up to eight rows of activations pass.

use std::arch::x86_64::*;

use bytemuck::cast;
use half::f16;

use crate::Kernels;
use crate::blocks::BlockQ8;
use crate::panel::{PanelQ4_0, PanelQ4K, PanelQ8_0};

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
            panels_q8_0: |panels, x, acc| unsafe { panels_q8_0(panels, x, acc) },
            // SAFETY: as above.
            panels_q4_0: |panels, x, acc| unsafe { panels_q4_0(panels, x, acc) },
            // SAFETY: as above.
            panels_q4_k: |panels, x, acc| unsafe { panels_q4_k(panels, x, acc) },
            ..*avx2
        })
    });
    TABLE.as_ref()
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn panels_q8_0(panels: &[PanelQ8_0], x: &[BlockQ8], acc: &mut [[f32; 16]]) {
    in_blocks!(panels, x, acc, 8 => block_q8_0::<8>, 4 => block_q8_0::<4>, 2 => block_q8_0::<2>, 1 => block_q8_0::<1>);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn panels_q4_0(panels: &[PanelQ4_0], x: &[BlockQ8], acc: &mut [[f32; 16]]) {
    in_blocks!(panels, x, acc, 8 => block_q4_0::<8>, 4 => block_q4_0::<4>, 2 => block_q4_0::<2>, 1 => block_q4_0::<1>);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn panels_q4_k(panels: &[PanelQ4K], x: &[BlockQ8], acc: &mut [[f32; 16]]) {
    in_blocks!(panels, x, acc, 8 => block_q4_k::<8>, 4 => block_q4_k::<4>, 2 => block_q4_k::<2>, 1 => block_q4_k::<1>);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn block_q8_0<const T: usize>(panels: &[PanelQ8_0], x: [&[BlockQ8]; T], acc: &mut [[f32; 16]; T]) {
    let mut sums: [__m512; T] = acc.map(cast);
    for (i, panel) in panels.iter().enumerate() {
        if T == 1 {
            prefetch_header(panel);
        }
        let lines: &[[[i8; 64]; 8]; 8] = bytemuck::cast_ref(&panel.qs);
        let mut part = [_mm512_setzero_ps(); T];
        for (s, d) in panel.d.iter().enumerate() {
            let mut unsigned = [_mm512_setzero_si512(); 8];
            for g in 0..8 {
                if T == 1 {
                    prefetch(&lines[s][g]);
                }
                unsigned[g] = _mm512_xor_si512(cast(lines[s][g]), _mm512_set1_epi8(-128));
            }
            let d = widen(d);
            for t in 0..T {
                let xs: &[[[i8; 4]; 8]; 8] = bytemuck::cast_ref(&x[t][i].qs);
                let mut dots = [_mm512_set1_epi32(-128 * i32::from(x[t][i].sums[s])), _mm512_setzero_si512()];
                for g in 0..8 {
                    let x = _mm512_set1_epi32(cast(xs[s][g]));
                    dots[g % 2] = _mm512_dpbusd_epi32(dots[g % 2], unsigned[g], x);
                }
                let dots = _mm512_cvtepi32_ps(_mm512_add_epi32(dots[0], dots[1]));
                part[t] = _mm512_add_ps(part[t], _mm512_mul_ps(d, dots));
            }
        }
        for t in 0..T {
            sums[t] = _mm512_add_ps(sums[t], _mm512_mul_ps(part[t], _mm512_set1_ps(x[t][i].d)));
        }
    }
    *acc = sums.map(cast);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn block_q4_0<const T: usize>(panels: &[PanelQ4_0], x: [&[BlockQ8]; T], acc: &mut [[f32; 16]; T]) {
    let mut sums: [__m512; T] = acc.map(cast);
    for (i, panel) in panels.iter().enumerate() {
        if T == 1 {
            prefetch_header(panel);
        }
        let mut part = [_mm512_setzero_ps(); T];
        for (s, d) in panel.d.iter().enumerate() {
            let d = widen(d);
            let nibbles = nibbles::<T>(&panel.qs, s);
            for t in 0..T {
                let start = _mm512_set1_epi32(-8 * i32::from(x[t][i].sums[s]));
                let dots = _mm512_cvtepi32_ps(dots(start, &nibbles, &x[t][i], s));
                part[t] = _mm512_add_ps(part[t], _mm512_mul_ps(d, dots));
            }
        }
        for t in 0..T {
            sums[t] = _mm512_add_ps(sums[t], _mm512_mul_ps(part[t], _mm512_set1_ps(x[t][i].d)));
        }
    }
    *acc = sums.map(cast);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn block_q4_k<const T: usize>(panels: &[PanelQ4K], x: [&[BlockQ8]; T], acc: &mut [[f32; 16]; T]) {
    let mut sums: [__m512; T] = acc.map(cast);
    for (i, panel) in panels.iter().enumerate() {
        if T == 1 {
            prefetch_header(panel);
        }
        let (scales, mins) = unpack_scales(panel);
        let mut sum = [_mm512_setzero_si512(); T];
        for (s, scale) in scales.into_iter().enumerate() {
            let scale = _mm512_cvtepu8_epi32(cast(scale));
            let nibbles = nibbles::<T>(&panel.qs, s);
            for t in 0..T {
                let dots = dots(_mm512_setzero_si512(), &nibbles, &x[t][i], s);
                sum[t] = _mm512_add_epi32(sum[t], _mm512_mullo_epi32(dots, scale));
            }
        }
        let mut min_sum = [_mm512_setzero_si512(); T];
        for s in 0..4 {
            // Each row's mins of sub-blocks s and s + 4, side by side.
            let (min, min_4) = (_mm512_cvtepu8_epi32(cast(mins[s])), _mm512_cvtepu8_epi32(cast(mins[s + 4])));
            let pairs = _mm512_or_si512(min, _mm512_slli_epi32::<16>(min_4));
            for t in 0..T {
                let two = _mm512_set1_epi32(cast([x[t][i].sums[s], x[t][i].sums[s + 4]]));
                min_sum[t] = _mm512_dpwssd_epi32(min_sum[t], pairs, two);
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
    *acc = sums.map(cast);
}

/// The nibbles of sub-block `s`, as bytes: of line `g` the low ones, then the high ones.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn nibbles<const T: usize>(qs: &[u8; 2048], s: usize) -> [[__m512i; 2]; 4] {
    let lines: &[[[u8; 64]; 4]; 8] = bytemuck::cast_ref(qs);
    let low = _mm512_set1_epi8(15);
    let mut out = [[_mm512_setzero_si512(); 2]; 4];
    for g in 0..4 {
        // A single row of activations is bound by memory; a block of them finds its panels in cache.
        if T == 1 {
            prefetch(&lines[s][g]);
        }
        let bytes = cast(lines[s][g]);
        out[g] = [_mm512_and_si512(bytes, low), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low)];
    }
    out
}

/// `start` and the integer products of sub-block `s` with one row of activations, for each of 16 rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn dots(start: __m512i, nibbles: &[[__m512i; 2]; 4], x: &BlockQ8, s: usize) -> __m512i {
    let xs: &[[[[i8; 4]; 4]; 2]; 8] = bytemuck::cast_ref(&x.qs);
    let mut sums = [start, _mm512_setzero_si512()];
    for g in 0..4 {
        for part in 0..2 {
            sums[part] =
                _mm512_dpbusd_epi32(sums[part], nibbles[g][part], _mm512_set1_epi32(cast(xs[s][part][g])));
        }
    }
    _mm512_add_epi32(sums[0], sums[1])
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

/// Asks for the weights 4 KiB further on: a file mapping of small pages is read at full speed only so.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn prefetch<T>(weights: &T) {
    let ahead = std::ptr::from_ref(weights).wrapping_byte_add(4096).cast();
    _mm_prefetch::<_MM_HINT_T0>(ahead);
}

/// [`prefetch`] for the 256 bytes that a panel begins with.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn prefetch_header<P>(panel: &P) {
    let header = std::ptr::from_ref(panel).cast::<[u8; 64]>();
    for line in 0..4 {
        let ahead = header.wrapping_add(line).wrapping_byte_add(4096).cast();
        _mm_prefetch::<_MM_HINT_T0>(ahead);
    }
}
