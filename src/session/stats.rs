//! Figures of a run: how experts came into memory, and how long tokens took. The tools and the C library give the same.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Engine;
use crate::{
    machine::system::ProcessUse,
    model::{Calls, GpuPlacement, Model},
    pager::{Hits, Usage},
};

/// What the loop has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passes.
    pub passes: u64,
    /// Tokens in them.
    pub tokens: u64,
    /// Sequences in them, added up.
    pub sequences: u64,
    /// The most sequences of one pass.
    pub most_sequences: usize,
    /// The most work that has waited at the beginning of a pass.
    pub longest_line: usize,
    /// How long work has waited for its pass, added up.
    pub waited: Duration,
    /// Passes that panicked: mistakes in the library.
    pub panics: u64,
    /// Drafts in the passes, which are among the tokens.
    pub drafted: u64,
    /// Those of them that were the next tokens.
    pub accepted: u64,
}

/// Takes the counters of a model at the ends of stretches of a run.
pub struct Meter<'m> {
    model: &'m Model,
    usage: Usage,
    process: ProcessUse,
    start: Instant,
}

/// What happened in a stretch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lap {
    /// Tokens that were run.
    pub tokens: usize,
    /// How long it took.
    pub time: Duration,
    /// Experts that were there when a layer asked for them, and those that were not.
    pub experts: Hits,
    /// Experts that were read ahead: those that were asked for then, and those that were not.
    pub guesses: Hits,
    /// Bytes of experts that the pager brought in.
    pub bytes_read: u64,
    /// Time in which at least one read was under way.
    pub drive_time: Duration,
    /// Time that a thread of the computation waited for tiles, on average.
    pub stall: Duration,
    /// Reads that were tried again.
    pub retries: u64,
    /// Page faults that waited for a disk.
    pub major_faults: u64,
    /// Bytes that the system had storage deliver to this process.
    pub storage_read: u64,
}

impl<'m> Meter<'m> {
    /// Begins a stretch.
    pub fn new(model: &'m Model) -> Self {
        Self { model, usage: model.pager().usage(), process: ProcessUse::now(), start: Instant::now() }
    }

    /// The stretch from the model's opening until now.
    pub fn since_opening(model: &'m Model) -> Lap {
        let work = model.work();
        let process = model.opened();
        let mut meter = Self { model, usage: Usage::default(), process, start: Instant::now() };
        let lap = meter.lap(work.prefill.tokens + work.decode.tokens);
        Lap { time: work.prefill.time + work.decode.time, ..lap }
    }

    /// Ends a stretch of so many tokens and begins the next.
    pub fn lap(&mut self, tokens: usize) -> Lap {
        let now = Self::new(self.model);
        let since = |new: Duration, old: Duration| new.saturating_sub(old);
        let (new, old) = (&now.usage, &self.usage);
        let (prefill, decode) = (new.prefill.since(old.prefill), new.decode.since(old.decode));
        let lap = Lap {
            tokens,
            time: self.start.elapsed(),
            experts: Hits { hits: prefill.hits + decode.hits, misses: prefill.misses + decode.misses },
            guesses: new.guesses.since(old.guesses),
            bytes_read: new.bytes_read - old.bytes_read,
            drive_time: since(new.drive_time, old.drive_time),
            stall: since(new.waited, old.waited) / self.model.threads().max(1) as u32,
            retries: new.retries - old.retries,
            // Nothing where the system did not tell this time.
            major_faults: now.process.major_faults.saturating_sub(self.process.major_faults),
            storage_read: now.process.storage_read.saturating_sub(self.process.storage_read),
        };
        *self = now;
        lap
    }
}

impl Counts {
    /// For a program.
    pub fn json(&self) -> Value {
        json!({
            "passes": self.passes, "tokens": self.tokens, "sequences": self.sequences, "most_sequences": self.most_sequences,
            "longest_line": self.longest_line, "waited_ms": self.waited.as_secs_f64() * 1e3, "panics": self.panics,
            "drafted": self.drafted, "accepted": self.accepted,
        })
    }
}

impl Lap {
    /// Adds another stretch.
    pub fn add(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.time += other.time;
        self.experts.hits += other.experts.hits;
        self.experts.misses += other.experts.misses;
        self.guesses.hits += other.guesses.hits;
        self.guesses.misses += other.guesses.misses;
        self.bytes_read += other.bytes_read;
        self.drive_time += other.drive_time;
        self.stall += other.stall;
        self.retries += other.retries;
        self.major_faults += other.major_faults;
        self.storage_read += other.storage_read;
    }

    /// GB a second of the reads, while there were any.
    pub fn drive_rate(&self) -> f64 {
        self.bytes_read as f64 / 1e9 / self.drive_time.as_secs_f64().max(1e-9)
    }

    /// For a program.
    pub fn json(&self) -> Value {
        json!({
            "tokens": self.tokens, "seconds": self.time.as_secs_f64(),
            "expert_hits": self.experts.hits, "expert_misses": self.experts.misses, "hit_rate": self.experts.rate(),
            "guesses_right": self.guesses.hits, "guesses_wrong": self.guesses.misses,
            "bytes_read": self.bytes_read, "bytes_read_per_token": self.bytes_read / self.tokens.max(1) as u64,
            "drive_seconds": self.drive_time.as_secs_f64(), "drive_gb_per_second": self.drive_rate(),
            "stall_ms": self.stall.as_secs_f64() * 1e3, "retries": self.retries,
            "major_faults": self.major_faults, "storage_bytes_read": self.storage_read,
        })
    }
}

/// Where the weights are, for a program.
pub fn placement(model: &Model) -> Value {
    let p = model.placement();
    json!({
        "mode": p.mode.name(), "why": p.why, "budget": p.budget.bytes, "budget_is": p.budget.set_by,
        "trunk_bytes": p.trunk, "kv_bytes": p.kv, "pool_bytes": p.pool, "scratch_bytes": p.scratch, "arena_bytes": p.arena(),
        "experts": p.experts, "experts_resident": p.resident, "expert_bytes": p.expert_bytes, "batch": p.batch,
        "peak_memory": ProcessUse::now().peak_memory, "gpu": gpu(&p.gpu), "gpu_use": gpu_use(model), "sessions": sessions(model),
    })
}

/// The memory of all sessions, for a program.
fn sessions(model: &Model) -> Value {
    let used = model.pool_use();
    json!({ "bytes": used.bytes, "pages": used.pages, "shared_pages": used.shared, "kept_pages": used.kept })
}

/// What is on a GPU, for a program.
pub fn gpu(placement: &GpuPlacement) -> Value {
    match placement {
        GpuPlacement::Off(why) => json!({ "device": null, "why": why }),
        GpuPlacement::On { device, bandwidth, room, .. } => json!({
            "device": device, "budget": room.budget, "trunk_bytes": room.needs.trunk, "kv_bytes": room.kv, "kv_pages": room.pages(),
            "scratch_bytes": room.needs.scratch, "experts_there": room.slots, "arena_bytes": room.arena(), "embedding_bytes": room.embedding, "bandwidth": bandwidth,
        }),
    }
}

/// Where experts were computed, if a GPU takes part.
fn gpu_use(model: &Model) -> Option<Value> {
    let used = model.gpu_use()?;
    Some(
        json!({ "there": used.there, "copied": used.copied, "on_cpu": used.on_cpu, "bytes_copied": used.bytes }),
    )
}

/// Everything that is counted from the opening of a model on, for a program: [`placement`], [`Lap::json`] of all calls, and of those with several
/// tokens (`prefill`) and with one (`decode`) their tokens, time and experts; the times of the last 1024 of one token; and what the loop has run
/// for sessions (`loop`: [`Counts`]).
pub fn all(engine: &Engine) -> Value {
    let model = engine.model();
    let (work, usage) = (model.work(), model.pager().usage());
    let calls = |calls: Calls, experts: Hits| {
        json!({
            "tokens": calls.tokens, "seconds": calls.time.as_secs_f64(),
            "expert_hits": experts.hits, "expert_misses": experts.misses, "hit_rate": experts.rate(),
        })
    };
    let mut all = placement(model);
    let more = json!({
        "prefill": calls(work.prefill, usage.prefill), "decode": calls(work.decode, usage.decode),
        "token_ms": token_times(&Vec::from(work.times)), "loop": engine.counts().json(),
    });
    for part in [Meter::since_opening(model).json(), more] {
        if let (Value::Object(all), Value::Object(part)) = (&mut all, part) {
            all.extend(part);
        }
    }
    all
}

/// The median and the 95th percentile of times, in milliseconds, for a program.
pub fn token_times(times: &[Duration]) -> Value {
    json!({ "p50": percentile(times, 50), "p95": percentile(times, 95) })
}

/// Milliseconds that so many of 100 of the times do not exceed; 0 of none.
pub fn percentile(times: &[Duration], percent: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let rank = (times.len() * percent).div_ceil(100).max(1) - 1;
    times.get(rank).map_or(0.0, |t| t.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times: Vec<Duration> = (1..=20).rev().map(Duration::from_millis).collect();
        assert_eq!((percentile(&times, 50), percentile(&times, 95)), (10.0, 19.0));
        assert_eq!((percentile(&times[..1], 50), percentile(&[], 95)), (20.0, 0.0));
    }
}
