//! The layout of an expert as neuron tiles (FORMAT.md, "Tiles").

use bytemuck::cast_slice_mut;
use rayon::prelude::*;
use yuan_kernels::{
    DType,
    panel::{PANEL_ROWS, Panel, panel_bytes},
    tile::{TILE_NEURONS, tile_bytes, tile_panels},
    with_panel,
};

use super::panels::panel_of;

/// The shape of an expert's blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileLayout {
    /// Columns of gate and up, rows of down (H); a multiple of 256.
    pub hidden: usize,
    /// Neurons of the expert (F); the last tile is filled up with zeros.
    pub ffn: usize,
    /// What the tiles permute: a type that has panels.
    pub dtype: DType,
}

impl TileLayout {
    /// A layout, or `None` where the model or the type has none.
    pub fn new(hidden: usize, ffn: usize, dtype: DType) -> Option<Self> {
        let fits = hidden > 0 && hidden.is_multiple_of(TILE_NEURONS) && ffn > 0;
        (fits && panel_bytes(dtype).is_some()).then_some(Self { hidden, ffn, dtype })
    }

    /// Bytes of one tile.
    pub const fn tile_bytes(&self) -> usize {
        match tile_bytes(self.dtype, self.hidden) {
            Some(bytes) => bytes,
            None => 0,
        }
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
    /// If the slices are not of these sizes, or the type has no tiles.
    pub fn pack(&self, w1: &[u8], w2: &[u8]) -> Vec<u8> {
        let mut blob = vec![0; self.expert_bytes()];
        with_panel!(self.dtype, P => self.pack_as::<P>(w1, w2, &mut blob), _ => no_tiles(self.dtype));
        blob
    }

    /// The inverse of [`TileLayout::pack`]: `(w1, w2)`.
    ///
    /// # Panics
    /// If `blob` is not [`TileLayout::expert_bytes`] long, or the type has no tiles.
    pub fn unpack(&self, blob: &[u8]) -> (Vec<u8>, Vec<u8>) {
        with_panel!(self.dtype, P => self.unpack_as::<P>(blob), _ => no_tiles(self.dtype))
    }

    fn pack_as<P: Panel>(&self, w1: &[u8], w2: &[u8], blob: &mut [u8]) {
        let row = self.hidden / TILE_NEURONS * size_of::<P::Row>();
        assert_eq!(w1.len(), 2 * self.ffn * row);
        assert_eq!(w2.len(), self.hidden * self.tiles() * size_of::<P::Row>());
        let (gate, up) = w1.split_at(self.ffn * row);
        let tiles = cast_slice_mut::<u8, P>(blob).par_chunks_exact_mut(tile_panels(self.hidden));
        tiles.enumerate().for_each(|(t, tile)| {
            for (i, panel) in tile.iter_mut().enumerate() {
                let (matrix, first, stride, column) = self.place(t, i);
                let from = [gate, up, w2][matrix];
                *panel = panel_of(|r| from.get(((first + r) * stride + column) * size_of::<P::Row>()..));
            }
        });
    }

    fn unpack_as<P: Panel>(&self, blob: &[u8]) -> (Vec<u8>, Vec<u8>) {
        assert_eq!(blob.len(), self.expert_bytes());
        let row = self.hidden / TILE_NEURONS * size_of::<P::Row>();
        let (mut gate, mut up) = (vec![0; self.ffn * row], vec![0; self.ffn * row]);
        let mut w2 = vec![0; self.hidden * self.tiles() * size_of::<P::Row>()];
        for (t, tile) in blob.chunks_exact(self.tile_bytes()).enumerate() {
            for (i, panel) in tile.chunks_exact(size_of::<P>()).enumerate() {
                let (matrix, first, stride, column) = self.place(t, i);
                let to = [&mut gate, &mut up, &mut w2][matrix].as_mut_slice();
                for (r, row) in bytemuck::pod_read_unaligned::<P>(panel).to_rows().iter().enumerate() {
                    let start = ((first + r) * stride + column) * size_of::<P::Row>();
                    if let Some(to) = to.get_mut(start..start + size_of::<P::Row>()) {
                        to.copy_from_slice(bytemuck::bytes_of(row));
                    }
                }
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

fn no_tiles(dtype: DType) -> ! {
    panic!("there are no tiles of {}", dtype.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "there are no tiles of f16")]
    fn another_type_is_not_taken_for_q4_k() {
        let layout = TileLayout { hidden: 256, ffn: 256, dtype: DType::F16 };
        layout.unpack(&vec![0; layout.expert_bytes()]);
    }
}
