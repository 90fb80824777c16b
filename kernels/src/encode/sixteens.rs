//! `Q3_K` and `Q6_K`: weights as `d * scale * q`, found by search in the steps of [`super::q4_k`]; sixteen sub-blocks sit in
//! sixteen lanes.

use half::f16;

use super::{byte, inverse, lanes, max, min, round, side_by_side, to_f16};
use crate::blocks::{BlockQ3K, BlockQ6K};

/// One number of each sub-block.
type Lanes = [f32; 16];

/// What a format can hold.
#[derive(Clone, Copy)]
struct Grid {
    /// Quants are whole numbers from minus this up to this less 1.
    quants: f32,
    /// The same for the codes of the scales.
    codes: f32,
    /// Sizes of the weight of the largest magnitude that are tried, in quants: the first, and from each to the next.
    first: f32,
    step: f32,
}

/// 256 weights, all finite, as one block.
#[inline(always)]
pub(super) fn q3_k(weights: &[f32; 256]) -> BlockQ3K {
    let (d, codes, q) = encode(Grid { quants: 4.0, codes: 32.0, first: 2.2, step: 0.1 }, weights);
    let (hmask, qs) = BlockQ3K::pack_quants(&q);
    BlockQ3K { hmask, qs, scales: BlockQ3K::pack_scales(&codes), d }
}

/// 256 weights, all finite, as one block.
#[inline(always)]
pub(super) fn q6_k(weights: &[f32; 256]) -> BlockQ6K {
    let (d, scales, q) = encode(Grid { quants: 32.0, codes: 128.0, first: 24.0, step: 0.5 }, weights);
    let (ql, qh) = BlockQ6K::pack_quants(&q);
    BlockQ6K { ql, qh, scales, d }
}

/// The common factor, the codes of the scales, and the quants less the least of them.
#[inline(always)]
fn encode(grid: Grid, weights: &[f32; 256]) -> (f16, [i8; 16], [u8; 256]) {
    let x: [Lanes; 16] = side_by_side(weights);
    let scales = search(grid, &x);
    let (d, codes) = common(grid, &scales);
    let codes = refine(grid, &x, d.to_f32(), codes);
    let d = refit(grid, &x, d, &codes);

    let inverses: Lanes = lanes(|s| inverse(d.to_f32() * codes[s]));
    let mut q = [0; 256];
    for ((q, weights), inverse) in q.chunks_exact_mut(16).zip(weights.chunks_exact(16)).zip(inverses) {
        for (q, weight) in q.iter_mut().zip(weights) {
            *q = byte(grid.quant(weight * inverse) + grid.quants);
        }
    }
    (d, codes.map(|code| byte(code) as i8), q)
}

/// For every sub-block the scale with the least squared error among candidates. The weight of the largest magnitude
/// becomes a quant near the least one, so its sign is the scale's.
#[inline(always)]
fn search(grid: Grid, x: &[Lanes; 16]) -> Lanes {
    let mut largest = [0.0_f32; 16];
    for x in x {
        for s in 0..16 {
            largest[s] = if x[s].abs() > largest[s].abs() { x[s] } else { largest[s] };
        }
    }
    let unit: Lanes = lanes(|s| -inverse(largest[s]));
    let mut scales: Lanes = lanes(|s| largest[s] / -grid.quants);
    let mut best = [0.0; 16];
    for candidate in 0..20 {
        let steps = grid.first + grid.step * candidate as f32;
        let (mut sum_qq, mut sum_xq) = ([0.0; 16], [0.0; 16]);
        for x in x {
            for s in 0..16 {
                let q = grid.quant(x[s] * (unit[s] * steps));
                sum_qq[s] += q * q;
                sum_xq[s] += x[s] * q;
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
fn common(grid: Grid, scales: &Lanes) -> (f16, Lanes) {
    let mut largest = 0.0_f32;
    for &scale in scales {
        largest = if scale.abs() > largest.abs() { scale } else { largest };
    }
    let d = to_f16(largest / -grid.codes);
    let inverse = inverse(d.to_f32());
    (d, lanes(|s| grid.code(scales[s] * inverse)))
}

/// Tries the scales as they are, a step down and a step up.
#[inline(always)]
fn refine(grid: Grid, x: &[Lanes; 16], d: f32, codes: Lanes) -> Lanes {
    let (mut best, mut refined) = ([f32::INFINITY; 16], codes);
    for step in [0.0, -1.0, 1.0] {
        let codes: Lanes = lanes(|s| grid.code(codes[s] + step));
        let scales: Lanes = lanes(|s| d * codes[s]);
        let inverses: Lanes = lanes(|s| inverse(scales[s]));
        let mut error = [0.0; 16];
        for x in x {
            for s in 0..16 {
                let difference = scales[s] * grid.quant(x[s] * inverses[s]) - x[s];
                error[s] += difference * difference;
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
fn refit(grid: Grid, x: &[Lanes; 16], d: f16, codes: &Lanes) -> f16 {
    let inverses: Lanes = lanes(|s| inverse(d.to_f32() * codes[s]));
    let (mut sum_qq, mut sum_xq) = ([0.0; 16], [0.0; 16]);
    for x in x {
        for s in 0..16 {
            let q = grid.quant(x[s] * inverses[s]);
            sum_qq[s] += q * q;
            sum_xq[s] += x[s] * q;
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

impl Grid {
    /// The nearest quant.
    #[inline(always)]
    fn quant(self, x: f32) -> f32 {
        round(max(min(x, self.quants - 1.0), -self.quants))
    }

    /// The nearest code of a scale.
    #[inline(always)]
    fn code(self, x: f32) -> f32 {
        round(max(min(x, self.codes - 1.0), -self.codes))
    }
}
