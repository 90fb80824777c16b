//! What the fuzz targets do, a module for each, with the seeds that each begins with. README.md says how they are run.

// Of the tests.
#[path = "../../tests/common/calls.rs"]
pub mod calls;
pub mod common;
pub use common::{gptq, mutate, weights};

// What several targets are made of.
pub mod gguf;
pub mod json;
pub mod model;

pub mod capi;
pub mod checkpoint;
pub mod config;
pub mod container;
pub mod grammar;
pub mod http;
pub mod imatrix;
pub mod pickle;
pub mod safetensors;
pub mod sampler;
pub mod session;
pub mod template;
pub mod tokenizer;
pub mod trace;

/// A small file, or another input, that a target begins with.
pub type Seed = Vec<u8>;

/// The targets by their names, each with its seeds.
pub const TARGETS: &[(&str, fn() -> Vec<Seed>)] = &[
    ("capi", capi::seeds),
    ("checkpoint", checkpoint::seeds),
    ("config", config::seeds),
    ("container", container::seeds),
    ("grammar", grammar::seeds),
    ("http", http::seeds),
    ("imatrix", imatrix::seeds),
    ("pickle", pickle::seeds),
    ("safetensors", safetensors::seeds),
    ("sampler", sampler::seeds),
    ("session", session::seeds),
    ("standard", container::seeds),
    ("template", template::seeds),
    ("tokenizer", tokenizer::seeds),
    ("trace", trace::seeds),
];
