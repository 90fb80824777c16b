//! `yuan replay`: what other memories, drives and policies would make of a run.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;
use serde_json::json;
use yuan::{
    files::check_output,
    machine::budget::Limit,
    pager::{
        Eviction,
        trace::{Replayed, Trace},
    },
};
use yuan_tools::{console::size, heat, numbers, say};

/// Compute from a trace how other memories, drives and policies would do
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan replay poem.trace
  yuan replay poem.trace --memory 6G,12G --eviction lfu,lru --drive 0.5,3,7 --compute 60 --idle 40
  yuan replay poem.trace --svg experts.svg
A token takes as long as its computation or its reads, whichever is longer, and the time in which the drive is idle.")]
pub struct Replay {
    /// A file that yuan trace or yuan bench --trace wrote
    trace: PathBuf,
    /// Numbers of experts to keep in memory, separated by commas; by default several from none to all
    #[arg(long, value_name = "N,...", value_delimiter = ',', conflicts_with = "memory")]
    resident: Vec<usize>,
    /// Sizes of memory, instead of numbers of experts
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', value_parser = str::parse::<Limit>)]
    memory: Vec<Limit>,
    /// Policies to compare: lfu, lru
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "lfu", value_parser = eviction)]
    eviction: Vec<Eviction>,
    /// Speeds of drives, in GB a second
    #[arg(long, value_name = "GB/S,...", value_delimiter = ',', default_value = "0.5,1,3,7", value_parser = numbers::rate)]
    drive: Vec<f64>,
    /// Milliseconds of a token's computation during which the drive can read
    #[arg(long, value_name = "MS", default_value_t = 0.0, value_parser = numbers::milliseconds)]
    compute: f64,
    /// Milliseconds of a token's computation during which the drive has nothing to read: attention, the router
    #[arg(long, value_name = "MS", default_value_t = 0.0, value_parser = numbers::milliseconds)]
    idle: f64,
    /// Also write a picture of the experts' use
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

fn eviction(name: &str) -> Result<Eviction, String> {
    Eviction::from_name(name).ok_or_else(|| "choose lfu or lru".into())
}

impl Replay {
    pub fn run(self) -> anyhow::Result<()> {
        let trace = Trace::read(&self.trace)?;
        if let Some(path) = &self.svg {
            check_output(path, 0, std::slice::from_ref(&self.trace), "NAME.svg")?;
            heat::write(&trace, path)?;
        }
        if !self.json {
            let drives: String = self.drive.iter().map(|d| format!(" {:>12}", format!("{d} GB/s"))).collect();
            say!("policy  experts kept      memory   prefill    decode  read a token{drives}")?;
        }
        for resident in self.residents(&trace)? {
            for eviction in &self.eviction {
                self.print(&trace, *eviction, resident, &trace.replay(*eviction, resident))?;
            }
        }
        Ok(())
    }

    fn residents(&self, trace: &Trace) -> anyhow::Result<Vec<usize>> {
        let (model, all) = (&trace.model, trace.model.layers * trace.model.experts);
        if !self.resident.is_empty() {
            return Ok(self.resident.iter().map(|n| *n.min(&all)).collect());
        }
        if self.memory.is_empty() {
            return Ok((0..=8).map(|eighth| all * eighth / 8).collect());
        }
        let resident = |limit: &Limit| match limit {
            Limit::Bytes(bytes) => {
                let (least, expert) = (model.fixed_bytes, model.expert_bytes.max(1));
                ensure!(*bytes >= least, "{} is too small: this model needs {least} bytes", size(*bytes));
                Ok(((bytes - least) / expert).min(all as u64) as usize)
            }
            Limit::Percent(_) => {
                anyhow::bail!("give --memory as a size: a trace has no machine to take a share of")
            }
        };
        self.memory.iter().map(resident).collect()
    }

    fn print(
        &self,
        trace: &Trace,
        eviction: Eviction,
        resident: usize,
        replayed: &Replayed,
    ) -> anyhow::Result<()> {
        let expert = trace.model.expert_bytes;
        let tokens = replayed.misses.len().max(1) as f64;
        let read_a_token = replayed.decode.misses as f64 * expert as f64 / tokens;
        let memory = trace.model.fixed_bytes + resident as u64 * expert;
        let rate = |drive: f64| {
            let time = |misses: &u64| {
                self.idle / 1e3 + (*misses as f64 * expert as f64 / drive / 1e9).max(self.compute / 1e3)
            };
            tokens / replayed.misses.iter().map(time).sum::<f64>()
        };
        // Nothing to wait for: as fast as one likes.
        let rates = self.drive.iter().map(|d| Some(rate(*d)).filter(|r| r.is_finite()));
        if self.json {
            let drives: Vec<_> = self
                .drive
                .iter()
                .zip(rates)
                .map(|(drive, rate)| json!({ "gb_per_second": drive, "tokens_per_second": rate }))
                .collect();
            let hits =
                |h: yuan::pager::Hits| json!({ "hits": h.hits, "misses": h.misses, "hit_rate": h.rate() });
            let object = json!({
                "policy": eviction.name(), "resident": resident, "memory": memory, "prefill": hits(replayed.prefill),
                "decode": hits(replayed.decode), "bytes_per_token": read_a_token as u64,
                "drives": drives,
            });
            return say!("{object}");
        }
        let columns =
            rates.map(|rate| format!(" {:>12}", rate.map_or("-".into(), |r| format!("{r:.2} tok/s"))));
        say!(
            "{:<7} {resident:>12} {:>11} {:>7.1} % {:>7.1} % {:>13}{}",
            eviction.name(),
            size(memory),
            100.0 * replayed.prefill.rate(),
            100.0 * replayed.decode.rate(),
            size(read_a_token as u64),
            columns.collect::<String>()
        )
    }
}
