//! RMS norm.

use super::{activations::Activations, buffer::Buffer};

/// `x * rsqrt(mean(x²) + eps) * weight`, row by row of [T, weight.len()].
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Activations {
    let cols = weight.len();
    let mut out = Buffer::with_capacity(x.len());
    for row in x.chunks_exact(cols) {
        let mean = row.iter().map(|v| v * v).sum::<f32>() / cols as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        out.extend(row.iter().zip(weight).map(|(v, w)| v * scale * w));
    }
    Activations::new(out, cols)
}
