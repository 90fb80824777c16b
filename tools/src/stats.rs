//! Figures of a run for people. Those for programs are the library's.

use std::time::Duration;

use yuan::{
    machine::system::ProcessUse,
    model::{GpuPlacement, Model},
    pager::Mode,
    session::{
        Drafted,
        stats::{Counts, Lap, percentile},
    },
};

use crate::console::size;

/// What a GPU does.
pub fn describe_gpu(placement: &GpuPlacement) -> String {
    match placement {
        GpuPlacement::Off(why) => format!("gpu        off: {why}"),
        GpuPlacement::On { device, room, .. } => format!(
            "gpu        {device}, {} to use: trunk {}, keys and values {} ({} pages), scratch {}, {} of {} experts {}{}",
            size(room.budget),
            size(room.needs.trunk),
            size(room.kv),
            room.pages(),
            size(room.needs.scratch),
            room.slots,
            room.needs.experts,
            size(room.arena()),
            if room.embedding > 0 { format!(", embedding {}", size(room.embedding)) } else { String::new() },
        ),
    }
}

/// How many drafts of an answer were right, where there were any.
pub fn describe_drafts(drafted: Drafted) -> String {
    match drafted.tokens {
        0 => String::new(),
        tokens => format!(", {} of {tokens} drafts right", drafted.accepted),
    }
}

/// What the engine's loop has run.
pub fn describe_loop(counts: &Counts) -> String {
    format!(
        "passes     {} of {} tokens ({} of {} drafts were right) and up to {} sequences, for which work has waited {:.0} ms",
        counts.passes,
        counts.tokens,
        counts.accepted,
        counts.drafted,
        counts.most_sequences,
        counts.waited.as_secs_f64() * 1e3
    )
}

/// How experts came into memory, in each of the stretches, and how long tokens took.
pub fn describe(model: &Model, laps: &[(&str, &Lap)], times: &[Duration]) -> String {
    let p = model.placement();
    let mut lines = vec![format!("paging     {}: {}", p.mode.name(), p.why)];
    let mut budget = format!("budget     {} ({})", size(p.budget.bytes), p.budget.set_by);
    if p.mode == Mode::Streamed {
        budget += &format!(
            ": trunk {}, keys and values {}, scratch {}, {} of {} experts {}",
            size(p.trunk),
            size(p.kv),
            size(p.scratch),
            p.resident,
            p.experts,
            size(p.arena())
        );
    }
    lines.push(budget);
    lines.push(describe_gpu(&p.gpu));
    if let Some(used) = model.gpu_use() {
        lines.push(format!(
            "experts    {} on the GPU, {} copied to it ({}), {} on the CPU",
            used.there,
            used.copied,
            size(used.bytes),
            used.on_cpu
        ));
    }
    let process = ProcessUse::now();
    lines.push(format!(
        "peak       {} of memory, {} major faults",
        size(process.peak_memory),
        process.major_faults
    ));
    for (name, lap) in laps.iter().filter(|(_, lap)| lap.tokens > 0) {
        lines.push(format!(
            "{name:<10} experts: {:.1} % there, {} read a token at {:.2} GB/s, {:.0} ms a token waited for, {} major faults, {} from storage",
            100.0 * lap.experts.rate(),
            size(lap.bytes_read / lap.tokens as u64),
            lap.drive_rate(),
            lap.stall.as_secs_f64() * 1e3 / lap.tokens as f64,
            lap.major_faults,
            size(lap.storage_read),
        ));
    }
    if !times.is_empty() {
        let (half, most) = (percentile(times, 50), percentile(times, 95));
        lines.push(format!("tokens     {half:.1} ms (half of them), {most:.1} ms (95 %)"));
    }
    lines.join("\n")
}
