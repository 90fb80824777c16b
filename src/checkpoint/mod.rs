//! Reading Hugging Face checkpoints.

pub mod config;
pub mod entry;
mod file;
mod json;
pub mod names;
