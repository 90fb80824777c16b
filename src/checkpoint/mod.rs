//! Reading Hugging Face checkpoints: a folder with `config.json`, `tokenizer.model` and weights.
//!
//! [`Checkpoint`] is the folder as a whole. The parsers behind it are functions over bytes: nothing in a file is trusted,
//! and nothing in it is run.

pub mod archive;
mod arriving;
pub mod config;
pub mod entry;
mod family;
mod features;
mod file;
mod folder;
pub mod gptq;
mod json;
pub mod layout;
pub mod names;
mod opcode;
pub mod pickle;
mod protobuf;
pub mod safetensors;
pub mod sentencepiece;
mod tensors;
pub mod vocab;

pub use arriving::Arriving;
pub use folder::{Checkpoint, LeftOut};
