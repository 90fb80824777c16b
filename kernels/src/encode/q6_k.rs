//! `Q6_K`: weights as `d * scale * q`, found by search in the steps of [`super::q4_k`]; sixteen sub-blocks sit in
//! sixteen lanes.

use half::f16;

use super::{
    byte,
    grid::{Grid, Same, Worth},
    inverse, lanes, max, min, round, side_by_side, to_f16,
};
use crate::blocks::BlockQ6K;

/// One number of each sub-block.
type Lanes = [f32; 16];

/// 256 weights, all finite, as one block.
#[inline(always)]
pub(super) fn encode(weights: &[f32; 256]) -> BlockQ6K {
    let (d, codes) = find(weights, &Same);
    let inverses: Lanes = lanes(|s| inverse(d.to_f32() * codes[s]));
    let mut q = [0; 256];
    for ((q, weights), inverse) in q.chunks_exact_mut(16).zip(weights.chunks_exact(16)).zip(inverses) {
        for (q, weight) in q.iter_mut().zip(weights) {
            *q = byte(quant(weight * inverse) + 32.0);
        }
    }
    block(d, &codes, &q)
}

/// The scales of a block: their common factor and their codes.
#[inline(always)]
fn find(weights: &[f32; 256], worth: &impl Worth<16, 16>) -> (f16, Lanes) {
    let x: [Lanes; 16] = side_by_side(weights);
    let scales = search(&x, worth);
    let (d, codes) = eight_bits(&scales);
    let codes = refine(&x, worth, d.to_f32(), codes);
    (refit(&x, worth, d, &codes), codes)
}

#[inline(always)]
fn block(d: f16, codes: &Lanes, q: &[u8; 256]) -> BlockQ6K {
    let (ql, qh) = BlockQ6K::pack_quants(q);
    BlockQ6K { ql, qh, scales: codes.map(|code| byte(code) as i8), d }
}

/// The scales of a block with what they mean.
pub(super) struct GridQ6K {
    d: f16,
    codes: Lanes,
    scales: Lanes,
    inverses: Lanes,
}

impl Grid<256> for GridQ6K {
    type Block = BlockQ6K;

    #[inline(always)]
    fn fit(weights: &[f32; 256], importance: &[f32; 256]) -> Self {
        let (d, codes) = find(weights, &side_by_side::<16, 16>(importance));
        let scales: Lanes = lanes(|s| d.to_f32() * codes[s]);
        Self { d, codes, inverses: lanes(|s| inverse(scales[s])), scales }
    }

    #[inline(always)]
    fn nearest(&self, column: usize, weight: f32) -> (f32, f32) {
        let s = column / 16;
        let q = quant(weight * self.inverses[s]);
        (q, self.scales[s] * q)
    }

    #[inline(always)]
    fn pack(&self, quants: &[f32; 256]) -> BlockQ6K {
        let mut q = [0; 256];
        for (q, quant) in q.iter_mut().zip(quants) {
            *q = byte(quant + 32.0);
        }
        block(self.d, &self.codes, &q)
    }
}

/// For every sub-block the scale with the least squared error among candidates. The weight of the largest magnitude
/// becomes a quant near -32, so its sign is the scale's.
#[inline(always)]
fn search(x: &[Lanes; 16], worth: &impl Worth<16, 16>) -> Lanes {
    let mut largest = [0.0_f32; 16];
    for x in x {
        for s in 0..16 {
            largest[s] = if x[s].abs() > largest[s].abs() { x[s] } else { largest[s] };
        }
    }
    let unit: Lanes = lanes(|s| -inverse(largest[s]));
    let mut scales: Lanes = lanes(|s| largest[s] / -32.0);
    let mut best = [0.0; 16];
    for candidate in 0..20 {
        let steps = 24.0 + 0.5 * candidate as f32;
        let (mut sum_qq, mut sum_xq) = ([0.0; 16], [0.0; 16]);
        for (k, x) in x.iter().enumerate() {
            for s in 0..16 {
                let q = quant(x[s] * (unit[s] * steps));
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

/// A common factor, and for each scale the nearest multiple of it. The scale of the largest magnitude becomes -128, so that
/// all of the eight bits are used.
#[inline(always)]
fn eight_bits(scales: &Lanes) -> (f16, Lanes) {
    let mut largest = 0.0_f32;
    for &scale in scales {
        largest = if scale.abs() > largest.abs() { scale } else { largest };
    }
    let d = to_f16(largest / -128.0);
    let inverse = inverse(d.to_f32());
    (d, lanes(|s| code(scales[s] * inverse)))
}

/// Tries the scales as they are, a step down and a step up.
#[inline(always)]
fn refine(x: &[Lanes; 16], worth: &impl Worth<16, 16>, d: f32, codes: Lanes) -> Lanes {
    let (mut best, mut refined) = ([f32::INFINITY; 16], codes);
    for step in [0.0, -1.0, 1.0] {
        let codes: Lanes = lanes(|s| code(codes[s] + step));
        let scales: Lanes = lanes(|s| d * codes[s]);
        let inverses: Lanes = lanes(|s| inverse(scales[s]));
        let mut error = [0.0; 16];
        for (k, x) in x.iter().enumerate() {
            for s in 0..16 {
                let difference = scales[s] * quant(x[s] * inverses[s]) - x[s];
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
fn refit(x: &[Lanes; 16], worth: &impl Worth<16, 16>, d: f16, codes: &Lanes) -> f16 {
    let inverses: Lanes = lanes(|s| inverse(d.to_f32() * codes[s]));
    let (mut sum_qq, mut sum_xq) = ([0.0; 16], [0.0; 16]);
    for (k, x) in x.iter().enumerate() {
        for s in 0..16 {
            let q = quant(x[s] * inverses[s]);
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

/// The nearest of the 64 quants, -32..=31.
#[inline(always)]
fn quant(x: f32) -> f32 {
    round(max(min(x, 31.0), -32.0))
}

/// The nearest of the 256 codes.
#[inline(always)]
fn code(x: f32) -> f32 {
    round(max(min(x, 127.0), -128.0))
}
