//! The table of `yuan plan`: which contexts fit into the memory with which cache, and how fast the last token comes.

use serde_json::{Value, json};
use yuan::{
    config::ModelConfig,
    machine::budget::Budget,
    model::{KvType, Options, Placement, Sizes, State},
    pager::Mode,
};
use yuan_tools::{console::size, say};

/// Contexts of the table, as far as the model was made for them.
const CONTEXTS: [usize; 6] = [4096, 8192, 16_384, 32_768, 65_536, 131_072];
/// Cache types of the table.
const TYPES: [&str; 4] = ["f16", "q8_0", "q8_0:q4_0", "q4_0"];

/// What is read, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct Speeds {
    /// GB a second of memory.
    pub memory: f64,
    /// GB a second of the drive, where experts can be streamed.
    pub drive: Option<f64>,
}

/// Bytes that a token reads.
#[derive(Clone, Copy, Debug)]
pub struct Reads {
    /// Weights.
    pub weights: u64,
    /// Those of experts among them.
    pub experts: u64,
}

impl Reads {
    /// A token reads one row of the embedding, and the experts that it uses; a trunk that is streamed is counted without the embedding, one of experts in rows with all of them.
    pub fn of(config: &ModelConfig, sizes: &Sizes, p: &Placement) -> Self {
        let experts = (config.layers * config.experts_used) as u64 * p.expert_bytes;
        let beside = if p.mode == Mode::Streamed { 0 } else { sizes.embedding };
        Self { weights: (p.trunk - beside).saturating_sub(sizes.unused) + experts, experts }
    }
}

/// One context with one type of cache.
struct Fit {
    context: usize,
    kv: KvType,
    /// How it would run, where there is room.
    placement: Option<Placement>,
    /// Tokens a second at the end of the context, at most.
    speed: f64,
}

impl Fit {
    fn of(
        config: &ModelConfig,
        sizes: &Sizes,
        budget: &Budget,
        options: &Options,
        speeds: Speeds,
        (context, kv): (usize, KvType),
    ) -> Self {
        let options = Options { context, kv, ..options.clone() };
        let placement = Placement::of(config, sizes, budget.clone(), &options).ok();
        let placement = placement.filter(|p| p.fits(sizes));
        let speed = placement.as_ref().map_or(0.0, |p| {
            let reads = Reads::of(config, sizes, p);
            let cache = (State::kv_bytes(config, kv) as u64).saturating_mul(context as u64);
            let compute = (reads.weights + cache) as f64 / 1e9 / speeds.memory;
            let missing = 1.0 - p.resident as f64 / p.experts.max(1) as f64;
            let wait = match (p.mode, speeds.drive) {
                (Mode::Streamed, Some(drive)) => reads.experts as f64 * missing / 1e9 / drive,
                _ => 0.0,
            };
            1.0 / compute.max(wait).max(1e-9)
        });
        Self { context, kv, placement, speed }
    }
}

/// All contexts with all types.
pub struct Fits {
    rows: Vec<Vec<Fit>>,
    bytes: Vec<(KvType, u64)>,
    budget: u64,
}

impl Fits {
    pub fn of(
        config: &ModelConfig,
        sizes: &Sizes,
        budget: &Budget,
        options: &Options,
        speeds: Speeds,
    ) -> Self {
        let fits = |kv: &KvType| config.head_dim().is_multiple_of(kv.block_len());
        let types: Vec<KvType> = TYPES.into_iter().filter_map(KvType::from_name).filter(fits).collect();
        let mut contexts: Vec<usize> = CONTEXTS.into_iter().filter(|&n| n < config.context).collect();
        contexts.push(config.context);
        let row = |&context: &usize| {
            let fit = |&kv: &KvType| Fit::of(config, sizes, budget, options, speeds, (context, kv));
            types.iter().map(fit).collect()
        };
        Self {
            rows: contexts.iter().map(row).collect(),
            bytes: types.iter().map(|&kv| (kv, State::kv_bytes(config, kv) as u64)).collect(),
            budget: budget.bytes,
        }
    }

    /// The table for programs.
    pub fn json(&self) -> Value {
        let fit = |fit: &Fit| {
            let p = fit.placement.as_ref();
            json!({
                "context": fit.context, "kv": fit.kv.name(), "fits": p.is_some(), "mode": p.map(|p| p.mode.name()),
                "kv_bytes": p.map(|p| p.kv), "experts_resident": p.map(|p| p.resident),
                "tokens_per_second": p.map(|_| fit.speed),
            })
        };
        let bytes: serde_json::Map<_, _> =
            self.bytes.iter().map(|(kv, bytes)| (kv.name().to_owned(), json!(bytes))).collect();
        json!({ "kv_bytes_per_token": bytes, "contexts": self.rows.iter().flatten().map(fit).collect::<Vec<_>>() })
    }

    /// The table for people: tokens a second behind so many tokens, where there is room for them.
    pub fn print(&self) -> anyhow::Result<()> {
        let cells = |first: &str, cells: Vec<String>| {
            let cells: String = cells.iter().map(|cell| format!("{cell:>14}")).collect();
            say!("{first:<11}{cells}")
        };
        say!("")?;
        say!("with {}, tok/s at most at the end of a context, by the type of the cache:", size(self.budget))?;
        cells("context", self.bytes.iter().map(|(kv, _)| kv.name().to_owned()).collect())?;
        for row in &self.rows {
            let cell = |fit: &Fit| match &fit.placement {
                None => "-".to_owned(),
                Some(p) if p.mode == Mode::Streamed => {
                    format!("{:.1} ({:.0} %)", fit.speed, 100.0 * p.resident as f64 / p.experts as f64)
                }
                Some(_) => format!("{:.1}", fit.speed),
            };
            cells(&row[0].context.to_string(), row.iter().map(cell).collect())?;
        }
        cells("a token", self.bytes.iter().map(|(_, bytes)| size(*bytes)).collect())?;
        say!("(%: streamed, so many of the experts in memory; -: does not fit)")?;
        Ok(())
    }
}
