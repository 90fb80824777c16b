//! The server over HTTP, with the demo model behind it. One program: each that is linked holds the whole engine.

mod anthropic;
mod board;
mod chat;
mod common;
mod completions;
mod faults;
mod llama;
mod ollama;
mod openapi;
mod page;
mod responses;
mod structured;
mod text;
mod tools;
mod yuan3;
