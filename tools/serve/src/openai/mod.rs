//! OpenAI's interface, with what llama-server and vLLM add to it.

pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod logprobs;
pub mod models;
pub mod output;
pub mod responses;
pub mod stored;
pub mod tools;
pub mod types;
