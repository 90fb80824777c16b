//! Scores of quantized keys with queries that are quantized as other activations are.

use bytemuck::{Pod, Zeroable, cast_slice};
use yuan_kernels::{
    Kernels,
    blocks::QK,
    panel::{ActivationBlock, PANEL_ROWS, Panel},
};

/// Queries from which on making panels of keys pays.
const MANY: usize = 4;

/// `scores[t][i] = q[t] · keys[i]` for queries [T, dim] and keys [n, dim]. Many queries meet sixteen keys at a time, as a panel, whose product is that
/// of its rows bit for bit; for few, the panel would not be worth making.
pub(super) fn quantized_scores<P: Panel<Row = [B; 8]>, B: Pod>(
    kernels: &Kernels,
    dim: usize,
    keys: &[B],
    q: &[f32],
    scores: &mut [f32],
    dot: impl Fn(&[B], &[P::X]) -> f32,
) {
    let (blocks, of_query, queries) = (dim / 32, dim.div_ceil(QK), q.len() / dim);
    let positions = keys.len() / blocks;
    let mut quantized = vec![P::X::zeroed(); queries * of_query];
    for (q, quantized) in q.chunks_exact(dim).zip(quantized.chunks_exact_mut(of_query)) {
        P::X::quantize(kernels, q, quantized);
    }
    let sixteens = if dim == QK && queries >= MANY { positions / PANEL_ROWS * PANEL_ROWS } else { 0 };
    let mut products = vec![[0.0; PANEL_ROWS]; if sixteens > 0 { queries } else { 0 }];
    for first in (0..sixteens).step_by(PANEL_ROWS) {
        let rows: &[P::Row] = cast_slice(&keys[first * blocks..][..PANEL_ROWS * blocks]);
        let panel = P::from_rows(rows.first_chunk().expect("sixteen rows of a block each"));
        products.fill([0.0; PANEL_ROWS]);
        P::product(kernels, &[panel], &quantized, &mut products);
        for (products, scores) in products.iter().zip(scores.chunks_exact_mut(positions)) {
            scores[first..][..PANEL_ROWS].copy_from_slice(products);
        }
    }
    for (x, scores) in quantized.chunks_exact(of_query).zip(scores.chunks_exact_mut(positions)) {
        let rest = keys.chunks_exact(blocks).zip(scores).skip(sixteens);
        rest.for_each(|(key, score)| *score = dot(key, x));
    }
}

#[cfg(test)]
mod tests {
    use yuan_kernels::{BlockQ4_0, BlockQ8_0, PanelQ4_0, PanelQ8_0, available};

    use super::*;

    /// Any bytes with scales of about one.
    fn keys<B: Pod>(n: usize) -> Vec<B> {
        let mut keys = vec![B::zeroed(); n];
        for (i, key) in keys.iter_mut().enumerate() {
            let bytes = bytemuck::bytes_of_mut(key);
            for (k, byte) in bytes.iter_mut().enumerate() {
                *byte = ((i * 7919 + k * 104_729) >> 3) as u8;
            }
            bytes[..2].copy_from_slice(&[(i % 251) as u8, 0x3c]);
        }
        keys
    }

    /// Twenty queries meet two panels of keys and five keys more; a query alone meets keys only.
    fn many_are_as_each_alone<P: Panel<Row = [B; 8]>, B: Pod>(dot: impl Fn(&Kernels, &[B], &[P::X]) -> f32) {
        let (n, queries) = (37, 20);
        for dim in [QK, 128] {
            let keys: Vec<B> = keys(n * dim / 32);
            let number = |i: usize| ((i * 2_654_435_761) >> 7 & 0xffff) as f32 / 32768.0 - 1.0;
            let q: Vec<f32> = (0..queries * dim).map(number).collect();
            for kernels in available() {
                let mut together = vec![0.0; queries * n];
                let dot = |key: &[B], x: &[P::X]| dot(kernels, key, x);
                quantized_scores::<P, _>(kernels, dim, &keys, &q, &mut together, dot);
                let mut alone = vec![0.0; queries * n];
                for (q, alone) in q.chunks_exact(dim).zip(alone.chunks_exact_mut(n)) {
                    quantized_scores::<P, _>(kernels, dim, &keys, q, alone, dot);
                }
                assert!(together == alone, "{}, {dim}", kernels.name);
                assert!(together.iter().all(|score| score.is_finite() && *score != 0.0));
            }
        }
    }

    #[test]
    fn many_queries_have_the_scores_of_each_alone() {
        many_are_as_each_alone::<PanelQ8_0, BlockQ8_0>(|kernels, key, x| (kernels.dot_q8_0)(key, x));
        many_are_as_each_alone::<PanelQ4_0, BlockQ4_0>(|kernels, key, x| (kernels.dot_q4_0)(key, x));
    }
}
