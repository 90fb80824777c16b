//! The pass over one neuron tile: gate, up, SwiGLU, quantize and down, fused for 256 neurons of an expert.
//!
//! A tile holds, for 16 groups of 16 neurons, a row of gate panels and a row of up panels (`hidden / 256` each), then
//! `hidden / 16` down panels of 16 outputs x the tile's 256 neurons.

use crate::{
    BlockQ8, Kernels,
    blocks::QK,
    panel::{PANEL_BYTES, PANEL_ROWS, Panel, panels_float},
};

/// Neurons of a tile.
pub const TILE_NEURONS: usize = 256;
/// Tokens that pass through a tile together.
pub const TOKEN_BLOCK: usize = 16;

/// Panels of a tile of a model with this hidden size.
pub const fn tile_panels(hidden: usize) -> usize {
    2 * (TILE_NEURONS / PANEL_ROWS) * (hidden / QK) + hidden / PANEL_ROWS
}

/// Bytes of a tile of a model with this hidden size (a multiple of 256).
pub const fn tile_bytes(hidden: usize) -> usize {
    tile_panels(hidden) * PANEL_BYTES
}

/// Adds the tile's share of the expert's output to `y` [n, hidden], for the n rows `x` of `hidden / 256` blocks each.
///
/// # Panics
/// If `tile`, `x` and `y` do not fit `hidden`.
pub fn tile_pass<P: Panel>(kernels: &Kernels, tile: &[P], hidden: usize, x: &[BlockQ8], y: &mut [f32]) {
    let width = hidden / QK;
    assert_eq!(tile.len(), tile_panels(hidden));
    assert_eq!(x.len() * QK, y.len());
    // A single token, which is bound by memory, has no time to clear the buffers of a block.
    match x.len() / width {
        1 => pass_block::<P, 1>(kernels, tile, hidden, x, y),
        _ => x
            .chunks(TOKEN_BLOCK * width)
            .zip(y.chunks_mut(TOKEN_BLOCK * hidden))
            .for_each(|(x, y)| pass_block::<P, TOKEN_BLOCK>(kernels, tile, hidden, x, y)),
    }
}

/// [`tile_pass`] for up to `T` tokens.
fn pass_block<P: Panel, const T: usize>(
    kernels: &Kernels,
    tile: &[P],
    hidden: usize,
    x: &[BlockQ8],
    y: &mut [f32],
) {
    let width = hidden / QK;
    let tokens = x.len() / width;
    let (gate_up, down) = tile.split_at(tile.len() - hidden / PANEL_ROWS);
    let (mut h, mut u) = ([[0f32; TILE_NEURONS]; T], [[0f32; TILE_NEURONS]; T]);
    for (group, panels) in gate_up.chunks_exact(2 * width).enumerate() {
        for (panels, h) in panels.chunks_exact(width).zip([&mut h, &mut u]) {
            let mut acc = [[0f32; PANEL_ROWS]; T];
            P::product(kernels, panels, x, &mut acc[..tokens]);
            for (h, acc) in h.iter_mut().zip(acc).take(tokens) {
                h[group * PANEL_ROWS..][..PANEL_ROWS].copy_from_slice(&acc);
            }
        }
    }
    h.iter_mut().zip(&u).take(tokens).for_each(|(h, u)| (kernels.swiglu)(h, u));
    let mut quantized = [bytemuck::Zeroable::zeroed(); T];
    for (h, q) in h.iter().zip(quantized.chunks_exact_mut(1)).take(tokens) {
        (kernels.quantize)(h, q);
    }
    for (panel, out) in down.chunks_exact(1).zip((0..hidden).step_by(PANEL_ROWS)) {
        let mut acc = [[0f32; PANEL_ROWS]; T];
        for (acc, y) in acc.iter_mut().zip(y.chunks_exact(hidden)) {
            acc.copy_from_slice(&y[out..out + PANEL_ROWS]);
        }
        P::product(kernels, panel, &quantized[..tokens], &mut acc[..tokens]);
        for (acc, y) in acc.iter().zip(y.chunks_exact_mut(hidden)) {
            y[out..out + PANEL_ROWS].copy_from_slice(acc);
        }
    }
}

/// [`tile_pass`] with the weights widened to f32 and activations left in f32: slow, for comparison. `x` is [n, hidden].
///
/// # Panics
/// If `tile`, `x` and `y` do not fit `hidden`.
pub fn tile_pass_float<P: Panel>(kernels: &Kernels, tile: &[P], hidden: usize, x: &[f32], y: &mut [f32]) {
    let width = hidden / QK;
    assert_eq!(tile.len(), tile_panels(hidden));
    assert_eq!(x.len(), y.len());
    let (gate_up, down) = tile.split_at(tile.len() - hidden / PANEL_ROWS);
    for (x, y) in x.chunks_exact(hidden).zip(y.chunks_exact_mut(hidden)) {
        let (mut h, mut u) = ([0f32; TILE_NEURONS], [0f32; TILE_NEURONS]);
        let (groups, _) = h.as_chunks_mut::<PANEL_ROWS>();
        let (up_groups, _) = u.as_chunks_mut::<PANEL_ROWS>();
        for ((panels, h), u) in gate_up.chunks_exact(2 * width).zip(groups).zip(up_groups) {
            panels_float(kernels, &panels[..width], x, std::slice::from_mut(h));
            panels_float(kernels, &panels[width..], x, std::slice::from_mut(u));
        }
        (kernels.swiglu)(&mut h, &u);
        for (panel, y) in down.chunks_exact(1).zip(y.chunks_exact_mut(PANEL_ROWS)) {
            panels_float(kernels, panel, &h, y.as_chunks_mut().0);
        }
    }
}
