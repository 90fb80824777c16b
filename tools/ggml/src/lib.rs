//! ggml as an oracle for block formats and as a rival in benchmarks. Never part of the product.
//!
//! Without the feature `ggml` this crate is empty and builds nothing.

#[cfg(feature = "ggml")]
mod bindings;
#[cfg(feature = "ggml")]
mod gguf;
#[cfg(feature = "ggml")]
mod graph;
#[cfg(feature = "ggml")]
mod oracle;
#[cfg(feature = "ggml")]
mod rival;

#[cfg(feature = "ggml")]
pub use {
    gguf::{Listed, tensors_of},
    graph::{Layer, Products},
    oracle::{dequantize, quantize, vec_dot},
    rival::{Buffer, Rival, Weights, version},
};
