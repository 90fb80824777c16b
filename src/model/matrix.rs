//! A matrix of weights as it lies in the container.

use std::{borrow::Cow, ops::Range};

use bytemuck::pod_read_unaligned;
use yuan_kernels::{
    DType,
    blocks::QK,
    panel::{PANEL_ROWS, Panel, panel_bytes},
};

use crate::{
    container::{Bytes, TensorView, panels},
    error::{Error, Result},
};

/// `[rows, cols]` weights in one of the block types, as rows or as panels of sixteen rows.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Type of the weights.
    pub dtype: DType,
    /// Outputs of the product.
    pub rows: usize,
    /// Inputs of the product.
    pub cols: usize,
    /// Whether the rows lie as panels.
    pub panels: bool,
    bytes: Bytes,
    row_bytes: usize,
}

impl Matrix {
    /// Checks that the view's bytes are exactly the matrix and aligned for its type.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the tensor and what is wrong with it.
    pub fn new(view: TensorView) -> Result<Self> {
        let TensorView { name, dtype, rows, cols, panels, bytes } = view;
        let fault = |problem: String| Error::Argument(format!("tensor {name}: {problem}"));
        let row_bytes = dtype
            .row_bytes(cols)
            .ok_or_else(|| fault(format!("rows of {cols} do not fit blocks of {}", dtype.block_len())))?;
        if row_bytes.checked_mul(rows) != Some(bytes.len()) {
            return Err(fault(format!("{} bytes are not {rows} rows of {row_bytes}", bytes.len())));
        }
        let matrix = Self { dtype, rows, cols, panels: false, bytes, row_bytes };
        if panels && !matrix.cuts_into_panels() {
            return Err(fault(format!("{rows} rows of {cols} are no panels of {}", dtype.name())));
        }
        let alignment = if dtype == DType::F32 { 4 } else { 2 };
        if matrix.bytes.as_ptr().align_offset(alignment) != 0 {
            return Err(fault(format!("its data is not aligned to {alignment} bytes")));
        }
        Ok(Self { panels, ..matrix })
    }

    /// The bytes of row `r` of a matrix in rows.
    pub fn row(&self, r: usize) -> &[u8] {
        debug_assert!(!self.panels);
        &self.bytes[r * self.row_bytes..][..self.row_bytes]
    }

    /// The panels of rows `16 g..16 g + 16` of a matrix in panels.
    pub fn panel_row<P: Panel>(&self, g: usize) -> &[P] {
        debug_assert!(self.panels && self.dtype == P::DTYPE);
        let bytes = PANEL_ROWS * self.row_bytes;
        bytemuck::cast_slice(&self.bytes[g * bytes..][..bytes])
    }

    /// Whether the matrix is or could be in panels.
    pub fn cuts_into_panels(&self) -> bool {
        let whole = self.rows.is_multiple_of(PANEL_ROWS) && self.cols.is_multiple_of(QK);
        self.panels || (whole && panel_bytes(self.dtype).is_some())
    }

    /// The rows `16 g..16 g + 16` of a matrix in rows, for each of these `g`, as [`Matrix::panel_row`] would have them.
    pub fn pack<P: Panel>(&self, groups: Range<usize>) -> Vec<P> {
        debug_assert!(!self.panels && self.dtype == P::DTYPE);
        let piece = size_of::<P::Row>();
        let row = |g: usize, b: usize, r: usize| &self.row(PANEL_ROWS * g + r)[b * piece..][..piece];
        let panel = |g, b| P::from_rows(&std::array::from_fn(|r| pod_read_unaligned(row(g, b, r))));
        groups.flat_map(|g| (0..self.cols / QK).map(move |b| panel(g, b))).collect()
    }

    /// The whole matrix as it lies.
    #[cfg(feature = "gpu")]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Brings the whole matrix into memory, where it is mapped. What cannot be read is for the check of the file to tell.
    #[cfg(feature = "gpu")]
    pub fn bring_in(&self) {
        let _ = self.bytes.populate(0..self.bytes.len());
    }

    /// Bytes of the whole matrix.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Writes row `r` of a matrix in rows to `out` as f32.
    pub fn dequantize_row(&self, r: usize, out: &mut [f32]) {
        yuan_kernels::dequantize(self.dtype, self.row(r), out);
    }

    /// All weights as f32, row by row.
    pub fn dequantized(&self) -> Vec<f32> {
        let bytes = match self.panels {
            true => panels::unpack(self.dtype, self.cols, &self.bytes).into(),
            false => Cow::from(&self.bytes[..]),
        };
        let mut out = vec![0.0; self.rows * self.cols];
        yuan_kernels::dequantize(self.dtype, &bytes, &mut out);
        out
    }
}
