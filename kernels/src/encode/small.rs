//! `Q4_0` and `Q8_0`, byte for byte as ggml's reference makes them.

use super::{inverse, max, min, to_f16};
use crate::blocks::{BlockQ4_0, BlockQ8_0};

/// The weight of the largest magnitude (the first of equals) becomes the quant -8, so its sign is the scale's.
#[inline(always)]
pub(super) fn q4_0(x: &[f32; 32]) -> BlockQ4_0 {
    let largest = x.iter().fold(0.0_f32, |a, &b| if b.abs() > a.abs() { b } else { a });
    let d = largest / -8.0;
    let (d, inverse) = saturate(d);
    // Truncated after adding 8 and a half; the cast holds what saturated within 0..=255.
    let q = x.map(|x| ((x * inverse + 8.5) as u8).min(15));
    BlockQ4_0 { d, qs: std::array::from_fn(|k| q[k] | (q[k + 16] << 4)) }
}

/// The weight of the largest magnitude becomes ±127; ties are rounded away from zero.
#[inline(always)]
pub(super) fn q8_0(x: &[f32; 32]) -> BlockQ8_0 {
    let largest = x.iter().fold(0.0, |a, b| max(b.abs(), a));
    let (d, inverse) = saturate(largest / 127.0);
    BlockQ8_0 { d, qs: x.map(|x| max(min((x * inverse).round(), 127.0), -127.0) as i8) }
}

/// The scale as stored, and the inverse of the scale before it was rounded to f16, as ggml has it.
#[inline(always)]
fn saturate(d: f32) -> (half::f16, f32) {
    let d = max(min(d, 65504.0), -65504.0);
    (to_f16(d), inverse(d))
}
