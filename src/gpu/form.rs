//! In which blocks activations meet weights on a device.

use yuan_kernels::{
    BlockQ8, BlockQ8x8, DType,
    blocks::QK,
    panel::{ActivationBlock, Panel},
    with_panel,
};

/// Blocks of 256 activations in 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Columns that share a scale: how the kernels are told the form.
    pub columns: usize,
    /// Bytes of a block.
    block: usize,
}

impl Form {
    const fn blocks<B: ActivationBlock>() -> Self {
        Self { columns: B::SCALE_COLUMNS, block: size_of::<B>() }
    }

    /// That which products with weights of this type take, or with float weights, which take none, any.
    pub const fn of(dtype: DType) -> Self {
        with_panel!(dtype, P => Self::blocks::<<P as Panel>::X>(), _ => Self::blocks::<BlockQ8>())
    }

    /// Bytes of `rows` rows of `cols` activations.
    pub const fn bytes(self, rows: usize, cols: usize) -> usize {
        rows * cols.div_ceil(QK) * self.block
    }

    /// Bytes of `rows` rows of `cols` activations in whichever form takes more.
    pub const fn most_bytes(rows: usize, cols: usize) -> usize {
        Self::blocks::<BlockQ8x8>().bytes(rows, cols)
    }
}
const _: () = assert!(size_of::<BlockQ8x8>() >= size_of::<BlockQ8>());
