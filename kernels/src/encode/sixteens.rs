//! `Q3_K` and `Q6_K`: weights as `d * scale * q`, found by search in the steps of [`super::q4_k`]; sixteen sub-blocks sit in
//! sixteen lanes.

use std::marker::PhantomData;

use bytemuck::Pod;
use half::f16;

use super::{
    byte,
    grid::{Grid, Same, Worth},
    inverse, lanes, max, min, round, side_by_side, to_f16,
};
use crate::blocks::{BlockQ3K, BlockQ6K};

/// One number of each sub-block.
type Lanes = [f32; 16];

/// A format with a scale for each sixteen weights.
pub(super) trait Sixteens {
    /// Its block.
    type Block: Pod;
    /// Quants are whole numbers from minus this up to this less 1.
    const QUANTS: f32;
    /// The same for the codes of the scales.
    const CODES: f32;
    /// Sizes of the weight of the largest magnitude that are tried, in quants: the first, and from each to the next.
    const SIZES: (f32, f32);

    /// The block of a common factor, the codes of the scales, and the quants less the least of them.
    fn block(d: f16, codes: [i8; 16], q: &[u8; 256]) -> Self::Block;

    /// The nearest quant.
    #[inline(always)]
    fn quant(x: f32) -> f32 {
        round(max(min(x, Self::QUANTS - 1.0), -Self::QUANTS))
    }

    /// The nearest code of a scale.
    #[inline(always)]
    fn code(x: f32) -> f32 {
        round(max(min(x, Self::CODES - 1.0), -Self::CODES))
    }
}

pub(super) struct Q3K;

impl Sixteens for Q3K {
    type Block = BlockQ3K;
    const QUANTS: f32 = 4.0;
    const CODES: f32 = 32.0;
    const SIZES: (f32, f32) = (2.2, 0.1);

    #[inline(always)]
    fn block(d: f16, codes: [i8; 16], q: &[u8; 256]) -> BlockQ3K {
        let (hmask, qs) = BlockQ3K::pack_quants(q);
        BlockQ3K { hmask, qs, scales: BlockQ3K::pack_scales(&codes), d }
    }
}

pub(super) struct Q6K;

impl Sixteens for Q6K {
    type Block = BlockQ6K;
    const QUANTS: f32 = 32.0;
    const CODES: f32 = 128.0;
    const SIZES: (f32, f32) = (24.0, 0.5);

    #[inline(always)]
    fn block(d: f16, codes: [i8; 16], q: &[u8; 256]) -> BlockQ6K {
        let (ql, qh) = BlockQ6K::pack_quants(q);
        BlockQ6K { ql, qh, scales: codes, d }
    }
}

/// 256 weights, all finite, as one block.
#[inline(always)]
pub(super) fn encode<F: Sixteens>(weights: &[f32; 256]) -> F::Block {
    let (d, codes) = find::<F>(weights, &Same);
    let inverses: Lanes = lanes(|s| inverse(d.to_f32() * codes[s]));
    let mut q = [0; 256];
    for ((q, weights), inverse) in q.chunks_exact_mut(16).zip(weights.chunks_exact(16)).zip(inverses) {
        for (q, weight) in q.iter_mut().zip(weights) {
            *q = byte(F::quant(weight * inverse) + F::QUANTS);
        }
    }
    F::block(d, codes.map(|code| byte(code) as i8), &q)
}

/// The scales of a block: their common factor and their codes.
#[inline(always)]
fn find<F: Sixteens>(weights: &[f32; 256], worth: &impl Worth<16, 16>) -> (f16, Lanes) {
    let x: [Lanes; 16] = side_by_side(weights);
    let scales = search::<F>(&x, worth);
    let (d, codes) = common::<F>(&scales);
    let codes = refine::<F>(&x, worth, d.to_f32(), codes);
    (refit::<F>(&x, worth, d, &codes), codes)
}

/// The scales of a block with what they mean.
pub(super) struct GridOf<F> {
    d: f16,
    codes: Lanes,
    scales: Lanes,
    inverses: Lanes,
    format: PhantomData<F>,
}

impl<F: Sixteens> Grid<256> for GridOf<F> {
    type Block = F::Block;

    #[inline(always)]
    fn fit(weights: &[f32; 256], importance: &[f32; 256]) -> Self {
        let (d, codes) = find::<F>(weights, &side_by_side::<16, 16>(importance));
        let scales: Lanes = lanes(|s| d.to_f32() * codes[s]);
        Self { d, codes, inverses: lanes(|s| inverse(scales[s])), scales, format: PhantomData }
    }

    #[inline(always)]
    fn nearest(&self, column: usize, weight: f32) -> (f32, f32) {
        let s = column / 16;
        let q = F::quant(weight * self.inverses[s]);
        (q, self.scales[s] * q)
    }

    #[inline(always)]
    fn value(&self, column: usize, quant: f32) -> f32 {
        self.scales[column / 16] * quant
    }

    #[inline(always)]
    fn pack(&self, quants: &[f32; 256]) -> F::Block {
        let mut q = [0; 256];
        for (q, quant) in q.iter_mut().zip(quants) {
            *q = byte(quant + F::QUANTS);
        }
        F::block(self.d, self.codes.map(|code| byte(code) as i8), &q)
    }
}

/// For every sub-block the scale with the least squared error among candidates. The weight of the largest magnitude
/// becomes a quant near the least one, so its sign is the scale's.
#[inline(always)]
fn search<F: Sixteens>(x: &[Lanes; 16], worth: &impl Worth<16, 16>) -> Lanes {
    let mut largest = [0.0_f32; 16];
    for x in x {
        for s in 0..16 {
            largest[s] = if x[s].abs() > largest[s].abs() { x[s] } else { largest[s] };
        }
    }
    let unit: Lanes = lanes(|s| -inverse(largest[s]));
    let mut scales: Lanes = lanes(|s| largest[s] / -F::QUANTS);
    let mut best = [0.0; 16];
    for candidate in 0..20 {
        let steps = F::SIZES.0 + F::SIZES.1 * candidate as f32;
        let (mut sum_qq, mut sum_xq) = ([0.0; 16], [0.0; 16]);
        for (k, x) in x.iter().enumerate() {
            for s in 0..16 {
                let q = F::quant(x[s] * (unit[s] * steps));
                sum_qq[s] += worth.of(k, s) * (q * q);
                sum_xq[s] += worth.of(k, s) * (x[s] * q);
            }
        }
        for s in 0..16 {
            let scale = sum_xq[s] / sum_qq[s];
            // What the fit takes from the sum of the squares; NaN, where there is no fit, is never better.
            let gain = scale * sum_xq[s];
            let better = gain > best[s];
            best[s] = if better { gain } else { best[s] };
            scales[s] = if better { scale } else { scales[s] };
        }
    }
    scales
}

/// A common factor, and for each scale the nearest multiple of it. The scale of the largest magnitude becomes the least code, so that
/// all of the bits are used.
#[inline(always)]
fn common<F: Sixteens>(scales: &Lanes) -> (f16, Lanes) {
    let mut largest = 0.0_f32;
    for &scale in scales {
        largest = if scale.abs() > largest.abs() { scale } else { largest };
    }
    let d = to_f16(largest / -F::CODES);
    let inverse = inverse(d.to_f32());
    (d, lanes(|s| F::code(scales[s] * inverse)))
}

/// Tries the scales as they are, a step down and a step up.
#[inline(always)]
fn refine<F: Sixteens>(x: &[Lanes; 16], worth: &impl Worth<16, 16>, d: f32, codes: Lanes) -> Lanes {
    let (mut best, mut refined) = ([f32::INFINITY; 16], codes);
    for step in [0.0, -1.0, 1.0] {
        let codes: Lanes = lanes(|s| F::code(codes[s] + step));
        let scales: Lanes = lanes(|s| d * codes[s]);
        let inverses: Lanes = lanes(|s| inverse(scales[s]));
        let mut error = [0.0; 16];
        for (k, x) in x.iter().enumerate() {
            for s in 0..16 {
                let difference = scales[s] * F::quant(x[s] * inverses[s]) - x[s];
                error[s] += worth.of(k, s) * (difference * difference);
            }
        }
        for s in 0..16 {
            let better = error[s] < best[s];
            best[s] = if better { error[s] } else { best[s] };
            refined[s] = if better { codes[s] } else { refined[s] };
        }
    }
    refined
}

/// Fits `d` to the codes and their quants by least squares over the whole block.
#[inline(always)]
fn refit<F: Sixteens>(x: &[Lanes; 16], worth: &impl Worth<16, 16>, d: f16, codes: &Lanes) -> f16 {
    let inverses: Lanes = lanes(|s| inverse(d.to_f32() * codes[s]));
    let (mut sum_qq, mut sum_xq) = ([0.0; 16], [0.0; 16]);
    for (k, x) in x.iter().enumerate() {
        for s in 0..16 {
            let q = F::quant(x[s] * inverses[s]);
            sum_qq[s] += worth.of(k, s) * (q * q);
            sum_xq[s] += worth.of(k, s) * (x[s] * q);
        }
    }
    let (mut aa, mut ax) = (0.0, 0.0);
    for s in 0..16 {
        aa += codes[s] * codes[s] * sum_qq[s];
        ax += codes[s] * sum_xq[s];
    }
    let fitted = ax / aa;
    // Not a number where the block is zero or so large that the sums overflow.
    if fitted.is_finite() { to_f16(fitted) } else { d }
}
