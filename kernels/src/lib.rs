//! Block formats and multiply kernels: slices in, slices out.
//!
//! A leaf: no files, threads, allocation or names of the model. `scalar` defines every operation; the modules
//! named for instruction sets have the same functions in the same order. [`Kernels`] is the table of functions,
//! chosen once at run time.

pub mod blocks;
pub mod panel;

use half::{bf16, f16};

pub use blocks::{BlockQ4_0, BlockQ4K, BlockQ6K, BlockQ8, BlockQ8_0, DType};
pub use panel::{PanelQ4_0, PanelQ4K};

/// One function for every operation, all of one instruction set.
///
/// `dot_*` multiply one row of weights with one row of activations. `panels_*` multiply a panel row (16 rows x
/// `256 * panels.len()` columns) with one row of activations and *add* each panel's contribution to `acc`, panel after panel.
/// Quantized products round in the same places on every instruction set: the floats are equal bit for bit, not
/// only the integer sums.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Kernels {
    /// `scalar`, `avx2`, …
    pub name: &'static str,
    /// Activations to blocks of 256; the last one is filled up with zeros. `out.len() == x.len().div_ceil(256)`.
    pub quantize: fn(x: &[f32], out: &mut [BlockQ8]),
    pub dot_f32: fn(w: &[f32], x: &[f32]) -> f32,
    pub dot_f16: fn(w: &[f16], x: &[f32]) -> f32,
    pub dot_bf16: fn(w: &[bf16], x: &[f32]) -> f32,
    pub dot_q8_0: fn(w: &[BlockQ8_0], x: &[BlockQ8]) -> f32,
    pub dot_q4_0: fn(w: &[BlockQ4_0], x: &[BlockQ8]) -> f32,
    pub dot_q4_k: fn(w: &[BlockQ4K], x: &[BlockQ8]) -> f32,
    pub dot_q6_k: fn(w: &[BlockQ6K], x: &[BlockQ8]) -> f32,
    pub panels_q4_0: fn(panels: &[PanelQ4_0], x: &[BlockQ8], acc: &mut [f32; 16]),
    pub panels_q4_k: fn(panels: &[PanelQ4K], x: &[BlockQ8], acc: &mut [f32; 16]),
    /// `y += a * x`, as the attention adds up values.
    pub axpy_f32: fn(a: f32, x: &[f32], y: &mut [f32]),
    pub axpy_f16: fn(a: f32, x: &[f16], y: &mut [f32]),
}
