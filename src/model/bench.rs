//! The forward pass's two kinds of work on their own, for benchmarks against other programs. Not part of the interface.

use rayon::prelude::*;
use yuan_kernels::{DType, Kernels};

use super::{
    activations::Activations,
    compute::{Arithmetic, Compute},
    feed_forward::Experts,
    matrix::Matrix,
    probe::Watch,
    router::Routing,
    scratch::Buffer,
    threads::Threads,
};
use crate::{
    container::{Bytes, TensorView, TileLayout, pack_panels},
    error::Result,
    pager::Pager,
};

/// The model's threads and kernels.
#[derive(Debug)]
pub struct Bench(Compute);

/// A matrix of the trunk.
#[derive(Debug)]
pub struct Trunk(Matrix);

/// A layer of experts in tiles.
#[derive(Debug)]
pub struct Layer {
    experts: Experts,
    pager: Pager,
    blobs: Vec<Bytes>,
    tile_bytes: usize,
    hidden: usize,
}

impl Bench {
    /// `threads` of 0 means all.
    ///
    /// # Errors
    /// As for a model.
    pub fn new(threads: usize) -> Result<Self> {
        Compute::new(Threads::new(threads, 0)?, Arithmetic::Integer, None).map(Self)
    }

    /// [`Bench::new`] with these kernels.
    ///
    /// # Errors
    /// As [`Bench::new`].
    pub fn with_kernels(threads: usize, kernels: &'static Kernels) -> Result<Self> {
        let Self(mut compute) = Self::new(threads)?;
        compute.kernels = *kernels;
        Ok(Self(compute))
    }

    /// Name of the kernels in use.
    pub fn kernels(&self) -> &'static str {
        self.0.kernels.name
    }

    /// Runs `work` on the threads, as a whole pass runs: what it calls then wakes none that sleep.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.0.run(work)
    }

    /// `x wᵀ`, quantization of `x` included.
    pub fn product(&self, w: &Trunk, x: &[f32]) -> Buffer {
        self.0.product(&w.0, &Activations::new(self.0.scratch.copy(x), w.0.cols))
    }

    /// Reads all experts of the layer, a tile at a time, and nothing else; the sum of their words.
    pub fn read(&self, layer: &Layer) -> u64 {
        let words = |tile: &[u8]| read(bytemuck::cast_slice(tile));
        let tiles = || layer.blobs.par_iter().flat_map(|blob| blob.par_chunks(layer.tile_bytes));
        self.0.run(|| tiles().map(words).reduce(|| 0, u64::wrapping_add))
    }

    /// The layer's output for the tokens `x`, each with its experts and their shares.
    ///
    /// # Errors
    /// Those of the pager.
    pub fn experts(&self, layer: &Layer, x: &[f32], chosen: &[Vec<(usize, f32)>]) -> Result<Buffer> {
        let used = chosen.first().map_or(1, Vec::len);
        let routing = Routing { logits: None, used, chosen: chosen.iter().flatten().copied().collect() };
        let x = Activations::new(self.0.scratch.copy(x), layer.hidden);
        let pass = layer.pager.begin();
        let request = layer.experts.request(&pass, &routing)?;
        // The experts lie in memory: none can be lost.
        layer.experts.apply(
            &self.0,
            request.as_ref(),
            &x,
            &routing,
            &|_, _| true,
            &mut Watch::new(None).at(0),
        )
    }
}

/// Words of a cache line.
const LINE: usize = 8;
/// Places from which a thread reads in turn. A core that reads one stream waits at the end of every page for its prefetching to begin
/// again: on a Zen 3, one stream got 14 GB/s, two 16 and four 18.
const STREAMS: usize = 4;

/// Reads memory as fast as a thread can: the sum of words, of which a line of each of four streams is read in turn.
pub fn read(words: &[u64]) -> u64 {
    let (lines, rest) = words.as_chunks::<LINE>();
    let (length, mut sums) = (lines.len() / STREAMS, [0u64; LINE]);
    let mut add =
        |line: &[u64]| sums.iter_mut().zip(line).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
    for i in 0..length {
        for stream in 0..STREAMS {
            add(&lines[stream * length + i]);
        }
    }
    lines[STREAMS * length..].iter().for_each(|line| add(line));
    add(rest);
    sums.into_iter().fold(0, u64::wrapping_add)
}

impl Trunk {
    /// A matrix of the bytes of its rows, which lie as they are or, as a container of ours has them, in panels.
    ///
    /// # Errors
    /// Where they are not exactly the matrix, or there are no such panels.
    pub fn new(dtype: DType, rows: usize, cols: usize, panels: bool, bytes: &[u8]) -> Result<Self> {
        let bytes = match panels {
            true => Bytes::copy(&pack_panels(dtype, cols, bytes)),
            false => Bytes::copy(bytes),
        };
        Matrix::new(TensorView { name: "bench".into(), dtype, rows, cols, panels, bytes }).map(Self)
    }
}

impl Layer {
    /// Bytes of all experts.
    pub fn len_bytes(&self) -> usize {
        self.blobs.iter().map(|blob| blob.len()).sum()
    }

    /// A layer of the blobs of its experts.
    ///
    /// # Errors
    /// Where a blob is not an expert of this layout.
    pub fn new(layout: TileLayout, experts: &[Vec<u8>]) -> Result<Self> {
        let blobs: Vec<Bytes> = experts.iter().map(|blob| Bytes::copy(blob)).collect();
        let tile_bytes = layout.tile_bytes();
        let pager = Pager::plain(blobs.clone(), experts.len(), tile_bytes)?;
        let experts = Experts::Tiles { layer: 0, dtype: layout.dtype };
        Ok(Self { experts, pager, blobs, tile_bytes, hidden: layout.hidden })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_once() {
        for length in [0, 1, 7, 8, 31, 32, 33, 100, 160] {
            let words: Vec<u64> = (0..length).map(|i| 1 << (i % 64)).collect();
            assert_eq!(read(&words), words.iter().fold(0, |a: u64, b| a.wrapping_add(*b)), "{length} words");
        }
    }
}
