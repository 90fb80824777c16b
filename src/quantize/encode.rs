//! Rows of weights to rows of any type.

use std::sync::LazyLock;

use half::{bf16, f16};
use yuan_kernels::{
    DType,
    encode::{Encoders, best_encoders},
};

/// Encodes a row of finite weights, whole blocks of them, into the `dtype.row_bytes(row.len())` bytes of `out`.
///
/// Weights round to the nearest number that the type holds, ties to even. One that is too large for the type, or a scale
/// that is too large for f16, becomes the largest that there is, where ggml would store an infinity: a product with an
/// infinite weight is lost.
///
/// # Panics
/// If `row` is no multiple of the block, or `out` has another length.
pub fn encode(dtype: DType, row: &[f32], out: &mut [u8]) {
    static BEST: LazyLock<&Encoders> = LazyLock::new(best_encoders);
    assert_eq!(
        Some(out.len()),
        dtype.row_bytes(row.len()),
        "bytes of {} {} weights",
        row.len(),
        dtype.name()
    );
    match dtype {
        DType::F32 => each(row, out, f32::to_le_bytes),
        DType::F16 => each(row, out, |w| saturate(f16::from_f32(w), f16::INFINITY, f16::MAX).to_le_bytes()),
        DType::Bf16 => {
            each(row, out, |w| saturate(bf16::from_f32(w), bf16::INFINITY, bf16::MAX).to_le_bytes())
        }
        DType::Q4_0 => (BEST.q4_0)(row, out),
        DType::Q8_0 => (BEST.q8_0)(row, out),
        DType::Q3_K => (BEST.q3_k)(row, out),
        DType::Q4_K => (BEST.q4_k)(row, out),
        DType::Q6_K => (BEST.q6_k)(row, out),
    }
}

fn each<const N: usize>(row: &[f32], out: &mut [u8], bytes: impl Fn(f32) -> [u8; N]) {
    for (w, out) in row.iter().zip(out.as_chunks_mut().0) {
        *out = bytes(*w);
    }
}

/// The largest number in place of an infinity, with its sign.
fn saturate<F: PartialEq + Copy + std::ops::Neg<Output = F>>(w: F, infinity: F, max: F) -> F {
    match w {
        w if w == infinity => max,
        w if w == -infinity => -max,
        w => w,
    }
}

/// The place of the first weight that is no finite number.
pub(super) fn first_non_finite(weights: &[f32]) -> Option<usize> {
    // Pieces without an early exit inside, so that they are checked many weights at a time.
    const PIECE: usize = 256;
    let damaged = |piece: &[f32]| piece.iter().fold(false, |damaged, w| damaged | !w.is_finite());
    let piece = weights.chunks(PIECE).position(damaged)?;
    let within = weights[piece * PIECE..].iter().position(|w| !w.is_finite())?;
    Some(piece * PIECE + within)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_weights_are_found_wherever_they_are() {
        let mut weights = vec![1.0; 1000];
        assert_eq!(first_non_finite(&weights), None);
        for (at, damage) in [(999, f32::NAN), (511, f32::INFINITY), (256, f32::NEG_INFINITY), (0, f32::NAN)] {
            weights[at] = damage;
            assert_eq!(first_non_finite(&weights), Some(at));
        }
        assert_eq!(first_non_finite(&[]), None);
    }
}
