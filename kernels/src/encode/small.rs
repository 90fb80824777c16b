//! `Q4_0` and `Q8_0`, byte for byte as ggml's reference makes them; by the importance of the columns, with the scale of the least error.

use half::f16;

use super::{byte, grid::Grid, inverse, max, min, round, to_f16};
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
fn saturate(d: f32) -> (f16, f32) {
    let d = max(min(d, 65504.0), -65504.0);
    (to_f16(d), inverse(d))
}

/// A scale with its inverse.
struct Scale {
    d: f16,
    value: f32,
    inverse: f32,
}

impl Scale {
    #[inline(always)]
    fn of(d: f32) -> Self {
        let d = to_f16(d);
        Self { d, value: d.to_f32(), inverse: inverse(d.to_f32()) }
    }

    /// The scale with the least weighed squared error among those that fit best what rounds to it when the weight of the largest magnitude becomes
    /// `end`, or less by one of `steps`; quants are within `range`. Where the range is even, the scale is above 0.
    #[inline(always)]
    fn search(x: &[f32; 32], importance: &[f32; 32], range: (f32, f32), end: f32, steps: &[f32]) -> Self {
        let mut largest = 0.0_f32;
        for &x in x {
            largest = if x.abs() > largest.abs() { x } else { largest };
        }
        if range.0 == -range.1 {
            largest = largest.abs();
        }
        let (mut best, mut least) = (Self::of(largest / end), f32::INFINITY);
        let error = |scale: &Self| {
            let mut error = 0.0;
            for (x, w) in x.iter().zip(importance) {
                let difference = scale.value * max(min(round(x * scale.inverse), range.1), range.0) - x;
                error += w * (difference * difference);
            }
            error
        };
        for step in steps {
            let unit = inverse(largest) * (end - step);
            let (mut qq, mut xq) = (0.0, 0.0);
            for (x, w) in x.iter().zip(importance) {
                let q = max(min(round(x * unit), range.1), range.0);
                qq += w * (q * q);
                xq += w * (x * q);
            }
            let fitted = Self::of(xq / qq);
            let error = error(&fitted);
            // Not a number where there is no fit: never better.
            if error < least {
                (best, least) = (fitted, error);
            }
        }
        best
    }
}

/// A block of 4 bits but for its quants.
pub(super) struct GridQ4_0(Scale);

impl Grid<32> for GridQ4_0 {
    type Block = BlockQ4_0;

    #[inline(always)]
    fn fit(weights: &[f32; 32], importance: &[f32; 32]) -> Self {
        const STEPS: [f32; 15] =
            [-1.4, -1.2, -1.0, -0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4];
        Self(Scale::search(weights, importance, (-8.0, 7.0), -8.0, &STEPS))
    }

    #[inline(always)]
    fn nearest(&self, _: usize, weight: f32) -> (f32, f32) {
        let q = max(min(round(weight * self.0.inverse), 7.0), -8.0);
        (q, self.0.value * q)
    }

    #[inline(always)]
    fn value(&self, _: usize, quant: f32) -> f32 {
        self.0.value * quant
    }

    #[inline(always)]
    fn pack(&self, quants: &[f32; 32]) -> BlockQ4_0 {
        let mut qs = [0; 16];
        for k in 0..16 {
            qs[k] = byte(quants[k] + 8.0 + 16.0 * (quants[k + 16] + 8.0));
        }
        BlockQ4_0 { d: self.0.d, qs }
    }
}

/// A block of 8 bits but for its quants.
pub(super) struct GridQ8_0(Scale);

impl Grid<32> for GridQ8_0 {
    type Block = BlockQ8_0;

    #[inline(always)]
    fn fit(weights: &[f32; 32], importance: &[f32; 32]) -> Self {
        const STEPS: [f32; 9] = [-0.4, 0.0, 0.4, 1.0, 1.6, 2.2, 3.0, 4.0, 5.0];
        Self(Scale::search(weights, importance, (-127.0, 127.0), 127.0, &STEPS))
    }

    #[inline(always)]
    fn nearest(&self, _: usize, weight: f32) -> (f32, f32) {
        let q = max(min(round(weight * self.0.inverse), 127.0), -127.0);
        (q, self.0.value * q)
    }

    #[inline(always)]
    fn value(&self, _: usize, quant: f32) -> f32 {
        self.0.value * quant
    }

    #[inline(always)]
    fn pack(&self, quants: &[f32; 32]) -> BlockQ8_0 {
        let mut qs = [0; 32];
        for (q, quant) in qs.iter_mut().zip(quants) {
            *q = byte(*quant) as i8;
        }
        BlockQ8_0 { d: self.0.d, qs }
    }
}
