//! Opening a model.

use std::{
    ffi::{c_char, c_void},
    sync::{Arc, Mutex},
};

use super::{
    args::{self, Out},
    border::call,
    callback::{Progress, yuan_progress_callback},
    handles::{Table, exclusive},
    status::{Failure, yuan_status},
};
use crate::{
    config::RopePrecision,
    limits::{check_batch, check_context, check_threads},
    machine::{budget::Limit, source::DirectIo},
    model::{Arithmetic, KvType, Options},
    pager::Paging,
    session::Engine,
};

/// How to open a model. A handle: it points to nothing.
pub struct yuan_engine_options(());

/// An open model with its tokenizer, shared by any number of sessions and threads. A handle: it points to nothing.
pub struct yuan_engine(());

/// The options of an engine, and who hears how far its opening is.
#[derive(Clone)]
struct Opening {
    options: Options,
    progress: Progress,
}

impl Default for Opening {
    fn default() -> Self {
        Self { options: Options::default(), progress: Progress::NONE }
    }
}

static OPTIONS: Table<Mutex<Opening>> = Table::new("engine_options");
pub(super) static ENGINES: Table<Arc<Engine>> = Table::new("engine");

/// Makes options: all threads, everything else as the model says. Free them with yuan_engine_options_free; an engine keeps
/// nothing of them. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_engine_options_new(options: *mut *mut yuan_engine_options) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let out = unsafe { Out::new("the place of the options", options) }?;
        OPTIONS.add(Mutex::new(Opening::default()), out)
    })
}

/// Frees options. NULL is nothing to free. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_engine_options_free(options: *mut yuan_engine_options) -> yuan_status {
    call(|| OPTIONS.remove(options).map(drop))
}

/// Threads that compute; 0 for one for each physical core that the process may use. YUAN_ERROR_ARGUMENT for more than four for each processor of
/// the machine, or 64 where that is more. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_engine_options_set_threads(
    options: *mut yuan_engine_options,
    threads: usize,
) -> yuan_status {
    set(options, |options| {
        options.threads = check_threads(threads)?;
        Ok(())
    })
}

/// Threads that compute several tokens at a time, as in a prompt; 0 for as many as otherwise. At most as many as for
/// yuan_engine_options_set_threads. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_engine_options_set_threads_batch(
    options: *mut yuan_engine_options,
    threads: usize,
) -> yuan_status {
    set(options, |options| {
        options.threads_batch = check_threads(threads)?;
        Ok(())
    })
}

/// Tokens of prompts and answers that go through the model together at most; 0 for the usual number. YUAN_ERROR_ARGUMENT for more than 65536. One call
/// at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_engine_options_set_batch_tokens(
    options: *mut yuan_engine_options,
    tokens: usize,
) -> yuan_status {
    set(options, |options| {
        options.batch = check_batch(tokens)?;
        Ok(())
    })
}

/// The rotary convention in place of the model's own: "mixed", "f32" or "hfbf16"; NULL for the model's. One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_engine_options_set_rope(
    options: *mut yuan_engine_options,
    rope: *const c_char,
) -> yuan_status {
    set(options, |options| {
        options.rope = match rope.is_null() {
            true => None,
            // SAFETY: the contract of the header.
            false => Some(named(
                unsafe { args::c_text("the rotary convention", rope) }?,
                RopePrecision::from_name,
                "mixed, f32 or hfbf16",
            )?),
        };
        Ok(())
    })
}

/// The memory to use at most, weights and sessions all included: "8G", "6.5GiB", or "50%" of what is free; NULL, the default, for what is
/// free less a reserve. One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_engine_options_set_memory(
    options: *mut yuan_engine_options,
    memory: *const c_char,
) -> yuan_status {
    set(options, |options| {
        // SAFETY: the contract of the header.
        options.paging.memory = unsafe { limit("the memory", memory) }?;
        Ok(())
    })
}

/// How experts come into memory: "auto" (the default: mapped where the file fits, else streamed), "mapped", "streamed" or "plain" (mapped, by
/// page faults alone). One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_engine_options_set_paging(
    options: *mut yuan_engine_options,
    paging: *const c_char,
) -> yuan_status {
    set(options, |options| {
        // SAFETY: the contract of the header.
        let name = unsafe { args::c_text("the paging", paging) }?;
        options.paging.mode = named(name, Paging::from_name, "auto, mapped, streamed or plain")?;
        Ok(())
    })
}

/// Which GPU takes part: "auto" (the default: the first suitable one, if the build and the machine have one), "off", or its number from 0, which
/// is an error of yuan_engine_open where it cannot be used. One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_engine_options_set_gpu(
    options: *mut yuan_engine_options,
    gpu: *const c_char,
) -> yuan_status {
    set(options, |options| {
        // SAFETY: the contract of the header.
        let name = unsafe { args::c_text("the GPU", gpu) }?;
        options.gpu.choice = name.parse().map_err(|e: String| Failure::argument(e))?;
        Ok(())
    })
}

/// The memory of the GPU to use at most, as in yuan_engine_options_set_memory; NULL, the default, for what is free less a reserve. One call at
/// a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_engine_options_set_gpu_memory(
    options: *mut yuan_engine_options,
    memory: *const c_char,
) -> yuan_status {
    set(options, |options| {
        // SAFETY: the contract of the header.
        options.gpu.memory = unsafe { limit("the memory of the GPU", memory) }?;
        Ok(())
    })
}

/// A memory, or NULL for none.
unsafe fn limit(what: &str, memory: *const c_char) -> Result<Option<Limit>, Failure> {
    if memory.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's contract, which is that of the header.
    let text = unsafe { args::c_text(what, memory) }?;
    text.parse().map(Some).map_err(|e: String| Failure::argument(e))
}

/// Whether streamed reads go past the page cache: "auto" (the default), "on" or "off". One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_engine_options_set_direct_io(
    options: *mut yuan_engine_options,
    direct_io: *const c_char,
) -> yuan_status {
    set(options, |options| {
        // SAFETY: the contract of the header.
        let name = unsafe { args::c_text("the direct reads", direct_io) }?;
        options.paging.direct_io = named(name, DirectIo::from_name, "auto, on or off")?;
        Ok(())
    })
}

/// 1 to read, where experts are streamed, what the next layer will probably want while nothing else is asked for; 0 is the default. One
/// call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_engine_options_set_look_ahead(
    options: *mut yuan_engine_options,
    on: i32,
) -> yuan_status {
    set(options, |options| {
        options.paging.look_ahead = on != 0;
        Ok(())
    })
}

/// The sessions that the budget of the memory leaves room for: so many tokens in all, 2^24 at most, with a key-value cache of this type. By default none: a
/// program that streams says what it needs, and has room for one full context otherwise. One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_engine_options_set_sessions(
    options: *mut yuan_engine_options,
    tokens: usize,
    kv_type: *const c_char,
) -> yuan_status {
    set(options, |options| {
        // SAFETY: the contract of the header.
        let name = unsafe { args::c_text("the type of the cache", kv_type) }?;
        (options.context, options.kv) =
            (check_context(tokens)?, named(name, KvType::from_name, KvType::CHOICES)?);
        Ok(())
    })
}

/// 1 to widen 4- and 8-bit weights to 32 bits instead of multiplying in integers: slow, for comparisons. 0 is the default. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_engine_options_set_float(options: *mut yuan_engine_options, on: i32) -> yuan_status {
    set(options, |options| {
        options.arithmetic = if on != 0 { Arithmetic::Float } else { Arithmetic::Integer };
        Ok(())
    })
}

/// Who hears how many bytes are there while an engine is opened with these options: of everything but the experts; and can stop it.
/// NULL, the default, for nobody. The callback runs on the thread that opens the engine, and with its data must be there until the options
/// are freed. One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_engine_options_set_progress(
    options: *mut yuan_engine_options,
    progress: yuan_progress_callback,
    user_data: *mut c_void,
) -> yuan_status {
    call(|| {
        let options = OPTIONS.get(options)?;
        exclusive("engine options", &options)?.progress = Progress { callback: progress, user_data };
        Ok(())
    })
}

fn set(
    options: *mut yuan_engine_options,
    change: impl FnOnce(&mut Options) -> Result<(), Failure>,
) -> yuan_status {
    call(|| {
        let options = OPTIONS.get(options)?;
        change(&mut exclusive("engine options", &options)?.options)
    })
}

/// A choice by its name.
pub(super) fn named<T>(name: &str, from_name: fn(&str) -> Option<T>, choices: &str) -> Result<T, Failure> {
    from_name(name).ok_or_else(|| Failure::argument(format!("{name:?} is not known; choose {choices}")))
}

/// Opens a container of yuan-quant, or a GGUF file as published, from a path; `options` may be NULL. The file must not be changed while
/// the engine is open. One that is cut off, damaged, or not to be read is an error of the call that meets it, YUAN_ERROR_BAD_FILE or
/// YUAN_ERROR_FILE, and never a signal (see "Signals" above). Free the engine with yuan_engine_free. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_engine_open(
    path: *const c_char,
    options: *const yuan_engine_options,
    engine: *mut *mut yuan_engine,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let (path, out) = unsafe { (args::path(path)?, Out::new("the place of the engine", engine)?) };
        let Opening { options, progress } = match options.is_null() {
            true => Opening::default(),
            false => {
                let options = OPTIONS.get(options)?;
                exclusive("engine options", &options)?.clone()
            }
        };
        let mut progress = |done, total| progress.tell(done, total);
        ENGINES.add(Engine::open_watched(&path, &options, &mut progress)?, out)
    })
}

/// Frees an engine. Its sessions go on: the model goes with the last of them. NULL is nothing to free. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_engine_free(engine: *mut yuan_engine) -> yuan_status {
    call(|| ENGINES.remove(engine).map(drop))
}
