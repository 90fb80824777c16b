//! In which blocks activations meet weights on a device.

use yuan_kernels::{BlockQ8, BlockQ8x8, DType, blocks::QK};

/// Blocks of 256 activations in 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One scale: [`BlockQ8`].
    Q8,
    /// Eight scales: [`BlockQ8x8`].
    Q8x8,
}

impl Form {
    /// That which products with weights of this type take, or with float weights, which take none, any.
    pub const fn of(dtype: DType) -> Self {
        if matches!(dtype, DType::Q8_0) { Self::Q8x8 } else { Self::Q8 }
    }

    /// Columns that share a scale: how the kernels are told the form.
    pub const fn columns(self) -> usize {
        match self {
            Self::Q8 => QK,
            Self::Q8x8 => QK / 8,
        }
    }

    /// Bytes of `rows` rows of `cols` activations.
    pub const fn bytes(self, rows: usize, cols: usize) -> usize {
        let block = match self {
            Self::Q8 => size_of::<BlockQ8>(),
            Self::Q8x8 => size_of::<BlockQ8x8>(),
        };
        rows * cols.div_ceil(QK) * block
    }

    /// Bytes of `rows` rows of `cols` activations in whichever form takes more.
    pub const fn most_bytes(rows: usize, cols: usize) -> usize {
        Self::Q8x8.bytes(rows, cols)
    }
}
const _: () = assert!(size_of::<BlockQ8x8>() >= size_of::<BlockQ8>());
