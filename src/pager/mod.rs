//! Bringing experts into memory. One interface: *give me tile t of expert (layer, e)*.
//!
//! The container is mapped and the page cache is the cache; [`Usage`] counts what was asked for.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{
    container::Bytes,
    error::{Error, Result},
};

/// The tiles of every expert of a model, and the counters of their use.
#[derive(Debug)]
pub struct Pager {
    blobs: Vec<Bytes>,
    experts: usize,
    tile_bytes: usize,
    tiles: usize,
    reads: Vec<AtomicU64>,
}

/// What a pager was asked for so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tiles handed out for each expert, by `layer * experts + expert`.
    pub reads: Vec<u64>,
    /// Bytes of tiles handed out.
    pub bytes: u64,
}

impl Pager {
    /// A pager over `blobs` (layer-major, `experts` a layer), each a whole number of tiles of `tile_bytes`.
    /// A model without tiled experts has none.
    ///
    /// # Errors
    /// [`Error::Argument`] when a blob has another size than the others or is no whole number of tiles.
    pub fn new(blobs: Vec<Bytes>, experts: usize, tile_bytes: usize) -> Result<Self> {
        let tiles = blobs.first().map_or(0, |b| b.len() / tile_bytes.max(1));
        if let Some(i) = blobs.iter().position(|b| b.len() != tiles * tile_bytes) {
            let (layer, expert) = (i / experts.max(1), i % experts.max(1));
            return Err(Error::Argument(format!(
                "expert {expert} of layer {layer} is no row of {tiles} tiles of {tile_bytes} bytes"
            )));
        }
        let reads = blobs.iter().map(|_| AtomicU64::new(0)).collect();
        Ok(Self { blobs, experts, tile_bytes, tiles, reads })
    }

    /// Tiles of one expert.
    pub fn tiles(&self) -> usize {
        self.tiles
    }

    /// Bytes of one expert.
    pub fn expert_bytes(&self) -> usize {
        self.tiles * self.tile_bytes
    }

    /// Tile `t` of an expert.
    ///
    /// # Errors
    /// [`Error::Argument`] for an expert or a tile that does not exist.
    pub fn tile(&self, layer: usize, expert: usize, t: usize) -> Result<&[u8]> {
        let index = layer * self.experts + expert;
        if expert >= self.experts || index >= self.blobs.len() || t >= self.tiles {
            return Err(Error::Argument(format!("there is no tile {t} of expert {expert} of layer {layer}")));
        }
        self.reads[index].fetch_add(1, Relaxed);
        Ok(&self.blobs[index][t * self.tile_bytes..][..self.tile_bytes])
    }

    /// The counters so far.
    pub fn usage(&self) -> Usage {
        let reads: Vec<u64> = self.reads.iter().map(|r| r.load(Relaxed)).collect();
        let bytes = reads.iter().sum::<u64>() * self.tile_bytes as u64;
        Usage { reads, bytes }
    }
}
