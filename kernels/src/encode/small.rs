//! `Q4_0` and `Q8_0`, byte for byte as ggml's reference makes them.

use super::{byte, inverse, max, min, round, to_f16};
use crate::blocks::{BlockQ4_0, BlockQ8_0};

/// The weight of the largest magnitude (the first of equals) becomes the quant -8, so its sign is the scale's.
#[inline(always)]
pub(super) fn q4_0(x: &[f32; 32]) -> BlockQ4_0 {
    let mut largest = 0.0_f32;
    for &x in x {
        largest = if x.abs() > largest.abs() { x } else { largest };
    }
    let (d, inverse) = saturate(largest / -8.0);
    // Truncated after adding 8 and a half; the cast holds what saturated within 0..=255.
    let quant = |x: f32| ((x * inverse + 8.5) as u8).min(15);
    let mut qs = [0; 16];
    for k in 0..16 {
        qs[k] = quant(x[k]) | (quant(x[k + 16]) << 4);
    }
    BlockQ4_0 { d, qs }
}

/// The weight of the largest magnitude becomes ±127; ties are rounded away from zero.
#[inline(always)]
pub(super) fn q8_0(x: &[f32; 32]) -> BlockQ8_0 {
    let mut largest = 0.0;
    for x in x {
        largest = max(x.abs(), largest);
    }
    let (d, inverse) = saturate(largest / 127.0);
    let mut qs = [0; 32];
    for (q, x) in qs.iter_mut().zip(x) {
        let x = x * inverse;
        // Ties that `round` took down go up.
        let whole = round(x.abs());
        let whole = if x.abs() - whole == 0.5 { whole + 1.0 } else { whole };
        *q = byte(min(whole, 127.0).copysign(x)) as i8;
    }
    BlockQ8_0 { d, qs }
}

/// The scale as stored, and the inverse of the scale before it was rounded to f16, as ggml has it.
#[inline(always)]
fn saturate(d: f32) -> (half::f16, f32) {
    let d = max(min(d, 65504.0), -65504.0);
    (to_f16(d), inverse(d))
}
