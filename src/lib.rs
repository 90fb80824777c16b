//! A runtime for Yuan2.0-M32 on the machine you own.
//!
//! Data flows one way through the rooms, in the order in which they are declared here;
//! `ARCHITECTURE.md` is the map, and `tests/rooms.rs` enforces it.

pub mod config;
pub mod error;
pub mod files;
pub mod limits;
mod list;
pub mod vocab;
mod workers;

pub mod checkpoint;
pub mod quantize;

pub mod container;

pub mod convert;

pub mod tokenizer;

pub mod grammar;

pub mod machine;

pub mod pager;

pub mod gpu;

pub mod model;

pub mod calibrate;

pub mod sampler;

pub mod session;

pub mod capi;

pub use error::{Error, Result};

/// The version, and the commit where the build knows it: `0.1.0 (1a2b3c4d5e)`.
pub const VERSION: &str = env!("YUAN_VERSION");

/// Version of the integer arithmetic: MODEL.md, "Precision of the runtime".
pub const ARITHMETIC: u32 = yuan_kernels::ARITHMETIC;

/// Names of the kernels that this machine runs, the best first.
pub fn kernel_names() -> Vec<&'static str> {
    let best = yuan_kernels::best().name;
    let others = yuan_kernels::available().map(|k| k.name).filter(|name| *name != best);
    std::iter::once(best).chain(others).collect()
}

/// Names of kernels of this architecture that this machine does not run, the fastest first, each with the instructions that are missing.
pub fn lacking_kernels() -> Vec<(&'static str, Vec<&'static str>)> {
    yuan_kernels::lacking()
}

/// How many bytes ahead the best kernels ask for weights for one token, with a thread for each core, where that was measured before: when a model was opened.
pub fn measured_prefetch() -> Option<usize> {
    model::ahead::measured(yuan_kernels::best(), model::threads::usable_cores())
}
