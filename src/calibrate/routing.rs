//! What of the hidden state decides which experts a token goes to.
//!
//! A token whose last expert is hardly likelier than the next one changes experts for a small change of its hidden state, and what it then gets is all of another expert. So
//! errors cost most in the directions in which the two trade places: the derivative of how much likelier the one is, by the hidden state.

use rayon::prelude::*;

use crate::model::{WideRouter, softmax};

/// Logits that are this much apart hardly trade places.
const NEAR: f32 = 0.1;

/// Of tokens, rows of what the router takes, [T, H], the derivative by the hidden state before the norm of the difference of the logits of the last expert that is used and
/// of the next one. `scales` are what the norm multiplied each token with. The nearer the two are, the more a row counts. Nothing, where all experts are used.
pub fn directions(router: &WideRouter, m: &[f32], scales: &[f32]) -> Vec<f32> {
    let hidden = router.norm.len();
    let experts = router.projections[0].len() / hidden;
    let mut out = vec![0.0; m.len()];
    if router.used < experts {
        let tokens = m.par_chunks_exact(hidden).zip(scales).zip(out.par_chunks_exact_mut(hidden));
        tokens.for_each(|((m, scale), out)| direction(router, m, *scale, experts, out));
    }
    out
}

fn direction(router: &WideRouter, m: &[f32], scale: f32, experts: usize, out: &mut [f32]) {
    let rows = |p: &[f32]| p.chunks_exact(m.len()).map(|row| dot(row, m)).collect::<Vec<f32>>();
    let values: Vec<Vec<f32>> = router.projections.iter().map(|p| rows(p)).collect();
    let logits: Vec<f32> = match &values[..] {
        [q, k, v] => q.iter().map(|q| dot(&attention(*q, k), v)).collect(),
        values => values[0].clone(),
    };
    let mut order: Vec<usize> = (0..experts).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    let (last, next) = (order[router.used - 1], order[router.used]);
    let apart = (logits[last] - logits[next]) / NEAR;
    let weight = yuan_kernels::exp(-(apart * apart).min(80.0) / 2.0) * scale;
    for (expert, sign) in [(last, weight), (next, -weight)] {
        let mut add = |projection: usize, row: usize, by: f32| {
            let row = &router.projections[projection][row * m.len()..][..m.len()];
            out.iter_mut().zip(row).for_each(|(out, w)| *out += by * w);
        };
        let [q, k, v] = &values[..] else {
            add(0, expert, sign);
            continue;
        };
        let p = attention(q[expert], k);
        let mut by_query = 0.0;
        for other in 0..experts {
            let by_score = p[other] * (v[other] - logits[expert]);
            by_query += by_score * k[other];
            add(1, other, sign * by_score * q[expert]);
            add(2, other, sign * p[other]);
        }
        add(0, expert, sign * by_query);
    }
    out.iter_mut().zip(&router.norm).for_each(|(out, norm)| *out *= norm);
}

/// The softmax of an expert's query over the keys of all.
fn attention(q: f32, k: &[f32]) -> Vec<f32> {
    let mut p: Vec<f32> = k.iter().map(|k| q * k).collect();
    softmax(&mut p);
    p
}

/// The dot product, added up in lanes.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [0.0; 16];
    for (a, b) in a.iter().zip(b) {
        (0..16).for_each(|i| sums[i] += a[i] * b[i]);
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A norm and a router in f64, as MODEL.md has them: how much likelier the second expert of three is than the third.
    fn lead(router: &WideRouter, x: &[f32]) -> f64 {
        let scale =
            1.0 / (x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>() / x.len() as f64).sqrt();
        let m: Vec<f64> =
            x.iter().zip(&router.norm).map(|(x, n)| f64::from(*x) * scale * f64::from(*n)).collect();
        let values: Vec<Vec<f64>> = router
            .projections
            .iter()
            .map(|p| {
                p.chunks_exact(x.len())
                    .map(|w| w.iter().zip(&m).map(|(w, m)| f64::from(*w) * m).sum())
                    .collect()
            })
            .collect();
        let mut logits = values[0].clone();
        if let [q, k, v] = &values[..] {
            for (logit, q) in logits.iter_mut().zip(q) {
                let p: Vec<f64> = k.iter().map(|k| (q * k).exp()).collect();
                *logit = p.iter().zip(v).map(|(p, v)| p * v).sum::<f64>() / p.iter().sum::<f64>();
            }
        }
        logits.sort_by(f64::total_cmp);
        logits[1] - logits[0]
    }

    #[test]
    fn directions_are_the_derivatives() {
        let number = |i: usize| ((i * 7919 % 1000) as f32 / 500.0 - 1.0) * 0.5;
        // Such sizes that the two logits are near each other.
        for (projections, size) in [(1, 0.2), (3, 1.0)] {
            let projections =
                (0..projections).map(|p| (0..3 * 8).map(|i| size * number(31 * p + i)).collect()).collect();
            let router = WideRouter { norm: (0..8).map(|i| 1.0 + number(i)).collect(), projections, used: 2 };
            let x: Vec<f32> = (0..8).map(|i| number(100 + 3 * i)).collect();
            let scale = 1.0 / (x.iter().map(|x| x * x).sum::<f32>() / 8.0).sqrt();
            let m: Vec<f32> = x.iter().zip(&router.norm).map(|(x, n)| x * scale * n).collect();
            let found = directions(&router, &m, &[scale]);
            let apart = lead(&router, &x) / f64::from(NEAR);
            let weight = (-(apart * apart).min(80.0) / 2.0).exp();
            // Along a step that does not change the norm's scale.
            let step: Vec<f32> = (0..8).map(|i| number(200 + 5 * i)).collect();
            let along = dot(&step, &x) / dot(&x, &x);
            let step: Vec<f32> = step.iter().zip(&x).map(|(step, x)| step - along * x).collect();
            let moved = |by: f32| -> Vec<f32> { x.iter().zip(&step).map(|(x, s)| x + by * s).collect() };
            let wanted = weight * (lead(&router, &moved(1e-3)) - lead(&router, &moved(-1e-3))) / 2e-3;
            let off = f64::from(dot(&found, &step)) - wanted;
            assert!(wanted.abs() > 1e-3 && off.abs() < 2e-3 * wanted.abs(), "{wanted}, off by {off}");
            let all = WideRouter { used: 3, ..router };
            assert!(directions(&all, &m, &[scale]).iter().all(|d| *d == 0.0));
        }
    }
}
