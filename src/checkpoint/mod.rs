//! Reading Hugging Face checkpoints.

pub mod names;
