//! Reading Hugging Face checkpoints.
