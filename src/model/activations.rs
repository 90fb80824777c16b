//! Rows of activations, in f32 and, where a product asks for it, in 8 bits.

use std::sync::OnceLock;

use rayon::prelude::*;
use yuan_kernels::{BlockQ8, blocks::QK};

use super::{compute::Compute, scratch::Buffer};

/// `[rows, cols]` activations. The 8-bit form is made once, by the first product that needs it.
#[derive(Debug)]
pub struct Activations {
    data: Buffer,
    cols: usize,
    q8: OnceLock<Buffer<BlockQ8>>,
}

impl Activations {
    /// Takes `data` as rows of `cols`.
    pub fn new(data: Buffer, cols: usize) -> Self {
        debug_assert!(cols > 0 && data.len().is_multiple_of(cols));
        Self { data, cols, q8: OnceLock::new() }
    }

    /// Number of rows (tokens).
    pub fn rows(&self) -> usize {
        self.data.len() / self.cols
    }

    /// Length of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All rows, one after another.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The rows, owned.
    pub fn into_data(self) -> Buffer {
        self.data
    }

    /// One row.
    pub fn row(&self, r: usize) -> &[f32] {
        &self.data[r * self.cols..][..self.cols]
    }

    /// Blocks of one row in the 8-bit form.
    pub fn blocks(&self) -> usize {
        self.cols.div_ceil(QK)
    }

    /// Makes the 8-bit form, where it is not there yet. Not for use inside a parallel piece of work.
    pub fn quantize(&self, compute: &Compute) {
        self.q8.get_or_init(|| {
            let mut out = compute.scratch.buffer(self.rows() * self.blocks());
            let rows = self.data.par_chunks_exact(self.cols).zip(out.par_chunks_exact_mut(self.blocks()));
            compute.run(|| {
                rows.with_min_len(8).for_each(|(row, blocks)| (compute.kernels.quantize)(row, blocks));
            });
            out
        });
    }

    /// The 8-bit form: `rows() * blocks()` blocks, row after row.
    ///
    /// # Panics
    /// Before [`Activations::quantize`].
    pub fn q8(&self) -> &[BlockQ8] {
        self.q8.get().expect("quantized before the work is shared out")
    }

    /// The rows that `indices` names, in its order.
    pub fn gather(&self, compute: &Compute, indices: &[usize]) -> Self {
        Self::new(compute.scratch.gather(&self.data, self.cols, indices), self.cols)
    }
}
