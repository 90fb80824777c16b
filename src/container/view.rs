//! Tensors of an open container: matrices, convolutions, experts, in the forms in which they can be stored.

use yuan_kernels::{DType, panel::PANEL_ROWS};

use super::{
    map::Bytes,
    panels::{pack, panel_dims},
    tiles::TileLayout,
};
use crate::error::Result;

/// A matrix or a vector.
#[derive(Clone, Debug)]
pub struct TensorView {
    /// Its name in the file.
    pub name: String,
    /// Type of its weights.
    pub dtype: DType,
    /// All dims but the innermost, multiplied; of a convolution, its outputs.
    pub rows: usize,
    /// Weights of a row; of a convolution, two for each input.
    pub cols: usize,
    /// Whether the rows lie as panels of sixteen.
    pub panels: bool,
    /// The rows, one after another, or the panels.
    pub bytes: Bytes,
}

/// How the taps of a convolution lie in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvLayout {
    /// All inputs' weights for the previous step, then all for the current one.
    Split,
    /// `previous, current` input by input.
    Interleaved,
}

/// An expert, in either of its forms.
#[derive(Clone, Debug)]
pub enum ExpertView {
    /// Neuron tiles.
    Tiles {
        /// Their shape.
        layout: TileLayout,
        /// All tiles of the expert.
        bytes: Bytes,
    },
    /// Two row-major matrices.
    Rows {
        /// Gate rows over up rows, [2F, H].
        w1: TensorView,
        /// [H, F].
        w2: TensorView,
    },
}

/// A matrix in rows as panels in memory of its own, where its type and shape have such; any other as it is.
///
/// # Errors
/// [`Error::Argument`](crate::error::Error::Argument) where the system has no memory for it.
pub(crate) fn panels_in_memory(view: TensorView) -> Result<TensorView> {
    let fits = !view.panels && panel_dims(view.dtype, view.rows, view.cols).is_some();
    let row =
        view.dtype.row_bytes(view.cols).filter(|row| row.checked_mul(view.rows) == Some(view.bytes.len()));
    let (true, Some(row)) = (fits, row) else { return Ok(view) };
    let piece = PANEL_ROWS * row * (PIECE / (PANEL_ROWS * row)).max(1);
    let bytes = Bytes::collect(view.bytes.len(), |give| {
        view.bytes.chunks(piece).for_each(|rows| give(&pack(view.dtype, view.cols, rows)));
        Ok(())
    })?;
    view.bytes.cool();
    Ok(TensorView { panels: true, bytes, ..view })
}

/// Bytes that are packed at a time.
const PIECE: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use yuan_kernels::blocks::QK;

    use super::{super::panels::unpack, *};

    /// A matrix of rows of 256 columns, all of them different.
    fn view(dtype: DType, rows: usize) -> TensorView {
        let row = dtype.row_bytes(QK).unwrap();
        let bytes: Vec<u8> = (0..rows * row).map(|i| (i ^ (i / row * 31)) as u8).collect();
        TensorView { name: "m".into(), dtype, rows, cols: QK, panels: false, bytes: Bytes::copy(&bytes) }
    }

    #[test]
    fn rows_become_panels_piece_by_piece() {
        for dtype in [DType::Q4_0, DType::Q3_K, DType::Q4_K, DType::Q6_K, DType::Q8_0] {
            // Two whole pieces and a part of one.
            let rows = (2 * PIECE / dtype.row_bytes(QK).unwrap()).next_multiple_of(16) + 32;
            let rows = view(dtype, rows);
            let panels = panels_in_memory(rows.clone()).unwrap();
            assert!(panels.panels && unpack(dtype, QK, &panels.bytes) == *rows.bytes, "{}", dtype.name());
        }
    }

    #[test]
    fn what_has_no_panels_stays_in_rows() {
        assert!(!panels_in_memory(view(DType::Q4_0, 17)).unwrap().panels);
        assert!(!panels_in_memory(view(DType::F16, 16)).unwrap().panels);
        // A view that is no matrix is left for the model to refuse.
        let short = TensorView { rows: 32, ..view(DType::Q4_0, 16) };
        assert!(!panels_in_memory(short).unwrap().panels);
    }
}
