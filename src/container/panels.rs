//! Matrices as panels of sixteen rows (FORMAT.md, "The panel").

use bytemuck::{Zeroable, bytes_of, pod_read_unaligned};
use rayon::prelude::*;
use yuan_kernels::{
    DType,
    blocks::QK,
    panel::{PANEL_ROWS, Panel, panel_bytes},
    with_panel,
};

/// The dims (innermost first) of a matrix `[rows, cols]` in panels of `dtype`: the bytes of sixteen rows, and how many
/// sixteens there are. `None` where panels do not cut it.
pub(crate) fn panel_dims(dtype: DType, rows: usize, cols: usize) -> Option<Vec<u64>> {
    let fits = rows.is_multiple_of(PANEL_ROWS) && cols.is_multiple_of(QK) && rows > 0 && cols > 0;
    let panel = panel_bytes(dtype).filter(|_| fits)?;
    Some(vec![(cols / QK * panel) as u64, (rows / PANEL_ROWS) as u64])
}

/// Rows `[rows, cols]` of `dtype` as panels: sixteen rows after another, each from its first 256 columns to its last.
///
/// # Panics
/// If the type has no panels, or `rows` is not made of sixteens of whole rows.
pub(crate) fn pack(dtype: DType, cols: usize, rows: &[u8]) -> Vec<u8> {
    with_panel!(dtype, P => pack_as::<P>(cols, rows), _ => panic!("there are no panels of {}", dtype.name()))
}

/// The inverse of [`pack`].
///
/// # Panics
/// As [`pack`].
pub(crate) fn unpack(dtype: DType, cols: usize, panels: &[u8]) -> Vec<u8> {
    with_panel!(dtype, P => unpack_as::<P>(cols, panels), _ => panic!("there are no panels of {}", dtype.name()))
}

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
