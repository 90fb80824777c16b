//! A conversation as templates take it.

use serde_json::{Map, Value};

/// One turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Who says it: "system", "user", "assistant", "tool", or what else the template knows.
    pub role: String,
    /// What is said; special strings in it stay text.
    pub content: String,
    /// What the assistant thought before it.
    pub reasoning: Option<String>,
    /// The functions that the assistant calls.
    pub calls: Vec<Call>,
}

impl Message {
    /// A message of `role` that is nothing but text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }
}

/// A call of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The function.
    pub name: String,
    /// Its arguments by name.
    pub arguments: Map<String, Value>,
}

/// What a prompt is made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chat<'a> {
    /// What was said.
    pub messages: &'a [Message],
    /// The prompt is closed so that the model answers.
    pub add_generation_prompt: bool,
    /// Functions that the model may call, as OpenAI writes them: `{"type": "function", "function": {"name", "description", "parameters"}}`.
    pub tools: &'a [Value],
    /// Whether the model is to think before it answers, where its template lets one choose.
    pub thinking: Option<bool>,
}
