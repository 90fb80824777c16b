//! A matrix of weights as it lies in the container.

use yuan_kernels::DType;

use crate::{
    container::Bytes,
    error::{Error, Result},
};

/// `[rows, cols]` weights, row-major, in one of the block types.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Type of the weights.
    pub dtype: DType,
    /// Outputs of the product.
    pub rows: usize,
    /// Inputs of the product.
    pub cols: usize,
    bytes: Bytes,
    row_bytes: usize,
}

impl Matrix {
    /// Checks that `bytes` is exactly the matrix and aligned for its type.
    ///
    /// # Errors
    /// [`Error::Argument`] that names `name` and what is wrong with it.
    pub fn new(name: &str, dtype: DType, rows: usize, cols: usize, bytes: Bytes) -> Result<Self> {
        let fault = |problem: String| Error::Argument(format!("tensor {name}: {problem}"));
        let row_bytes = dtype
            .row_bytes(cols)
            .ok_or_else(|| fault(format!("rows of {cols} do not fit blocks of {}", dtype.block_len())))?;
        if row_bytes.checked_mul(rows) != Some(bytes.len()) {
            return Err(fault(format!("{} bytes are not {rows} rows of {row_bytes}", bytes.len())));
        }
        let alignment = if dtype == DType::F32 { 4 } else { 2 };
        if bytes.as_ptr().align_offset(alignment) != 0 {
            return Err(fault(format!("its data is not aligned to {alignment} bytes")));
        }
        Ok(Self { dtype, rows, cols, bytes, row_bytes })
    }

    /// The bytes of row `r`.
    pub fn row(&self, r: usize) -> &[u8] {
        &self.bytes[r * self.row_bytes..][..self.row_bytes]
    }

    /// Bytes of the whole matrix.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Row `r` as f32, added to the end of `out`.
    pub fn dequantize_row(&self, r: usize, out: &mut Vec<f32>) {
        let start = out.len();
        out.resize(start + self.cols, 0.0);
        yuan_kernels::dequantize(self.dtype, self.row(r), &mut out[start..]);
    }
}
