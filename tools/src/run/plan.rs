//! `yuan plan`: how a model would run on this machine, and why, before it does.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;
use yuan::{
    container::Container,
    machine::budget::Budget,
    model::{GpuPlacement, Placement, Sizes, threads::usable_cores},
    pager::{self, Mode, trace::Trace},
    session::stats::gpu,
};
use yuan_tools::{
    console::size,
    geometry::{geometry, sizes},
    numbers,
    open::RunArgs,
    say,
    stats::describe_gpu,
};

use crate::{
    bandwidth::read_bandwidth,
    fits::{Fits, Speeds},
    forecast::Forecast,
};

/// Say how a model would run on this machine, and why
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan plan model.gguf
  yuan plan model.gguf --memory 8G --context 4096
  yuan plan model.gguf --memory 8G --trace poem.trace
  yuan plan model.gguf --gpu 0 --gpu-memory 6G
  yuan plan --geometry 3-flash --memory 24G --memory-speed 60 --drive-speed 3
The table says which contexts fit into the memory with which type of the cache, and how fast the last token of such a context comes. \
            With --geometry it is that of a model that need not be there, with the types that yuan-quant chooses. Speeds are bounds: a token needs at least the time in which memory delivers its weights, and that in which the drive delivers \
            the experts that are not there. Without a trace (yuan trace) experts are taken to be used evenly, which is the worst case.")]
pub struct Plan {
    #[command(flatten)]
    run: RunArgs,
    /// Plan for a model of this shape in place of a file: m32, 3-flash, tiny, or a config.json
    #[arg(long, value_name = "m32|3-flash|tiny|FILE", conflicts_with_all = ["model", "trace"])]
    geometry: Option<String>,
    /// GB a second that the memory delivers, of a machine other than this one; by default it is measured
    #[arg(long, value_name = "GB/S", value_parser = speed)]
    memory_speed: Option<f64>,
    /// GB a second that the drive delivers; by default it is measured, or taken to be 2 where there is no file to read
    #[arg(long, value_name = "GB/S", value_parser = speed)]
    drive_speed: Option<f64>,
    /// Number of tokens in the prompt and the answer together
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = numbers::tokens)]
    context: usize,
    /// A trace of a run, from which the share of experts found in memory is estimated
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub fn run(self) -> anyhow::Result<()> {
        if let Some(name) = &self.geometry {
            return self.run_geometry(name);
        }
        let path = self
            .run
            .model
            .path()
            .context("there is no model to plan for; --geometry m32 plans for a shape")?;
        let container = Container::open(&path)?;
        let options = self.run.options(self.context);
        let p = Placement::new(&container, &options)?;
        let (config, sizes) = (container.config(), Sizes::of(&container));
        let memory = self.memory_speed(p.budget.bytes)?;
        let drive = match (p.expert_bytes, self.drive_speed) {
            (0, _) => None,
            (_, Some(given)) => Some(given),
            _ => Some(pager::calibrate(&container, &options.paging, Duration::from_secs(1))?),
        };
        let speeds = Speeds { memory, drive };
        let fits = Fits::of(config, &sizes, &p.budget, &options, speeds);
        let rate = match (&self.trace, p.mode) {
            (_, Mode::Plain | Mode::Mapped) => 1.0,
            (None, Mode::Streamed) => p.resident as f64 / p.experts.max(1) as f64,
            (Some(path), Mode::Streamed) => {
                let trace = Trace::read(path)?;
                let shape = (trace.model.layers, trace.model.experts);
                ensure!(shape == (config.layers, config.experts), "{} is of another model", path.display());
                trace.replay(options.paging.eviction, p.resident).decode.rate()
            }
        };
        let Forecast { weights, on_gpu, on_gpu_time, compute, read, wait, speed } =
            Forecast::of(config, &sizes, &p, speeds, rate);
        let once = (p.experts - p.resident) as u64 * p.expert_bytes;
        if self.json {
            let object = json!({
                "mode": p.mode.name(), "why": p.why, "budget": p.budget.bytes, "budget_is": p.budget.set_by, "smallest": p.smallest,
                "trunk_bytes": p.trunk, "kv_bytes": p.kv, "pool_bytes": p.pool, "scratch_bytes": p.scratch, "arena_bytes": p.arena(),
                "experts": p.experts, "experts_resident": p.resident, "expert_bytes": p.expert_bytes, "batch": p.batch,
                "memory_gb_per_second": memory, "drive_gb_per_second": drive, "bytes_per_token": weights, "hit_rate": rate,
                "bytes_read_per_token": read, "tokens_per_second": speed,
                "gpu": gpu(&p.gpu), "gpu_bytes_per_token": on_gpu, "table": fits.json(),
            });
            return say!("{object}");
        }
        say!("mode       {}: {}", p.mode.name(), p.why)?;
        say!(
            "budget     {} ({}); streaming needs {} at least",
            size(p.budget.bytes),
            p.budget.set_by,
            size(p.smallest)
        )?;
        say!(
            "takes      trunk {}, keys and values {}, scratch {} (batches of {})",
            size(p.trunk),
            size(p.kv),
            size(p.scratch),
            p.batch
        )?;
        say!("experts    {} of {} in memory, {} each", p.resident, p.experts, size(p.expert_bytes))?;
        say!(
            "memory     {memory:.1} GB/s; a token reads {} of weights: {:.0} ms",
            size(weights - on_gpu),
            1e3 * compute
        )?;
        say!("{}", describe_gpu(&p.gpu))?;
        if let GpuPlacement::On { bandwidth, .. } = &p.gpu {
            let by = match *bandwidth {
                0 => "its driver does not say how fast".to_owned(),
                b => format!("at {} a second: {:.1} ms", size(b), 1e3 * on_gpu_time),
            };
            say!("           a token reads {} there, {by}", size(on_gpu))?;
        }
        if let (Some(drive), Mode::Streamed) = (drive, p.mode) {
            let of = if self.trace.is_some() { "as in the trace" } else { "if they are used evenly" };
            say!(
                "drive      {drive:.2} GB/s; {:.0} % of a token's experts are there {of}, it reads {}: {:.0} ms",
                100.0 * rate,
                size(read as u64),
                1e3 * wait
            )?;
            say!("prompt     each expert once a batch: {}, {:.1} s", size(once), once as f64 / 1e9 / drive)?;
        }
        say!("expect     at most {speed:.1} tok/s")?;
        fits.print()
    }

    /// The table of a model that need not be there.
    fn run_geometry(&self, name: &str) -> anyhow::Result<()> {
        let config = geometry(name)?;
        let sizes = sizes(&config)?;
        let budget = Budget::of(self.run.paging.memory);
        let memory = self.memory_speed(budget.bytes)?;
        let drive = self.drive_speed.unwrap_or(ASSUMED_DRIVE);
        let speeds = Speeds { memory, drive: sizes.streams.then_some(drive) };
        let fits = Fits::of(&config, &sizes, &budget, &self.run.options(self.context), speeds);
        if self.json {
            let object = json!({
                "geometry": name, "budget": budget.bytes, "budget_is": budget.set_by, "container_bytes": sizes.data,
                "expert_bytes": sizes.expert, "memory_gb_per_second": memory, "drive_gb_per_second": speeds.drive, "table": fits.json(),
            });
            return say!("{object}");
        }
        say!("container  {} of {name}, with the types that yuan-quant chooses", size(sizes.data))?;
        say!("budget     {} ({})", size(budget.bytes), budget.set_by)?;
        let how = |given: bool, otherwise| if given { "as given" } else { otherwise };
        say!("memory     {memory:.1} GB/s, {}", how(self.memory_speed.is_some(), "measured here"))?;
        if speeds.drive.is_some() {
            say!("drive      {drive:.1} GB/s, {}", how(self.drive_speed.is_some(), "assumed"))?;
        }
        fits.print()
    }

    /// As given, or measured with up to half of the budget.
    fn memory_speed(&self, budget: u64) -> anyhow::Result<f64> {
        let threads = if self.run.threads == 0 { usable_cores() } else { self.run.threads };
        self.memory_speed.map_or_else(|| read_bandwidth(threads, budget / 2), Ok)
    }
}

/// GB a second of a drive that nobody has measured.
const ASSUMED_DRIVE: f64 = 2.0;

fn speed(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(speed) if (0.001..1e5).contains(&speed) => Ok(speed),
        _ => Err("give GB a second, as in 2.5".into()),
    }
}
