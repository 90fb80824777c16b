//! The layout of an expert as neuron tiles (FORMAT.md, "Tiles").

use bytemuck::{cast_slice, cast_slice_mut};
use rayon::prelude::*;
use yuan_kernels::{
    BlockQ4_0, BlockQ4K, DType, PanelQ4_0, PanelQ4K,
    panel::PANEL_ROWS,
    tile::{TILE_NEURONS, tile_bytes, tile_panels},
};

/// The shape of an expert's blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileLayout {
    /// Columns of gate and up, rows of down (H); a multiple of 256.
    pub hidden: usize,
    /// Neurons of the expert (F); the last tile is filled up with zeros.
    pub ffn: usize,
    /// `Q4_K` or `Q4_0`: what the tiles permute.
    pub dtype: DType,
}

impl TileLayout {
    /// A layout, or `None` where the model or the type has none.
    pub fn new(hidden: usize, ffn: usize, dtype: DType) -> Option<Self> {
        let fits = hidden > 0 && hidden.is_multiple_of(TILE_NEURONS) && ffn > 0;
        (fits && matches!(dtype, DType::Q4_K | DType::Q4_0)).then_some(Self { hidden, ffn, dtype })
    }

    /// Bytes of one tile.
    pub const fn tile_bytes(&self) -> usize {
        tile_bytes(self.hidden)
    }

    /// Tiles of one expert.
    pub const fn tiles(&self) -> usize {
        self.ffn.div_ceil(TILE_NEURONS)
    }

    /// Bytes of one expert.
    pub const fn expert_bytes(&self) -> usize {
        self.tile_bytes() * self.tiles()
    }

    /// Columns of `w2` rows once they are filled up to whole tiles.
    pub const fn padded_ffn(&self) -> usize {
        self.tiles() * TILE_NEURONS
    }

    /// The blob of an expert from its rows: `w1` [2F, H], gate rows over up rows, and `w2` [H, `padded_ffn`].
    ///
    /// # Panics
    /// If the slices are not of these sizes.
    pub fn pack(&self, w1: &[u8], w2: &[u8]) -> Vec<u8> {
        let mut blob = vec![0; self.expert_bytes()];
        match self.dtype {
            DType::Q4_0 => self.pack_as::<PanelQ4_0>(w1, w2, &mut blob),
            _ => self.pack_as::<PanelQ4K>(w1, w2, &mut blob),
        }
        blob
    }

    /// The inverse of [`TileLayout::pack`]: `(w1, w2)`.
    ///
    /// # Panics
    /// If `blob` is not [`TileLayout::expert_bytes`] long.
    pub fn unpack(&self, blob: &[u8]) -> (Vec<u8>, Vec<u8>) {
        match self.dtype {
            DType::Q4_0 => self.unpack_as::<PanelQ4_0>(blob),
            _ => self.unpack_as::<PanelQ4K>(blob),
        }
    }

    fn pack_as<P: RowPanel>(&self, w1: &[u8], w2: &[u8], blob: &mut [u8]) {
        let row = self.hidden / TILE_NEURONS * P::ROW_BYTES;
        assert_eq!(w1.len(), 2 * self.ffn * row);
        assert_eq!(w2.len(), self.hidden * self.tiles() * P::ROW_BYTES);
        let (gate, up) = w1.split_at(self.ffn * row);
        let tiles = cast_slice_mut::<u8, P>(blob).par_chunks_exact_mut(tile_panels(self.hidden));
        tiles.enumerate().for_each(|(t, tile)| {
            for (i, panel) in tile.iter_mut().enumerate() {
                let (matrix, first, stride, column) = self.place(t, i);
                let from = [gate, up, w2][matrix];
                *panel = P::pack(|r| {
                    let start = (first + r) * stride * P::ROW_BYTES + column * P::ROW_BYTES;
                    from.get(start..start + P::ROW_BYTES)
                });
            }
        });
    }

    fn unpack_as<P: RowPanel>(&self, blob: &[u8]) -> (Vec<u8>, Vec<u8>) {
        assert_eq!(blob.len(), self.expert_bytes());
        let row = self.hidden / TILE_NEURONS * P::ROW_BYTES;
        let (mut gate, mut up) = (vec![0; self.ffn * row], vec![0; self.ffn * row]);
        let mut w2 = vec![0; self.hidden * self.tiles() * P::ROW_BYTES];
        for (t, tile) in blob.chunks_exact(self.tile_bytes()).enumerate() {
            for (i, panel) in tile.chunks_exact(size_of::<P>()).enumerate() {
                let (matrix, first, stride, column) = self.place(t, i);
                let to = [&mut gate, &mut up, &mut w2][matrix].as_mut_slice();
                bytemuck::pod_read_unaligned::<P>(panel).unpack(|r, bytes| {
                    let start = (first + r) * stride * P::ROW_BYTES + column * P::ROW_BYTES;
                    if let Some(to) = to.get_mut(start..start + P::ROW_BYTES) {
                        to.copy_from_slice(bytes);
                    }
                });
            }
        }
        gate.append(&mut up);
        (gate, w2)
    }

    /// Where panel `i` of tile `t` comes from: the matrix (0 gate, 1 up, 2 down), its first row, the superblocks of one of
    /// its rows, and the superblock. Neurons behind the last have no rows: they stay zero.
    fn place(&self, t: usize, i: usize) -> (usize, usize, usize, usize) {
        let width = self.hidden / TILE_NEURONS;
        let gate_up = 2 * (TILE_NEURONS / PANEL_ROWS) * width;
        if i < gate_up {
            let (group, within) = (i / (2 * width), i % (2 * width));
            (within / width, t * TILE_NEURONS + group * PANEL_ROWS, width, within % width)
        } else {
            (2, (i - gate_up) * PANEL_ROWS, self.tiles(), t)
        }
    }
}

/// A panel as sixteen pieces of rows, each 256 weights in its standard block type.
trait RowPanel: bytemuck::Pod + Send + Sync {
    /// Bytes of 256 weights of one row.
    const ROW_BYTES: usize;
    /// A panel of the pieces that `row` gives; a row that is not there is zero.
    fn pack<'a>(row: impl Fn(usize) -> Option<&'a [u8]>) -> Self;
    /// Gives the piece of each row to `row`.
    fn unpack(&self, row: impl FnMut(usize, &[u8]));
}

impl RowPanel for PanelQ4K {
    const ROW_BYTES: usize = size_of::<BlockQ4K>();

    fn pack<'a>(row: impl Fn(usize) -> Option<&'a [u8]>) -> Self {
        let zero: BlockQ4K = bytemuck::Zeroable::zeroed();
        Self::pack(&std::array::from_fn(|r| row(r).map_or(zero, bytemuck::pod_read_unaligned)))
    }

    fn unpack(&self, mut row: impl FnMut(usize, &[u8])) {
        self.unpack().iter().enumerate().for_each(|(r, block)| row(r, bytemuck::bytes_of(block)));
    }
}

impl RowPanel for PanelQ4_0 {
    const ROW_BYTES: usize = 8 * size_of::<BlockQ4_0>();

    fn pack<'a>(row: impl Fn(usize) -> Option<&'a [u8]>) -> Self {
        let zero: [BlockQ4_0; 8] = bytemuck::Zeroable::zeroed();
        Self::pack(&std::array::from_fn(|r| row(r).map_or(zero, bytemuck::pod_read_unaligned)))
    }

    fn unpack(&self, mut row: impl FnMut(usize, &[u8])) {
        self.unpack().iter().enumerate().for_each(|(r, blocks)| row(r, cast_slice(blocks)));
    }
}
