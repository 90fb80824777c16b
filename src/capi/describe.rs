//! Facts and figures: single numbers, and JSON for all the rest.

use std::ffi::c_char;

use serde_json::json;

use super::{
    args::{Buffer, Out},
    border::call,
    engine::{ENGINES, yuan_engine},
    status::yuan_status,
};
use crate::session::stats;

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

/// What the engine did so far for all its sessions, as a JSON object of which keys may be added.
///
/// Where the weights are: "mode" ("plain", "mapped" or "streamed") and "why"; "budget" (bytes) and "budget_is" (what set it); "trunk_bytes",
/// "kv_bytes", "pool_bytes" (that all sessions may take together), "scratch_bytes", "arena_bytes", "experts", "experts_resident", "expert_bytes", "batch"; "peak_memory" (of the process);
/// "sessions", an object: the "bytes" that they take of the pool, their "pages" of 512 tokens, those of them that several sessions share ("shared_pages"), and
/// those of earlier sessions that are kept ("kept_pages").
/// "gpu" is an object with the "device" (or null, and "why"), the bytes that it holds as above and "embedding_bytes" (0 where the embedding
/// stays with the host), "experts_there" (that it has room for), "kv_pages" (of 512 positions each) and "bandwidth"; "gpu_use" null or an object that counts experts that were
/// "there", "copied" to it, or computed "on_cpu", and the "bytes_copied".
///
/// Since the engine was opened: "tokens" and "seconds"; "expert_hits", "expert_misses" and "hit_rate" of what layers asked for, and
/// apart from them "guesses_right" and "guesses_wrong" of what was read ahead; "bytes_read", "bytes_read_per_token", "drive_seconds"
/// (at least one read was under way), "drive_gb_per_second", "stall_ms" (a thread waited for reads, on average), "retries";
/// "major_faults" and "storage_bytes_read" (of the process). "prefill" and "decode" are objects with the tokens, seconds, hits and
/// misses of calls with several tokens and with one. "token_ms" has "p50" and "p95" of the last 1024 calls with one token. "loop" is an
/// object about the passes that all sessions share: their number ("passes"), their "tokens" and "sequences" added up, the "most_sequences" of one,
/// the "longest_line" of work that waited for one, "waited_ms" (how long work has waited, added up), "panics" (mistakes in the library),
/// and the "drafted" tokens among them, of which so many were "accepted" as the next.
///
/// `json`, `capacity` and `needed` are as in yuan_engine_describe; the text grows with its numbers. Any thread.
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
        buffer.fill_text(&stats::all(&engine).to_string())
    })
}
