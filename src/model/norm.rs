//! RMS norm.

use rayon::prelude::*;

use super::{activations::Activations, compute::Compute};

/// `x * rsqrt(mean(x²) + eps) * weight`, row by row of [T, weight.len()].
pub fn rms_norm(compute: &Compute, x: &[f32], weight: &[f32], eps: f32) -> Activations {
    let cols = weight.len();
    let mut out = compute.scratch.buffer(x.len());
    let rows = x.par_chunks_exact(cols).zip(out.par_chunks_exact_mut(cols));
    compute.each(rows.with_min_len(8), |(row, out)| {
        let scale = 1.0 / (sum_of_squares(row) / cols as f32 + eps).sqrt();
        out.iter_mut().zip(row).zip(weight).for_each(|((o, v), w)| *o = v * scale * w);
    });
    Activations::new(out, cols)
}

/// Sixteen sums side by side, which every instruction set can add up as a vector: the same bits on all of them.
fn sum_of_squares(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<16>();
    let mut sums = [0f32; 16];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(s, v)| *s += v * v);
    }
    sums.iter().sum::<f32>() + rest.iter().map(|v| v * v).sum::<f32>()
}
