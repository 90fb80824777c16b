//! `Q4_K`: a search for the scale and the minimum of every sub-block.
//!
//! The eight sub-blocks of a superblock sit in eight lanes, so that all of them are searched at once and no sum ever
//! crosses lanes.

use super::{inverse, max, min, round, to_f16};
use crate::blocks::BlockQ4K;

/// One number of each sub-block.
type Lanes = [f32; 8];

/// Candidates for the steps that a sub-block's range is divided into.
const STEPS: [f32; 21] = {
    let mut steps = [14.0; 21];
    let mut i = 1;
    while i < 21 {
        steps[i] = 14.0 + 0.1 * i as f32;
        i += 1;
    }
    steps
};

/// 256 weights, all finite, as one block.
#[inline(always)]
pub(super) fn encode(x: &[f32; 256]) -> BlockQ4K {
    let x: [Lanes; 32] = std::array::from_fn(|k| std::array::from_fn(|s| x[32 * s + k]));
    let (scales, mins) = search(&x);
    let (d, scale_codes) = six_bits(&scales);
    let (dmin, min_codes) = six_bits(&mins);
    let scales = scale_codes.map(|code| d.to_f32() * code);
    let mins = min_codes.map(|code| dmin.to_f32() * code);
    let q = nibbles(&x, &scales, &mins);
    let mut qs = [0; 128];
    for (p, shared) in qs.chunks_exact_mut(32).enumerate() {
        for (byte, q) in shared.iter_mut().zip(&q) {
            *byte = q[2 * p] as u8 | ((q[2 * p + 1] as u8) << 4);
        }
    }
    let [scales, mins] = [scale_codes, min_codes].map(|codes| codes.map(|code| code as u8));
    BlockQ4K { d, dmin, scales: BlockQ4K::pack_scales(&scales, &mins), qs }
}

/// For every sub-block the scale and the minimum (`w = scale * q - min`, neither below 0) with the least squared error
/// among the candidates: weights are rounded to a candidate's grid, then a line is fitted through what came out.
#[inline(always)]
fn search(x: &[Lanes; 32]) -> (Lanes, Lanes) {
    let (mut low, mut high, mut sum_x) = ([0.0; 8], x[0], [0.0; 8]);
    for x in x {
        for s in 0..8 {
            low[s] = min(x[s], low[s]);
            high[s] = max(x[s], high[s]);
            sum_x[s] += x[s];
        }
    }
    let mut scales: Lanes = std::array::from_fn(|s| (high[s] - low[s]) / 15.0);
    let mut mins = low.map(|low| -low);
    let unit: Lanes = std::array::from_fn(|s| inverse(high[s] - low[s]));
    let mut best = [f32::NEG_INFINITY; 8];
    for steps in STEPS {
        let (mut sum_q, mut sum_qq, mut sum_xq) = ([0.0; 8], [0.0; 8], [0.0; 8]);
        for x in x {
            for s in 0..8 {
                let q = max(min(round((x[s] - low[s]) * (unit[s] * steps)), 15.0), 0.0);
                sum_q[s] += q;
                sum_qq[s] += q * q;
                sum_xq[s] += x[s] * q;
            }
        }
        for s in 0..8 {
            let determinant = 32.0 * sum_qq[s] - sum_q[s] * sum_q[s];
            let scale = (32.0 * sum_xq[s] - sum_q[s] * sum_x[s]) / determinant;
            let min = (sum_q[s] * sum_xq[s] - sum_qq[s] * sum_x[s]) / determinant;
            // No minimum below 0 can be stored: the line then goes through the origin.
            let free = min > 0.0;
            let scale = if free { scale } else { sum_xq[s] / sum_qq[s] };
            let min = if free { min } else { 0.0 };
            // What the fit takes from the sum of the squares; NaN, where there is no fit, is never better.
            let gain = scale * sum_xq[s] - min * sum_x[s];
            let better = gain > best[s];
            best[s] = if better { gain } else { best[s] };
            scales[s] = if better { scale } else { scales[s] };
            mins[s] = if better { min } else { mins[s] };
        }
    }
    (scales, mins)
}

/// A common scale, and for each number its multiple of it, 0..=63.
#[inline(always)]
fn six_bits(numbers: &Lanes) -> (half::f16, Lanes) {
    let d = to_f16(numbers.iter().fold(0.0, |a, &b| max(a, b)) / 63.0);
    let inverse = inverse(d.to_f32());
    (d, numbers.map(|number| round(max(min(number * inverse, 63.0), 0.0))))
}

/// The nearest quants, 0..=15.
#[inline(always)]
fn nibbles(x: &[Lanes; 32], scales: &Lanes, mins: &Lanes) -> [Lanes; 32] {
    let inverses = scales.map(inverse);
    x.map(|x| std::array::from_fn(|s| round(max(min((x[s] + mins[s]) * inverses[s], 15.0), 0.0))))
}
