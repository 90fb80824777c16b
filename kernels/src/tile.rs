//! The pass over one neuron tile: gate, up, SwiGLU, quantize and down, fused for 256 neurons of an expert.
//!
//! A tile holds, for 16 groups of 16 neurons, a row of gate panels and a row of up panels (`hidden / 256` each), then
//! `hidden / 16` down panels of 16 outputs x the tile's 256 neurons.

use std::ops::Range;

use crate::{
    DType, Kernels,
    blocks::QK,
    panel::{ActivationBlock, PANEL_ROWS, Panel, panel_bytes, panels_float},
};

/// Neurons of a tile.
pub const TILE_NEURONS: usize = 256;
/// Tokens that pass through a tile together.
pub const TOKEN_BLOCK: usize = 16;

/// Panels of a tile of a model with this hidden size.
pub const fn tile_panels(hidden: usize) -> usize {
    2 * (TILE_NEURONS / PANEL_ROWS) * (hidden / QK) + hidden / PANEL_ROWS
}

/// Bytes of a tile of a model with this hidden size (a multiple of 256), or `None` where there are no panels of this type.
pub const fn tile_bytes(dtype: DType, hidden: usize) -> Option<usize> {
    match panel_bytes(dtype) {
        Some(panel) => tile_panels(hidden).checked_mul(panel),
        None => None,
    }
}

/// Adds the tile's share of the expert's output to `y`, for the n rows `x` of `hidden / 256` blocks each. `y` is in the order
/// of the panels, \[hidden / 16\]\[n\]\[16\].
///
/// # Panics
/// If `tile`, `x` and `y` do not fit `hidden`.
pub fn tile_pass<P: Panel>(
    kernels: &Kernels,
    tile: &[P],
    hidden: usize,
    x: &[P::X],
    y: &mut [[f32; PANEL_ROWS]],
) {
    assert_eq!(tile.len(), tile_panels(hidden));
    assert_eq!(x.len() * QK, y.len() * PANEL_ROWS);
    // A single token, which is bound by memory, has no time to clear the buffers of a block.
    match x.len() / (hidden / QK) {
        1 => pass_block::<P, 1>(kernels, tile, hidden, x, 0, y),
        n => (0..n)
            .step_by(TOKEN_BLOCK)
            .for_each(|t| pass_block::<P, TOKEN_BLOCK>(kernels, tile, hidden, x, t, y)),
    }
}

/// [`tile_pass`] for the up to `T` tokens from `first` on.
fn pass_block<P: Panel, const T: usize>(
    kernels: &Kernels,
    tile: &[P],
    hidden: usize,
    x: &[P::X],
    first: usize,
    y: &mut [[f32; PANEL_ROWS]],
) {
    let width = hidden / QK;
    let n = x.len() / width;
    let tokens = T.min(n - first);
    let x = &x[first * width..][..tokens * width];
    let (gate_up, down) = tile.split_at(tile.len() - hidden / PANEL_ROWS);
    let mut h = [bytemuck::Zeroable::zeroed(); T];
    gate_up_block::<P, T>(kernels, gate_up, width, x, &mut h[..tokens]);
    for (panel, y) in down.chunks_exact(1).zip(y.chunks_exact_mut(n)) {
        P::product(kernels, panel, &h[..tokens], &mut y[first..first + tokens]);
    }
}

/// The first half of [`tile_pass`]: the tile's 256 neurons of each of the n rows `x`, in 8 bits.
///
/// # Panics
/// If `tile`, `x` and `h` do not fit `hidden`.
pub fn tile_gate_up<P: Panel>(kernels: &Kernels, tile: &[P], hidden: usize, x: &[P::X], h: &mut [P::X]) {
    let width = hidden / QK;
    assert_eq!(tile.len(), tile_panels(hidden));
    assert_eq!(x.len(), h.len() * width);
    let gate_up = &tile[..tile.len() - hidden / PANEL_ROWS];
    match h.len() {
        1 => gate_up_block::<P, 1>(kernels, gate_up, width, x, h),
        _ => {
            let blocks = x.chunks(TOKEN_BLOCK * width).zip(h.chunks_mut(TOKEN_BLOCK));
            blocks.for_each(|(x, h)| gate_up_block::<P, TOKEN_BLOCK>(kernels, gate_up, width, x, h));
        }
    }
}

/// The second half of [`tile_pass`], for some of the tile's down panels: adds their share to `y`, \[panels\]\[n\]\[16\].
///
/// # Panics
/// If the panels of `range`, `h` and `y` do not fit each other.
pub fn tile_down<P: Panel>(
    kernels: &Kernels,
    tile: &[P],
    hidden: usize,
    range: Range<usize>,
    h: &[P::X],
    y: &mut [[f32; PANEL_ROWS]],
) {
    assert_eq!(tile.len(), tile_panels(hidden));
    assert_eq!(y.len(), range.len() * h.len());
    let down = &tile[tile.len() - hidden / PANEL_ROWS..][range];
    for (panel, y) in down.chunks_exact(1).zip(y.chunks_exact_mut(h.len())) {
        P::product(kernels, panel, h, y);
    }
}

/// Gate, up, SwiGLU and quantize for up to `T` tokens.
fn gate_up_block<P: Panel, const T: usize>(
    kernels: &Kernels,
    gate_up: &[P],
    width: usize,
    x: &[P::X],
    quantized: &mut [P::X],
) {
    let tokens = quantized.len();
    // Sixteen neurons of all tokens after another, as the panels give them.
    let mut h = [[[0f32; PANEL_ROWS]; T]; TILE_NEURONS / PANEL_ROWS];
    for (panels, h) in gate_up.chunks_exact(2 * width).zip(&mut h) {
        let (h, mut u) = (&mut h[..tokens], [[0f32; PANEL_ROWS]; T]);
        P::product(kernels, &panels[..width], x, h);
        P::product(kernels, &panels[width..], x, &mut u[..tokens]);
        (kernels.swiglu)(h.as_flattened_mut(), u[..tokens].as_flattened());
    }
    for (t, q) in quantized.chunks_exact_mut(1).enumerate() {
        let row = std::array::from_fn::<_, { TILE_NEURONS / PANEL_ROWS }, _>(|group| h[group][t]);
        P::X::quantize(kernels, row.as_flattened(), q);
    }
}

/// [`tile_pass`] with the weights widened to f32 and activations left in f32: slow, for comparison. `x` is [n, hidden].
///
/// # Panics
/// If `tile`, `x` and `y` do not fit `hidden`.
pub fn tile_pass_float<P: Panel>(
    kernels: &Kernels,
    tile: &[P],
    hidden: usize,
    x: &[f32],
    y: &mut [[f32; PANEL_ROWS]],
) {
    let width = hidden / QK;
    assert_eq!(tile.len(), tile_panels(hidden));
    assert_eq!(x.len(), y.len() * PANEL_ROWS);
    let n = x.len() / hidden;
    let (gate_up, down) = tile.split_at(tile.len() - hidden / PANEL_ROWS);
    for (t, x) in x.chunks_exact(hidden).enumerate() {
        let h = neurons_float(kernels, gate_up, width, x);
        for (panel, y) in down.chunks_exact(1).zip(y.chunks_exact_mut(n)) {
            panels_float(kernels, panel, h.as_flattened(), &mut y[t..=t]);
        }
    }
}

/// [`tile_gate_up`] with floats: `h` is [n, 256].
///
/// # Panics
/// If `tile`, `x` and `h` do not fit `hidden`.
pub fn tile_gate_up_float<P: Panel>(kernels: &Kernels, tile: &[P], hidden: usize, x: &[f32], h: &mut [f32]) {
    assert_eq!(tile.len(), tile_panels(hidden));
    assert_eq!(x.len() / hidden * TILE_NEURONS, h.len());
    let gate_up = &tile[..tile.len() - hidden / PANEL_ROWS];
    for (x, h) in x.chunks_exact(hidden).zip(h.chunks_exact_mut(TILE_NEURONS)) {
        h.copy_from_slice(neurons_float(kernels, gate_up, hidden / QK, x).as_flattened());
    }
}

/// [`tile_down`] with floats: `h` is [n, 256].
///
/// # Panics
/// If the panels of `range`, `h` and `y` do not fit each other.
pub fn tile_down_float<P: Panel>(
    kernels: &Kernels,
    tile: &[P],
    hidden: usize,
    range: Range<usize>,
    h: &[f32],
    y: &mut [[f32; PANEL_ROWS]],
) {
    let n = h.len() / TILE_NEURONS;
    assert_eq!(tile.len(), tile_panels(hidden));
    assert_eq!(y.len(), range.len() * n);
    let down = &tile[tile.len() - hidden / PANEL_ROWS..][range];
    for (panel, y) in down.chunks_exact(1).zip(y.chunks_exact_mut(n)) {
        panels_float(kernels, panel, h, y);
    }
}

/// The neurons of one row `x`.
fn neurons_float<P: Panel>(
    kernels: &Kernels,
    gate_up: &[P],
    width: usize,
    x: &[f32],
) -> [[f32; PANEL_ROWS]; TILE_NEURONS / PANEL_ROWS] {
    let mut h = [[0f32; PANEL_ROWS]; TILE_NEURONS / PANEL_ROWS];
    let mut u = h;
    for ((panels, h), u) in gate_up.chunks_exact(2 * width).zip(&mut h).zip(&mut u) {
        panels_float(kernels, &panels[..width], x, std::slice::from_mut(h));
        panels_float(kernels, &panels[width..], x, std::slice::from_mut(u));
    }
    (kernels.swiglu)(h.as_flattened_mut(), u.as_flattened());
    h
}
