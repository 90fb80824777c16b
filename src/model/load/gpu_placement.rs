//! Whether a GPU takes part, and what goes into its memory, decided before any weight is read.

use super::Options;
use crate::{
    container::Container,
    error::{Error, Result},
    gpu::{Choice, Room},
};

/// Whether a GPU takes part.
#[derive(Clone, Debug)]
pub enum GpuPlacement {
    /// It does.
    On {
        /// Its name, number and compute capability, for people.
        device: String,
        /// Its number.
        number: usize,
        /// Bytes a second that its memory delivers; 0 where the driver does not say.
        bandwidth: u64,
        /// Its memory.
        room: Room,
    },
    /// It does not, for this reason.
    Off(String),
}

/// How often experts were computed where, and how many bytes of them were copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuUse {
    /// In the GPU's memory.
    pub there: u64,
    /// Copied to it.
    pub copied: u64,
    /// Computed on the CPU.
    pub on_cpu: u64,
    /// Bytes of experts that were copied.
    pub bytes: u64,
}

impl GpuPlacement {
    /// The rule: where a GPU is asked for or `auto` finds one, it takes part if the model has a form that its kernels read and trunk, keys
    /// and values fit. `tokens` go through the model together.
    ///
    /// # Errors
    /// [`Error::Argument`] with the remedy, where a GPU is asked for by its number and cannot take part.
    pub fn new(container: &Container, options: &Options, tokens: usize) -> Result<Self> {
        match (options.gpu.choice, decide(container, options, tokens)) {
            (Choice::Off, _) => Ok(Self::Off("as asked for".into())),
            (_, Ok(on)) => Ok(on),
            (Choice::Auto, Err(why)) => Ok(Self::Off(why)),
            (Choice::Device(n), Err(why)) => {
                Err(Error::Argument(format!("--gpu {n}: {why}; --gpu off runs on the CPU")))
            }
        }
    }

    /// The division of its memory, if one takes part.
    pub fn room(&self) -> Option<&Room> {
        match self {
            Self::On { room, .. } => Some(room),
            Self::Off(_) => None,
        }
    }
}

#[cfg(not(feature = "gpu"))]
fn decide(_: &Container, _: &Options, _: usize) -> std::result::Result<GpuPlacement, String> {
    Err("this build has no CUDA: build it with --features cuda (README.md, \"GPU\")".into())
}

#[cfg(feature = "gpu")]
fn decide(
    container: &Container,
    options: &Options,
    tokens: usize,
) -> std::result::Result<GpuPlacement, String> {
    use crate::gpu::{Needs, driver::Info};
    use crate::machine::budget::Limit;

    // Without a driver nothing is worth a word about the model.
    let driver = options.gpu.driver()?;
    let devices = driver.devices().map_err(|fault| format!("{}: {}", fault.call, fault.reason))?;
    let fits = |d: &&Info| match options.gpu.choice {
        Choice::Device(number) => d.number == number,
        _ => d.compute >= (7, 0),
    };
    let found = devices.iter().find(fits).ok_or_else(|| match options.gpu.choice {
        Choice::Device(_) => format!("there is no such GPU among {}", devices.len()),
        _ => "no GPU has compute capability 7.0 or later".into(),
    })?;
    if found.compute < (7, 0) {
        let (major, minor) = found.compute;
        return Err(format!("{} has compute capability {major}.{minor}, and 7.0 is needed", found.name));
    }
    let trunk = super::super::gpu::trunk_bytes(container, options)?;
    let config = container.config();
    // What sessions do not say is taken to be a short one.
    let context = if options.context == 0 { config.context.min(4096) } else { options.context };
    let layout = container.tile_layout().ok_or("its experts are not in tiles; convert it with yuan-quant")?;
    let page = (super::super::State::kv_bytes(config, options.kv) as u64)
        .saturating_mul(super::super::gpu::PAGE as u64);
    let needs = Needs {
        trunk,
        kv: page.saturating_mul(context.div_ceil(super::super::gpu::PAGE) as u64),
        page,
        scratch: super::super::gpu::scratch_bytes(config, &layout, tokens, context),
        expert: layout.expert_bytes() as u64,
        experts: config.layers * config.experts,
        embedding: super::super::gpu::embedding_bytes(container),
    };
    let budget = match options.gpu.memory {
        None => Room::usable(found.free),
        Some(Limit::Bytes(bytes)) => bytes.min(found.free),
        Some(Limit::Percent(share)) => (found.free as f64 * share / 100.0) as u64,
    };
    let room = Room::divide(budget, needs).map_err(|smallest| {
        format!(
            "the memory of {}, {budget} bytes to use, does not hold trunk ({}), keys and values ({}) and scratch ({}): {smallest} bytes are \
             needed; a shorter --context or --kv q8_0 makes it less",
            found.name, needs.trunk, needs.kv, needs.scratch
        )
    })?;
    let device = format!("{} {} (sm_{}{})", found.number, found.name, found.compute.0, found.compute.1);
    Ok(GpuPlacement::On { device, number: found.number, bandwidth: found.bandwidth, room })
}
