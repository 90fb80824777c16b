//! Rows of activations, in f32 and, where a product asks for it, in 8 bits.

use std::sync::OnceLock;

use yuan_kernels::{BlockQ8, Kernels, blocks::QK};

use super::buffer::Buffer;

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

    /// The 8-bit form: `rows() * blocks()` blocks, row after row.
    pub fn q8(&self, kernels: &Kernels) -> &[BlockQ8] {
        self.q8.get_or_init(|| {
            let mut out = Buffer::zeroed(self.rows() * self.blocks());
            for (row, blocks) in self.data.chunks_exact(self.cols).zip(out.chunks_exact_mut(self.blocks())) {
                (kernels.quantize)(row, blocks);
            }
            out
        })
    }

    /// The rows that `indices` names, in its order.
    pub fn gather(&self, indices: &[usize]) -> Self {
        let mut data = Buffer::with_capacity(indices.len() * self.cols);
        indices.iter().for_each(|&r| data.extend_from_slice(self.row(r)));
        Self::new(data, self.cols)
    }
}
