//! Rows of activations, in f32 and, where a product asks for it, in blocks of 8 bits.

use std::sync::OnceLock;

use rayon::prelude::*;
use yuan_kernels::{BlockQ8, BlockQ8x8, blocks::QK, panel::ActivationBlock};

use super::{compute::Compute, scratch::Buffer};

/// `[rows, cols]` activations. Blocks of either kind are made once, by the first product that needs them.
#[derive(Debug)]
pub struct Activations {
    data: Buffer,
    cols: usize,
    q8: OnceLock<Buffer<BlockQ8>>,
    q8x8: OnceLock<Buffer<BlockQ8x8>>,
}

/// A kind of blocks that activations are kept in.
pub trait Blocks: ActivationBlock {
    /// Where they are.
    fn of(x: &Activations) -> &OnceLock<Buffer<Self>>;
}

impl Blocks for BlockQ8 {
    fn of(x: &Activations) -> &OnceLock<Buffer<Self>> {
        &x.q8
    }
}

impl Blocks for BlockQ8x8 {
    fn of(x: &Activations) -> &OnceLock<Buffer<Self>> {
        &x.q8x8
    }
}

impl Activations {
    /// Takes `data` as rows of `cols`.
    pub fn new(data: Buffer, cols: usize) -> Self {
        debug_assert!(cols > 0 && data.len().is_multiple_of(cols));
        Self { data, cols, q8: OnceLock::new(), q8x8: OnceLock::new() }
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

    /// Blocks of one row.
    pub fn blocks(&self) -> usize {
        self.cols.div_ceil(QK)
    }

    /// Makes the blocks, where they are not there yet. Not for use inside a parallel piece of work.
    pub fn quantize<B: Blocks>(&self, compute: &Compute) {
        B::of(self).get_or_init(|| {
            let mut out = compute.scratch.buffer(self.rows() * self.blocks());
            let rows = self.data.par_chunks_exact(self.cols).zip(out.par_chunks_exact_mut(self.blocks()));
            compute.each(rows.with_min_len(8), |(row, blocks)| B::quantize(&compute.kernels, row, blocks));
            out
        });
    }

    /// `rows() * blocks()` blocks, row after row.
    ///
    /// # Panics
    /// Before [`Activations::quantize`].
    pub fn q8<B: Blocks>(&self) -> &[B] {
        B::of(self).get().expect("quantized before the work is shared out")
    }

    /// The rows that `indices` names, in its order.
    pub fn gather(&self, compute: &Compute, indices: &[usize]) -> Self {
        Self::new(compute.scratch.gather(&self.data, self.cols, indices), self.cols)
    }
}
