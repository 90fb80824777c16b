//! The pass over one neuron tile: gate, up, SwiGLU, quantize and down, fused for 256 neurons of an expert.
//!
//! A tile holds, for 16 groups of 16 neurons, a row of gate panels and a row of up panels (`hidden / 256` each), then
//! `hidden / 16` down panels of 16 outputs x the tile's 256 neurons.

use crate::{
    BlockQ8, DType, Kernels,
    blocks::QK,
    dequantize,
    panel::{PANEL_BYTES, PANEL_ROWS, PanelQ4_0, PanelQ4K},
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

/// One of the panel formats.
pub trait Panel: bytemuck::Pod {
    /// Adds the products of a row of panels with `acc.len()` rows of activations to `acc`.
    fn product(kernels: &Kernels, panels: &[Self], x: &[BlockQ8], acc: &mut [[f32; PANEL_ROWS]]);
    /// The 16 x 256 weights in f32.
    fn dequantize(&self, out: &mut [[f32; QK]; PANEL_ROWS]);
}

impl Panel for PanelQ4K {
    fn product(kernels: &Kernels, panels: &[Self], x: &[BlockQ8], acc: &mut [[f32; PANEL_ROWS]]) {
        (kernels.panels_q4_k)(panels, x, acc);
    }

    fn dequantize(&self, out: &mut [[f32; QK]; PANEL_ROWS]) {
        for (block, out) in self.unpack().iter().zip(out) {
            dequantize(DType::Q4_K, bytemuck::bytes_of(block), out);
        }
    }
}

impl Panel for PanelQ4_0 {
    fn product(kernels: &Kernels, panels: &[Self], x: &[BlockQ8], acc: &mut [[f32; PANEL_ROWS]]) {
        (kernels.panels_q4_0)(panels, x, acc);
    }

    fn dequantize(&self, out: &mut [[f32; QK]; PANEL_ROWS]) {
        for (blocks, out) in self.unpack().iter().zip(out) {
            dequantize(DType::Q4_0, bytemuck::cast_slice(blocks), out);
        }
    }
}

/// Adds the tile's share of the expert's output to `y` [n, hidden], for the n rows `x` of `hidden / 256` blocks each.
///
/// # Panics
/// If `tile`, `x` and `y` do not fit `hidden`.
pub fn tile_pass<P: Panel>(kernels: &Kernels, tile: &[P], hidden: usize, x: &[BlockQ8], y: &mut [f32]) {
    let width = hidden / QK;
    assert_eq!(tile.len(), tile_panels(hidden));
    assert_eq!(x.len() * QK, y.len());
    let (gate_up, down) = tile.split_at(tile.len() - hidden / PANEL_ROWS);
    for (x, y) in x.chunks(TOKEN_BLOCK * width).zip(y.chunks_mut(TOKEN_BLOCK * hidden)) {
        let tokens = x.len() / width;
        let mut h = [[0f32; TILE_NEURONS]; TOKEN_BLOCK];
        for (group, panels) in gate_up.chunks_exact(2 * width).enumerate() {
            let (gate, up) = panels.split_at(width);
            let (mut g, mut u) = ([[0f32; PANEL_ROWS]; TOKEN_BLOCK], [[0f32; PANEL_ROWS]; TOKEN_BLOCK]);
            P::product(kernels, gate, x, &mut g[..tokens]);
            P::product(kernels, up, x, &mut u[..tokens]);
            for ((h, g), u) in h.iter_mut().zip(&g).zip(&u).take(tokens) {
                for ((h, g), u) in h[group * PANEL_ROWS..].iter_mut().zip(g).zip(u) {
                    *h = silu(*g) * u;
                }
            }
        }
        let mut quantized = [bytemuck::Zeroable::zeroed(); TOKEN_BLOCK];
        for (h, q) in h.iter().zip(quantized.chunks_exact_mut(1)).take(tokens) {
            (kernels.quantize)(h, q);
        }
        for (panel, out) in down.chunks_exact(1).zip((0..hidden).step_by(PANEL_ROWS)) {
            let mut acc = [[0f32; PANEL_ROWS]; TOKEN_BLOCK];
            for (acc, y) in acc.iter_mut().zip(y.chunks_exact(hidden)) {
                acc.copy_from_slice(&y[out..out + PANEL_ROWS]);
            }
            P::product(kernels, panel, &quantized[..tokens], &mut acc[..tokens]);
            for (acc, y) in acc.iter().zip(y.chunks_exact_mut(hidden)) {
                y[out..out + PANEL_ROWS].copy_from_slice(acc);
            }
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
    let rows = |panels: &[P], x: &[f32], out: &mut [f32]| {
        let mut weights = [[0f32; QK]; PANEL_ROWS];
        for (panel, x) in panels.iter().zip(x.chunks_exact(QK)) {
            panel.dequantize(&mut weights);
            for (w, out) in weights.iter().zip(out.iter_mut()) {
                *out += (kernels.dot_f32)(w, x);
            }
        }
    };
    for (x, y) in x.chunks_exact(hidden).zip(y.chunks_exact_mut(hidden)) {
        let mut h = [0f32; TILE_NEURONS];
        for (panels, h) in gate_up.chunks_exact(2 * width).zip(h.chunks_exact_mut(PANEL_ROWS)) {
            let (mut g, mut u) = ([0f32; PANEL_ROWS], [0f32; PANEL_ROWS]);
            rows(&panels[..width], x, &mut g);
            rows(&panels[width..], x, &mut u);
            for ((h, g), u) in h.iter_mut().zip(g).zip(u) {
                *h = silu(g) * u;
            }
        }
        for (panel, y) in down.chunks_exact(1).zip(y.chunks_exact_mut(PANEL_ROWS)) {
            rows(panel, &h, y);
        }
    }
}

/// `x * sigmoid(x)`.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}
