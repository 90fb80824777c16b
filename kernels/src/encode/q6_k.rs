//! `Q6_K`: a search for the scale of every sub-block of 16, the sub-blocks side by side in lanes.

use super::{inverse, lanes, max, min, round, side_by_side, to_f16};
use crate::blocks::BlockQ6K;

/// One number of each sub-block.
type Lanes = [f32; 16];

/// 256 weights, all finite, as one block.
#[inline(always)]
pub(super) fn encode(x: &[f32; 256]) -> BlockQ6K {
    let x: [Lanes; 16] = side_by_side(x);
    let scales = search(&x);
    // The scale of the largest magnitude becomes -128, so that all of the eight bits are used.
    let largest = scales.iter().fold(0.0_f32, |a, &b| if b.abs() > a.abs() { b } else { a });
    let d = to_f16(largest / -128.0);
    let codes: Lanes = lanes(|s| round(max(min(scales[s] * inverse(d.to_f32()), 127.0), -128.0)));
    let inverses: Lanes = lanes(|s| inverse(d.to_f32() * codes[s]));
    let mut q = [[0; 16]; 16];
    for (q, x) in q.iter_mut().zip(&x) {
        for s in 0..16 {
            q[s] = (quant(x[s] * inverses[s]) + 32.0) as u8;
        }
    }
    let (mut ql, mut qh) = ([0; 128], [0; 64]);
    for half in 0..2 {
        for k in 0..32 {
            let [a, b, c, d] = std::array::from_fn(|part| q[k % 16][8 * half + 2 * part + k / 16]);
            ql[64 * half + k] = (a & 15) | ((c & 15) << 4);
            ql[64 * half + 32 + k] = (b & 15) | ((d & 15) << 4);
            qh[32 * half + k] = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((d >> 4) << 6);
        }
    }
    BlockQ6K { ql, qh, scales: codes.map(|code| code as i8), d }
}

/// For every sub-block the scale with the least squared error among the candidates.
#[inline(always)]
fn search(x: &[Lanes; 16]) -> Lanes {
    let mut largest = [0.0_f32; 16];
    for x in x {
        for s in 0..16 {
            largest[s] = if x[s].abs() > largest[s].abs() { x[s] } else { largest[s] };
        }
    }
    let mut scales: Lanes = lanes(|s| largest[s] / -32.0);
    let unit: Lanes = lanes(|s| -inverse(largest[s]));
    let mut best = [0.0; 16];
    for i in -9..=9 {
        let steps = 32.0 + 0.1 * i as f32;
        let (mut sum_qq, mut sum_xq) = ([0.0; 16], [0.0; 16]);
        for x in x {
            for s in 0..16 {
                let q = quant(x[s] * (unit[s] * steps));
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

/// The nearest quant, -32..=31.
#[inline(always)]
fn quant(x: f32) -> f32 {
    round(max(min(x, 31.0), -32.0))
}
