//! Matrices as panels of sixteen rows (FORMAT.md, "The panel").

use bytemuck::{Zeroable, bytes_of, pod_read_unaligned};
use rayon::prelude::*;
use yuan_kernels::{
    DType, PanelQ4_0, PanelQ4K, PanelQ6K, PanelQ8_0,
    blocks::QK,
    panel::{PANEL_ROWS, Panel},
};

use super::{
    map::Bytes,
    open::{TensorView, panel_dims},
};
use crate::error::Result;

/// Rows `[rows, cols]` of `dtype` as panels: sixteen rows after another, each from its first 256 columns to its last.
///
/// # Panics
/// If the type has no panels, or `rows` is not made of sixteens of whole rows.
pub(crate) fn pack(dtype: DType, cols: usize, rows: &[u8]) -> Vec<u8> {
    match dtype {
        DType::Q4_0 => pack_as::<PanelQ4_0>(cols, rows),
        DType::Q4_K => pack_as::<PanelQ4K>(cols, rows),
        DType::Q6_K => pack_as::<PanelQ6K>(cols, rows),
        DType::Q8_0 => pack_as::<PanelQ8_0>(cols, rows),
        other => panic!("there are no panels of {}", other.name()),
    }
}

/// The inverse of [`pack`].
///
/// # Panics
/// As [`pack`].
pub(crate) fn unpack(dtype: DType, cols: usize, panels: &[u8]) -> Vec<u8> {
    match dtype {
        DType::Q4_0 => unpack_as::<PanelQ4_0>(cols, panels),
        DType::Q4_K => unpack_as::<PanelQ4K>(cols, panels),
        DType::Q6_K => unpack_as::<PanelQ6K>(cols, panels),
        DType::Q8_0 => unpack_as::<PanelQ8_0>(cols, panels),
        other => panic!("there are no panels of {}", other.name()),
    }
}

/// A matrix in rows as panels in memory of its own, where its type and shape have such; any other as it is.
///
/// # Errors
/// [`Error::Argument`](crate::error::Error::Argument) where the system has no memory for it.
pub(crate) fn in_memory(view: TensorView) -> Result<TensorView> {
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

fn pack_as<P: Panel>(cols: usize, rows: &[u8]) -> Vec<u8> {
    let (width, piece) = (cols / QK, size_of::<P::Row>());
    let mut out = vec![0; rows.len()];
    let groups = out.par_chunks_exact_mut(width * size_of::<P>());
    groups.zip(rows.par_chunks_exact(PANEL_ROWS * width * piece)).for_each(|(out, rows)| {
        for (i, out) in out.chunks_exact_mut(size_of::<P>()).enumerate() {
            let panel = panel_of::<P>(|r| rows.get((r * width + i) * piece..));
            out.copy_from_slice(bytes_of(&panel));
        }
    });
    out
}

fn unpack_as<P: Panel>(cols: usize, panels: &[u8]) -> Vec<u8> {
    let (width, piece) = (cols / QK, size_of::<P::Row>());
    let mut out = vec![0; panels.len()];
    let groups = out.par_chunks_exact_mut(PANEL_ROWS * width * piece);
    groups.zip(panels.par_chunks_exact(width * size_of::<P>())).for_each(|(out, panels)| {
        for (i, panel) in panels.chunks_exact(size_of::<P>()).enumerate() {
            for (r, row) in pod_read_unaligned::<P>(panel).to_rows().iter().enumerate() {
                out[(r * width + i) * piece..][..piece].copy_from_slice(bytes_of(row));
            }
        }
    });
    out
}

/// The panel of the pieces that `row` begins with; a row that is not there is zero.
pub(super) fn panel_of<'a, P: Panel>(row: impl Fn(usize) -> Option<&'a [u8]>) -> P {
    let bytes = |r| row(r).and_then(|bytes| bytes.get(..size_of::<P::Row>()));
    let piece = |r| bytes(r).map_or_else(P::Row::zeroed, pod_read_unaligned);
    P::from_rows(&std::array::from_fn(piece))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix of rows of 256 columns, all of them different.
    fn view(dtype: DType, rows: usize) -> TensorView {
        let row = dtype.row_bytes(QK).unwrap();
        let bytes: Vec<u8> = (0..rows * row).map(|i| (i ^ (i / row * 31)) as u8).collect();
        TensorView { name: "m".into(), dtype, rows, cols: QK, panels: false, bytes: Bytes::copy(&bytes) }
    }

    #[test]
    fn rows_become_panels_piece_by_piece() {
        for dtype in [DType::Q4_0, DType::Q4_K, DType::Q6_K, DType::Q8_0] {
            // Two whole pieces and a part of one.
            let rows = (2 * PIECE / dtype.row_bytes(QK).unwrap()).next_multiple_of(16) + 32;
            let rows = view(dtype, rows);
            let panels = in_memory(rows.clone()).unwrap();
            assert!(panels.panels && unpack(dtype, QK, &panels.bytes) == *rows.bytes, "{}", dtype.name());
        }
    }

    #[test]
    fn what_has_no_panels_stays_in_rows() {
        assert!(!in_memory(view(DType::Q4_0, 17)).unwrap().panels);
        assert!(!in_memory(view(DType::F16, 16)).unwrap().panels);
        // A view that is no matrix is left for the model to refuse.
        let short = TensorView { rows: 32, ..view(DType::Q4_0, 16) };
        assert!(!in_memory(short).unwrap().panels);
    }
}
