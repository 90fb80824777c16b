//! How fast tokens can come at most: what one reads, from where, and how fast that delivers.

use yuan::{
    config::ModelConfig,
    model::{GpuPlacement, Placement, Sizes},
    pager::Mode,
};

use crate::fits::{Reads, Speeds};

/// What a token takes.
#[derive(Clone, Copy, Debug)]
pub struct Forecast {
    /// Bytes of weights that it reads.
    pub weights: u64,
    /// Those of them that a GPU has.
    pub on_gpu: u64,
    /// Seconds that the GPU's memory needs for them.
    pub on_gpu_time: f64,
    /// Seconds that memory needs for the others.
    pub compute: f64,
    /// Bytes that the drive delivers for it.
    pub read: f64,
    /// Seconds that the drive needs for them.
    pub wait: f64,
    /// Tokens a second.
    pub speed: f64,
}

impl Forecast {
    /// [`Forecast::of`] a model that uses its experts evenly, which is the worst case where they are streamed.
    pub fn evenly(config: &ModelConfig, sizes: &Sizes, p: &Placement, speeds: Speeds) -> Self {
        let rate = if p.mode == Mode::Streamed { p.resident as f64 / p.experts.max(1) as f64 } else { 1.0 };
        Self::of(config, sizes, p, speeds, rate)
    }

    /// Of a model that is placed so, whose experts are found in memory at that `rate`, from 0 to 1.
    pub fn of(config: &ModelConfig, sizes: &Sizes, p: &Placement, speeds: Speeds, rate: f64) -> Self {
        let Reads { weights, experts } = Reads::of(config, sizes, p);
        // The CPU reads what the GPU does not have, and the drive delivers of that what memory does not have.
        let (there, on_gpu) = match &p.gpu {
            GpuPlacement::Off(_) => (0.0, 0),
            GpuPlacement::On { room, .. } => {
                let there = room.slots as f64 / p.experts.max(1) as f64;
                (there, weights - experts + (experts as f64 * there) as u64)
            }
        };
        let on_gpu_time = match &p.gpu {
            GpuPlacement::On { bandwidth, .. } if *bandwidth > 0 => on_gpu as f64 / *bandwidth as f64,
            _ => 0.0,
        };
        let compute = (weights - on_gpu) as f64 / 1e9 / speeds.memory;
        let read = experts as f64 * (1.0 - rate) * (1.0 - there);
        let wait = speeds.drive.map_or(0.0, |d| read / 1e9 / d);
        let speed = 1.0 / compute.max(wait).max(on_gpu_time).max(1e-9);
        Self { weights, on_gpu, on_gpu_time, compute, read, wait, speed }
    }
}
