//! Opening a model.

use std::{
    ffi::c_char,
    sync::{Arc, Mutex},
};

use super::{
    args::{self, Out},
    border::call,
    handles::{Table, exclusive},
    status::{Failure, yuan_status},
};
use crate::{
    config::RopePrecision,
    model::{Arithmetic, Options},
    session::Engine,
};

/// How to open a model. A handle: it points to nothing.
pub struct yuan_engine_options(());

/// An open model with its tokenizer, shared by any number of sessions and threads. A handle: it points to nothing.
pub struct yuan_engine(());

static OPTIONS: Table<Mutex<Options>> = Table::new("engine_options");
pub(super) static ENGINES: Table<Arc<Engine>> = Table::new("engine");

/// Makes options: all threads, everything else as the model says. Free them with yuan_engine_options_free; an engine keeps
/// nothing of them. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_engine_options_new(options: *mut *mut yuan_engine_options) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let out = unsafe { Out::new("the place of the options", options) }?;
        OPTIONS.add(Mutex::new(Options::default()), out)
    })
}

/// Frees options. NULL is nothing to free. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_engine_options_free(options: *mut yuan_engine_options) -> yuan_status {
    call(|| OPTIONS.remove(options).map(drop))
}

/// Threads that compute; 0 for all that the process may use. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_engine_options_set_threads(
    options: *mut yuan_engine_options,
    threads: usize,
) -> yuan_status {
    set(options, |options| {
        if threads > MOST_THREADS {
            return Err(Failure::argument(format!("{threads} threads are too many; ask for fewer")));
        }
        options.threads = threads;
        Ok(())
    })
}

/// More threads than any machine has.
const MOST_THREADS: usize = 4096;

/// The rotary convention in place of the model's own: "mixed", "f32" or "hfbf16"; NULL for the model's. Any thread.
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

/// 1 to widen 4- and 8-bit weights to 32 bits instead of multiplying in integers: slow, for comparisons. 0 is the default. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_engine_options_set_float(options: *mut yuan_engine_options, on: i32) -> yuan_status {
    set(options, |options| {
        options.arithmetic = if on != 0 { Arithmetic::Float } else { Arithmetic::Integer };
        Ok(())
    })
}

fn set(
    options: *mut yuan_engine_options,
    change: impl FnOnce(&mut Options) -> Result<(), Failure>,
) -> yuan_status {
    call(|| {
        let options = OPTIONS.get(options)?;
        change(&mut *exclusive("engine options", &options)?)
    })
}

/// A choice by its name.
pub(super) fn named<T>(name: &str, from_name: fn(&str) -> Option<T>, choices: &str) -> Result<T, Failure> {
    from_name(name).ok_or_else(|| Failure::argument(format!("{name:?} is not known; choose {choices}")))
}

/// Opens a container of yuan-quant, or a GGUF file as published, from a path; `options` may be NULL. The file is mapped: it must not be
/// changed or truncated while the engine is open. Free the engine with yuan_engine_free. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_engine_open(
    path: *const c_char,
    options: *const yuan_engine_options,
    engine: *mut *mut yuan_engine,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let (path, out) = unsafe { (args::path(path)?, Out::new("the place of the engine", engine)?) };
        let options = match options.is_null() {
            true => Options::default(),
            false => {
                let options = OPTIONS.get(options)?;
                exclusive("engine options", &options)?.clone()
            }
        };
        ENGINES.add(Engine::open(&path, &options)?, out)
    })
}

/// Frees an engine. Its sessions go on: the model goes with the last of them. NULL is nothing to free. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_engine_free(engine: *mut yuan_engine) -> yuan_status {
    call(|| ENGINES.remove(engine).map(drop))
}
