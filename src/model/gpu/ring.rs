//! The way of an expert to the GPU: tiles go into pinned memory, from which the GPU takes them.

use std::sync::Arc;

use rayon::prelude::*;

use crate::{
    error::Result,
    gpu::{
        Device,
        driver::Stream,
        memory::{Pinned, View},
    },
    model::compute::Compute,
};

/// Tiles that are on their way together.
const LANES: usize = 8;

/// Pinned memory for some tiles.
#[derive(Debug)]
pub struct Ring {
    lanes: Vec<Pinned>,
    tile_bytes: usize,
}

impl Ring {
    pub fn new(device: &Arc<Device>, tiles: usize, tile_bytes: usize) -> Result<Self> {
        let lane = |_| Pinned::new(device, tile_bytes, Stream::Copy);
        Ok(Self { lanes: (0..LANES.min(tiles)).map(lane).collect::<Result<_>>()?, tile_bytes })
    }

    /// Queues the copies of `tiles` tiles to `to` on the stream of copies, each as soon as `tile` gives it. Threads share the work.
    pub fn send<'t>(
        &mut self,
        compute: &Compute,
        tiles: usize,
        tile: impl Fn(usize) -> Result<&'t [u8]> + Sync,
        to: View<'_>,
    ) -> Result<()> {
        let (count, bytes) = (self.lanes.len(), self.tile_bytes);
        let send = |(lane, pinned): (usize, &mut Pinned)| -> Result<()> {
            (lane..tiles).step_by(count).try_for_each(|t| {
                let tile = tile(t)?;
                pinned.host()?.copy_from_slice(tile);
                pinned.upload(0..bytes, to.part(t * bytes..(t + 1) * bytes)?)
            })
        };
        let lanes = &mut self.lanes;
        compute.run(|| lanes.par_iter_mut().with_max_len(1).enumerate().try_for_each(send))
    }
}
