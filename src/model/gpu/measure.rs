//! What it costs to copy an expert and to compute it on the CPU, measured when a model is loaded.

use std::{hint::black_box, sync::Arc, time::Instant};

use bytemuck::{Zeroable, cast_slice};
use rayon::prelude::*;
use yuan_kernels::{
    blocks::QK,
    panel::{PANEL_ROWS, Panel},
    tile::tile_pass,
    with_panel,
};

use super::{ring::Ring, scratch::Shape};
use crate::{
    error::{Error, Result},
    gpu::{Costs, Device, memory::Buffer},
    model::Model,
};

/// Tokens of the second measurement of the CPU.
const TOKENS: usize = 17;
/// Times that everything is done; the shortest counts.
const TIMES: usize = 3;

pub fn costs(model: &Model, device: &Arc<Device>, shape: &Shape) -> Result<Costs> {
    // Weights of any value: bytes that are no zeros, or the system would map one page for all of them.
    let bytes: Vec<u64> = vec![0x1111_1111_1111_1111; shape.tiles * shape.tile_bytes / 8];
    let bytes: &[u8] = cast_slice(&bytes);
    let copy = copy_time(model, device, bytes, shape)?;
    let cpu = |tokens| {
        let none = || Error::Argument(format!("there are no tiles of {}", shape.dtype.name()));
        with_panel!(shape.dtype, P => Ok(cpu_time::<P>(model, shape, bytes, tokens)), _ => Err(none()))
    };
    let (cpu_first, cpu_many) = (cpu(1)?, cpu(TOKENS)?);
    let costs = Costs { copy, cpu_first, cpu_more: (cpu_many - cpu_first).max(0.0) / (TOKENS - 1) as f64 };
    tracing::info!(
        "an expert takes {:.2} ms to the GPU, or {:.2} ms on the CPU and {:.2} for each further token",
        1e3 * costs.copy,
        1e3 * costs.cpu_first,
        1e3 * costs.cpu_more
    );
    Ok(costs)
}

/// Seconds to send an expert.
fn copy_time(model: &Model, device: &Arc<Device>, expert: &[u8], shape: &Shape) -> Result<f64> {
    let mut ring = Ring::new(device, shape.tiles, shape.tile_bytes)?;
    let place = Buffer::new(device, expert.len())?;
    let tile = |t: usize| Ok(&expert[t * shape.tile_bytes..][..shape.tile_bytes]);
    let mut best = f64::INFINITY;
    for _ in 0..TIMES {
        let start = Instant::now();
        ring.send(&model.compute, shape.tiles, tile, place.view())?;
        device.finish()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Seconds of an expert on the CPU's threads.
fn cpu_time<P: Panel>(model: &Model, shape: &Shape, expert: &[u8], tokens: usize) -> f64 {
    let x = vec![P::X::zeroed(); tokens * shape.hidden / QK];
    let pass = |tile: &[u8]| {
        let mut y = vec![[0f32; PANEL_ROWS]; tokens * shape.hidden / PANEL_ROWS];
        tile_pass::<P>(&model.compute.kernels, cast_slice(tile), shape.hidden, &x, &mut y);
        black_box(&y);
    };
    let once = |_| {
        let start = Instant::now();
        model.compute.enter(tokens, || expert.par_chunks_exact(shape.tile_bytes).for_each(pass));
        start.elapsed().as_secs_f64()
    };
    (0..TIMES).map(once).fold(f64::INFINITY, f64::min)
}
