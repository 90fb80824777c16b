//! OpenAI's interface, with what llama-server and vLLM add to it.

pub mod chat;
pub mod completions;
pub mod embeddings;
mod logprobs;
pub mod models;
mod tools;
mod types;
