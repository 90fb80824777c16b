//! What is known of a container before its model runs: its size, its bits, and the speed to expect.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use serde_json::{Map, Value, json};
use yuan::{
    config::Architecture,
    container::Container,
    machine::budget::Budget,
    model::{Placement, Sizes, threads::usable_cores},
    pager::{self, Mode},
};
use yuan_tools::{console::busy, models::name_of, open::RunArgs};

use crate::{bandwidth::read_bandwidth, fits::Speeds, forecast::Forecast};

/// Tokens that sessions of the forecast have room for.
const CONTEXT: usize = 2048;

/// A container.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What people call it: its whole path where several have one name.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bits of a weight, over all tensors.
    pub bits: f64,
    /// Bits of an expert's weight, where there are experts.
    pub expert_bits: Option<f64>,
    /// Tokens a second at most; none where that is not known.
    pub speed: Option<f64>,
}

impl Facts {
    /// Of containers whose models would run as `run` says, on a machine whose memory and drive deliver so many GB a second, which are measured where they are not given.
    ///
    /// # Errors
    /// One of them cannot be opened.
    pub fn of_all(
        paths: &[PathBuf],
        run: &RunArgs,
        memory: Option<f64>,
        drive: Option<f64>,
    ) -> anyhow::Result<Vec<Self>> {
        let containers = paths.iter().map(|path| Container::open(path)).collect::<Result<Vec<_>, _>>()?;
        let memory = memory.or_else(|| {
            let _busy = busy("measuring how fast memory is read");
            let threads = if run.threads == 0 { usable_cores() } else { run.threads };
            read_bandwidth(threads, Budget::of(run.paging.memory).bytes / 2).ok()
        });
        let of = |(path, container): (&PathBuf, &Container)| {
            Self::of(path, container, || speed(container, run, memory, drive))
        };
        let mut all = paths.iter().zip(&containers).map(of).collect::<anyhow::Result<Vec<_>>>()?;
        let names: Vec<String> = all.iter().map(|facts| facts.name.clone()).collect();
        for facts in &mut all {
            if names.iter().filter(|name| **name == facts.name).count() > 1 {
                facts.name = facts.path.display().to_string();
            }
        }
        Ok(all)
    }

    fn of(path: &Path, container: &Container, speed: impl FnOnce() -> Option<f64>) -> anyhow::Result<Self> {
        let bytes = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
        let [mut all, mut experts] = [Bits::default(); 2];
        for tensor in container.tensors() {
            let dtype = tensor.stored.dtype();
            let weights = tensor.bytes as f64 / dtype.block_bytes() as f64 * dtype.block_len() as f64;
            all.add(tensor.bytes, weights);
            if container.config().architecture == Architecture::Moe && is_expert(&tensor.name) {
                experts.add(tensor.bytes, weights);
            }
        }
        Ok(Self {
            name: name_of(path),
            path: path.to_owned(),
            bytes,
            bits: all.each().unwrap_or(0.0),
            expert_bits: experts.each(),
            speed: speed(),
        })
    }

    /// The figures for programs.
    pub fn json(&self) -> Map<String, Value> {
        let Self { name, path, bytes, bits, expert_bits, speed } = self;
        let object = json!({
            "name": name, "file": path, "bytes": bytes, "bits_per_weight": bits, "expert_bits_per_weight": expert_bits, "tokens_per_second": speed,
        });
        object.as_object().cloned().unwrap_or_default()
    }
}

/// Bytes, and the weights in them.
#[derive(Clone, Copy, Default)]
struct Bits {
    bytes: u64,
    weights: f64,
}

impl Bits {
    fn add(&mut self, bytes: u64, weights: f64) {
        self.bytes += bytes;
        self.weights += weights;
    }

    /// Bits of each weight, where there are any.
    fn each(self) -> Option<f64> {
        (self.weights > 0.0).then(|| 8.0 * self.bytes as f64 / self.weights)
    }
}

/// Whether a tensor of a mixture of experts, as `blk.3.ffn_expert.7`, is of an expert: the norm before experts and a router are not.
fn is_expert(name: &str) -> bool {
    let part = name.split('.').nth(2).unwrap_or("");
    part.starts_with("ffn_") && !matches!(part, "ffn_norm" | "ffn_gate_inp")
}

/// Tokens a second at most, if all that it takes is known.
fn speed(container: &Container, run: &RunArgs, memory: Option<f64>, drive: Option<f64>) -> Option<f64> {
    let options = run.options(CONTEXT.min(container.config().context));
    let placement = Placement::new(container, &options).ok()?;
    let drive = match placement.mode {
        Mode::Mapped | Mode::Plain => None,
        Mode::Streamed => {
            let measure = || {
                let _busy = busy("measuring how fast the drive is read");
                pager::calibrate(container, &options.paging, Duration::from_secs(1)).ok()
            };
            Some(drive.or_else(measure)?)
        }
    };
    let speeds = Speeds { memory: memory?, drive };
    let (config, sizes) = (container.config(), Sizes::of(container));
    Some(Forecast::evenly(config, &sizes, &placement, speeds).speed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_known_by_their_names() {
        for name in ["blk.0.ffn_expert.7", "blk.1.ffn_gate.0.weight", "blk.23.ffn_down_exps.weight"] {
            assert!(is_expert(name), "{name}");
        }
        for name in
            ["blk.0.ffn_norm.weight", "blk.0.ffn_gate_inp.weight", "output.weight", "blk.0.attn_q.weight", ""]
        {
            assert!(!is_expert(name), "{name}");
        }
    }
}
