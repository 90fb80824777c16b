//! Orders of nibbles that the format might have had, on AVX-512: what a product costs without mins, scales of scales and
//! sums in f32, which are the same for all of them.
//!
//! - `columns 16 apart`, the format: 16 rows; a byte has a column in its low nibble and the one 16 further on in its high one.
//! - `sub-blocks`: 16 rows; a byte has a column of one sub-block and the same column of the next, as in rows of `Q4_K`.
//! - `8 rows`: half as many rows and twice the columns in a line; words of eight activations, which the product cannot
//!   broadcast by itself.

use std::arch::x86_64::*;

use bytemuck::{Pod, Zeroable, cast, cast_ref};
use yuan_kernels::BlockQ8;

/// 16 rows x 256 columns (or twice 8 rows) of nibbles, and 16 scales for each of 8 sub-blocks.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Weights {
    scales: [[u8; 16]; 8],
    lines: [[u8; 64]; 32],
}

/// Adds 16 rows x `256 * weights.len()` columns times T rows of activations to `acc`.
pub type Product<const T: usize> = fn(&[Weights], [&[BlockQ8]; T], &mut [[i32; 16]; T]);

/// The orders by name, where this machine can run them.
pub fn orders<const T: usize>() -> Vec<(&'static str, Product<T>)> {
    if !(is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vnni")) {
        return Vec::new();
    }
    vec![
        // SAFETY: this CPU has AVX-512 BW and VNNI, as of here and below.
        ("columns 16 apart", |w, x, acc| unsafe { columns_16_apart(w, x, acc) }),
        // SAFETY: as above.
        ("sub-blocks", |w, x, acc| unsafe { sub_blocks(w, x, acc) }),
        // SAFETY: as above.
        ("8 rows", |w, x, acc| unsafe { eight_rows(w, x, acc) }),
    ]
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn nibbles(line: &[u8; 64]) -> [__m512i; 2] {
    let (bytes, low) = (cast(*line), _mm512_set1_epi8(15));
    _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(line).wrapping_byte_add(4096).cast());
    [_mm512_and_si512(bytes, low), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low)]
}

/// Words of a sub-block's 32 activations.
#[inline]
fn words(x: &BlockQ8, s: usize) -> &[i32; 8] {
    let words: &[[i32; 8]; 8] = cast_ref(&x.qs);
    &words[s]
}

/// The eight vectors of a sub-block, 16 rows x 4 columns each, times T rows of activations, each sum times its row's scale.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn sixteen_rows<const T: usize>(
    w: &[__m512i; 8],
    scale: [u8; 16],
    x: [&[i32; 8]; T],
    sums: &mut [__m512i; T],
) {
    let mut dots = [[_mm512_setzero_si512(); T]; 2];
    for g in 0..8 {
        let dots = &mut dots[if T == 1 { g % 2 } else { 0 }];
        for t in 0..T {
            dots[t] = _mm512_dpbusd_epi32(dots[t], w[g], _mm512_set1_epi32(x[t][g]));
        }
    }
    let scale = _mm512_cvtepu8_epi32(cast(scale));
    for t in 0..T {
        let dot = if T == 1 { _mm512_add_epi32(dots[0][t], dots[1][t]) } else { dots[0][t] };
        sums[t] = _mm512_add_epi32(sums[t], _mm512_mullo_epi32(dot, scale));
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn columns_16_apart<const T: usize>(weights: &[Weights], x: [&[BlockQ8]; T], acc: &mut [[i32; 16]; T]) {
    let mut sums = [_mm512_setzero_si512(); T];
    for (i, panel) in weights.iter().enumerate() {
        for s in 0..8 {
            let mut w = [_mm512_setzero_si512(); 8];
            for g in 0..4 {
                [w[g], w[g + 4]] = nibbles(&panel.lines[4 * s + g]);
            }
            let mut here = [&[0; 8]; T];
            for t in 0..T {
                here[t] = words(&x[t][i], s);
            }
            sixteen_rows(&w, panel.scales[s], here, &mut sums);
        }
    }
    add(sums, acc);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn sub_blocks<const T: usize>(weights: &[Weights], x: [&[BlockQ8]; T], acc: &mut [[i32; 16]; T]) {
    let mut sums = [_mm512_setzero_si512(); T];
    for (i, panel) in weights.iter().enumerate() {
        for pair in 0..4 {
            for part in 0..2 {
                let mut w = [_mm512_setzero_si512(); 8];
                for (w, line) in w.iter_mut().zip(&panel.lines[8 * pair..][..8]) {
                    *w = nibbles(line)[part];
                }
                let mut here = [&[0; 8]; T];
                for t in 0..T {
                    here[t] = words(&x[t][i], 2 * pair + part);
                }
                sixteen_rows(&w, panel.scales[2 * pair + part], here, &mut sums);
            }
        }
    }
    add(sums, acc);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn eight_rows<const T: usize>(weights: &[Weights], x: [&[BlockQ8]; T], acc: &mut [[i32; 16]; T]) {
    for half in 0..2 {
        let mut sums = [_mm512_setzero_si512(); T];
        for (i, panel) in weights.iter().enumerate() {
            for s in 0..8 {
                let lines = &panel.lines[16 * half + 2 * s..][..2];
                let ([a, c], [b, d]) = (nibbles(&lines[0]), nibbles(&lines[1]));
                let w = [a, b, c, d];
                let scale: [[u8; 8]; 2] = cast(panel.scales[s]);
                // A row's two lanes side by side have the same scale.
                let scale = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(cast(scale[half])));
                let scale = _mm512_shuffle_epi32::<0b10_10_00_00>(scale);
                let mut dots = [_mm512_setzero_si512(); T];
                for (g, w) in w.into_iter().enumerate() {
                    for t in 0..T {
                        let words: &[i64; 4] = cast_ref(words(&x[t][i], s));
                        dots[t] = _mm512_dpbusd_epi32(dots[t], w, _mm512_set1_epi64(words[g]));
                    }
                }
                for t in 0..T {
                    sums[t] = _mm512_add_epi32(sums[t], _mm512_mullo_epi32(dots[t], scale));
                }
            }
        }
        for t in 0..T {
            let pairs: [[i32; 2]; 8] = cast(sums[t]);
            for (acc, [even, odd]) in acc[t][8 * half..].iter_mut().zip(pairs) {
                *acc = acc.wrapping_add(even.wrapping_add(odd));
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn add<const T: usize>(sums: [__m512i; T], acc: &mut [[i32; 16]; T]) {
    for t in 0..T {
        acc[t] = cast(_mm512_add_epi32(cast(acc[t]), sums[t]));
    }
}
