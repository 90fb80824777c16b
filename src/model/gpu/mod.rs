//! The model on a GPU: its trunk and the sessions' keys and values lie there, and as many experts as there is room for.

mod experts;
mod forward;
mod layers;
mod measure;
mod mirror;
mod output;
mod pages;
mod part;
mod pass;
mod ring;
mod scratch;
mod trunk;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

pub use mirror::Mirror;
pub use pages::PAGE;

use yuan_cuda::launch::FEW;

use super::{Arithmetic, BATCH, GpuPlacement, GpuUse, Model, Options};
use crate::{
    config::ModelConfig,
    container::{Container, TileLayout},
    error::{Error, Result},
    gpu::{
        Device, Settings,
        driver::Stream,
        memory::{Buffer, Pinned},
        ops::{Ops, f32s},
    },
    pager::sync::{Mutex, lock},
};
use experts::Slots;
use forward::TokenGraph;
use pages::Pages;
use scratch::{LOGIT_ROWS, SEQUENCES, Scratch, Shape, Size, partials_bytes};
use trunk::Trunk;

/// A GPU that takes part. One call at a time uses it.
#[derive(Debug)]
pub struct Gpu {
    device: Arc<Device>,
    runner: Mutex<Runner>,
    /// The runner's, which no call holds for long.
    usage: Arc<Mutex<GpuUse>>,
    there: Arc<[AtomicBool]>,
    /// Whether it was said that the device has failed, and that it had no room for a call.
    told: AtomicBool,
    told_full: AtomicBool,
}

/// What a call uses.
#[derive(Debug)]
pub struct Runner {
    device: Arc<Device>,
    shape: Shape,
    trunk: Trunk,
    slots: Slots,
    scratch: Scratch,
    pages: Pages,
    /// The layers of single tokens.
    graphs: Vec<TokenGraph>,
    /// What a call sends, and what it brings back.
    inputs: Pinned,
    outputs: Pinned,
    /// For logits, keys and values.
    pinned: Pinned,
}

/// Bytes of logits, keys or values that are copied at once.
const PINNED: usize = 8 << 20;

/// Bytes of a call's intermediate results.
pub fn scratch_bytes(config: &ModelConfig, layout: &TileLayout, tokens: usize, context: usize) -> u64 {
    Scratch::bytes(&Shape::new(config, layout), tokens, context)
}

pub use trunk::embedding_bytes;

/// Bytes of the trunk on a GPU, or why the model does not run there.
pub fn trunk_bytes(container: &Container, options: &Options) -> Result<u64, String> {
    use yuan_cuda::launch::{heads, rms_norm, route};
    let config = container.config();
    if config.experts == 0 {
        return Err("a dense model runs on the CPU only".into());
    }
    if options.arithmetic == Arithmetic::Float {
        return Err("--float runs on the CPU only".into());
    }
    let Some(kv) = mirror::dtype(options.kv) else {
        return Err(format!("--kv {} is for the CPU only; take f16 or q8_0", options.kv.name()));
    };
    let fits = rms_norm(config.hidden, 1).is_some()
        && heads(kv, config.heads, config.head_dim(), 1).is_some()
        && route(config.experts, config.experts_used, 1).is_some();
    match fits {
        true => trunk::trunk_bytes(container),
        false => Err("the kernels do not know a model of this shape".into()),
    }
}

impl Gpu {
    /// How it was used so far.
    pub fn usage(&self) -> GpuUse {
        *lock(&self.usage)
    }

    /// Which experts it has, by `layer * experts + expert`.
    pub fn there(&self) -> Vec<bool> {
        self.there.iter().map(|there| there.load(Relaxed)).collect()
    }
}

impl Runner {
    fn new(model: &Model, container: &Container, device: &Arc<Device>, settings: &Settings) -> Result<Self> {
        let (Some(layout), Some(room)) = (container.tile_layout(), model.placement.gpu.room()) else {
            return Err(Error::Argument("the experts are not in tiles; convert it with yuan-quant".into()));
        };
        let shape = Shape::new(container.config(), &layout);
        let trunk = Trunk::send(model, device, room.embedding > 0)?;
        let pinned = |bytes| Pinned::new(device, bytes, Stream::Compute);
        let costs = match settings.costs {
            Some(costs) => costs,
            None => measure::costs(model, device, &shape)?,
        };
        let mut runner = Self {
            device: device.clone(),
            shape,
            trunk,
            slots: Slots::new(device, &shape, room, costs)?,
            scratch: Scratch::new(device, &shape, 1, [1; 3])?,
            pages: Pages::new(device, room.kv),
            graphs: Vec::new(),
            inputs: pinned(1)?,
            outputs: pinned(1)?,
            pinned: pinned(PINNED)?,
        };
        let (batch, context) =
            (model.placement.batch.min(BATCH), (room.needs.kv / room.needs.page.max(1)) as usize * PAGE);
        runner.reserve(Size::most(batch, context), shape.ends(batch) + SEQUENCES)?;
        runner.slots.fill(model)?;
        Ok(runner)
    }

    /// Makes room for passes of this size with so many ends.
    fn reserve(&mut self, size: Size, ends: usize) -> Result<()> {
        let (device, shape, s) = (&self.device, &self.shape, &mut self.scratch);
        let wanted = [
            shape.inputs(size).end,
            shape.ends_bytes(ends),
            partials_bytes(shape, size.rows.min(FEW), size.stride),
        ];
        let there = [s.inputs.size(), s.ends.size(), s.partials.size()];
        let most: [usize; 3] = std::array::from_fn(|i| wanted[i].max(there[i]));
        let pinned = |bytes| Pinned::new(device, bytes, Stream::Compute);
        if self.inputs.size() < most[0] {
            self.inputs = pinned(most[0])?;
        }
        if self.outputs.size() < most[1] {
            self.outputs = pinned(most[1])?;
        }
        if size.rows > s.tokens {
            self.slots.reserve(size.rows)?;
            self.scratch = Scratch::new(device, shape, size.rows, most)?;
            return Ok(());
        }
        // Longer sessions than the model was opened for.
        for (i, buffer) in [&mut s.inputs, &mut s.ends, &mut s.partials].into_iter().enumerate() {
            if buffer.size() < most[i] {
                *buffer = Buffer::new(device, most[i])?;
            }
        }
        Ok(())
    }
}

impl Model {
    /// Sends the trunk to the GPU that the placement names, if it names one.
    pub(super) fn load_gpu(&mut self, container: &Container, settings: &Settings) -> Result<()> {
        let GpuPlacement::On { number, .. } = self.placement.gpu else { return Ok(()) };
        let load = || -> Result<Gpu> {
            let failed = |reason| Error::Gpu { device: format!("{number}"), problem: reason };
            let driver = settings.driver().map_err(failed)?;
            let devices = driver.devices().map_err(|f| failed(format!("{}: {}", f.call, f.reason)))?;
            let info = devices
                .iter()
                .find(|d| d.number == number)
                .ok_or_else(|| failed("it is not there".into()))?;
            let device = Device::open(&*driver, info)?;
            let runner = Runner::new(self, container, &device, settings)?;
            Ok(Gpu {
                device,
                usage: runner.slots.usage.clone(),
                there: runner.slots.there.clone(),
                runner: Mutex::new(runner),
                told: AtomicBool::new(false),
                told_full: AtomicBool::new(false),
            })
        };
        match load() {
            Ok(gpu) => self.gpu = Some(gpu),
            Err(error) if settings.choice == crate::gpu::Choice::Auto => {
                tracing::warn!("the model runs on the CPU: {error}");
                self.placement.gpu = GpuPlacement::Off(error.to_string());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The GPU, as long as it works.
    pub(super) fn gpu(&self) -> Option<&Gpu> {
        // Prescribed routing is for measuring the pager.
        let gpu = self.gpu.as_ref().filter(|_| self.script.is_none())?;
        if gpu.device.has_failed() {
            if !gpu.told.swap(true, Relaxed) {
                tracing::warn!("the GPU has failed; the model goes on on the CPU");
            }
            return None;
        }
        Some(gpu)
    }

    /// [`Model::logits`] on the GPU, for whole rows, if one takes part that has memory for it.
    pub(super) fn logits_gpu(&self, hidden: &[f32]) -> Option<Result<Vec<f32>>> {
        let gpu = self.gpu()?;
        match self.logits_there(gpu, hidden) {
            Err(Error::Memory(why)) => {
                gpu.tell_full(&why);
                None
            }
            logits => Some(logits),
        }
    }

    fn logits_there(&self, gpu: &Gpu, hidden: &[f32]) -> Result<Vec<f32>> {
        let mut runner = lock(&gpu.runner);
        let width = self.config.hidden;
        let mut logits = Vec::with_capacity(hidden.len() / width * self.config.vocab);
        // What there is room for in any case.
        let most = runner.scratch.tokens.min(LOGIT_ROWS);
        for rows in hidden.chunks(most * width) {
            let (n, bytes) = (rows.len() / width, f32s(rows.len()));
            let Runner { inputs, scratch: s, trunk, .. } = &mut *runner;
            inputs.host()?[..bytes].copy_from_slice(bytemuck::cast_slice(rows));
            inputs.upload(0..bytes, s.inputs.view())?;
            let ops = Ops::new(&gpu.device);
            ops.copy(s.a.data.view(), s.inputs.part(0..bytes)?)?;
            let blocks = (s.a.q8.view(), trunk.head.form());
            ops.quantize(s.a.data.view(), blocks, (n, width))?;
            runner.head(n)?;
            runner.collect_logits(n, &mut logits)?;
        }
        Ok(logits)
    }
}
