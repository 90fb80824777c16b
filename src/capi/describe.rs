//! Facts and figures: single numbers, and JSON for all the rest.

use std::ffi::c_char;

use serde_json::json;

use super::{
    args::{Buffer, Out},
    border::call,
    engine::{ENGINES, yuan_engine},
    status::yuan_status,
};
use crate::model::GpuPlacement;

/// How many tokens the vocabulary has: as many logits a session gives. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_engine_vocab_size(engine: *const yuan_engine, size: *mut usize) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let out = unsafe { Out::new("the place of the size", size) }?;
        out.write(ENGINES.get(engine)?.model().config().vocab);
        Ok(())
    })
}

/// The width of the model: as many numbers an embedding has. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_engine_hidden_size(
    engine: *const yuan_engine,
    size: *mut usize,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let out = unsafe { Out::new("the place of the size", size) }?;
        out.write(ENGINES.get(engine)?.model().config().hidden);
        Ok(())
    })
}

/// What the model is and how it runs, as a JSON object of which keys may be added: its shape, layout, kernels, threads. Writes
/// up to `capacity` bytes to `json`, the NUL among them, and the bytes that it needs to `needed`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_engine_describe(
    engine: *const yuan_engine,
    json: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let buffer = unsafe { Buffer::new(json, capacity, needed) }?;
        let engine = ENGINES.get(engine)?;
        let config = engine.model().config();
        let description = json!({
            "layout": engine.container().layout_name(),
            "vocab": config.vocab,
            "hidden": config.hidden,
            "layers": config.layers,
            "heads": config.heads,
            "experts": config.experts,
            "experts_used": config.experts_used,
            "context": config.context,
            "kernels": engine.model().kernels(),
            "threads": engine.model().threads(),
            "threads_batch": engine.model().batch_threads(),
            "weights_bytes": engine.container().data_bytes(),
            "bytes_per_token": engine.model().bytes_per_token(),
        });
        buffer.fill_text(&description.to_string())
    })
}

/// What the engine did so far for all its sessions, as a JSON object of which keys may be added: how experts come into memory, why, and
/// the budget; hits and misses (of prompts, and of tokens one by one), bytes read, seconds in which the drive was busy and in which
/// threads waited; the GPU, or null, how many experts it has room for, and how often experts were there, copied to it, or computed on the
/// CPU. `json`, `capacity` and `needed` are as in yuan_engine_describe. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_engine_statistics(
    engine: *const yuan_engine,
    json: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let buffer = unsafe { Buffer::new(json, capacity, needed) }?;
        let engine = ENGINES.get(engine)?;
        let (placement, usage) = (engine.model().placement(), engine.model().pager().usage());
        let used = engine.model().gpu_use().unwrap_or_default();
        let (gpu, gpu_experts) = match &placement.gpu {
            GpuPlacement::On { device, room, .. } => (Some(device), room.slots),
            GpuPlacement::Off(_) => (None, 0),
        };
        let statistics = json!({
            "mode": placement.mode.name(),
            "why": placement.why,
            "budget": placement.budget.bytes,
            "budget_is": placement.budget.set_by,
            "experts": placement.experts,
            "experts_resident": placement.resident,
            "prefill_hits": usage.prefill.hits,
            "prefill_misses": usage.prefill.misses,
            "decode_hits": usage.decode.hits,
            "decode_misses": usage.decode.misses,
            "bytes_read": usage.bytes_read,
            "retries": usage.retries,
            "drive_seconds": usage.drive_time.as_secs_f64(),
            "waited_seconds": usage.waited.as_secs_f64(),
            "gpu": gpu,
            "gpu_experts": gpu_experts,
            "gpu_there": used.there,
            "gpu_copied": used.copied,
            "gpu_on_cpu": used.on_cpu,
        });
        buffer.fill_text(&statistics.to_string())
    })
}
