//! ggml as an oracle for block formats and as a rival in benchmarks. Never part of the product.
//!
//! Without the feature `ggml` this crate is empty and builds nothing.

#![cfg(feature = "ggml")]

mod gguf;
mod init;
pub mod oracle;
pub mod rival;

pub use gguf::{Listed, tensors_of};
pub use init::version;
