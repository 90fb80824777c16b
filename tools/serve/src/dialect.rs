//! Whose interface an address belongs to: each writes its failures in its own form.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

use crate::{
    anthropic, ollama,
    problem::{Failure, Problem},
};

/// An interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's, which llama-server and vLLM have taken over.
    OpenAi,
    Anthropic,
    Ollama,
}

impl Dialect {
    /// That of an address.
    pub fn of(path: &str) -> Self {
        if path.starts_with("/api/") {
            Self::Ollama
        } else if path.starts_with("/v1/messages") {
            Self::Anthropic
        } else {
            Self::OpenAi
        }
    }

    /// A failure in its form.
    pub fn failure(self, problem: &Problem) -> Value {
        match self {
            Self::OpenAi => json!(problem.failure()),
            Self::Anthropic => json!(anthropic::Failure::of(problem)),
            Self::Ollama => json!(ollama::Failure::of(problem)),
        }
    }

    /// The schema of its form.
    pub fn schema(self, schemas: &mut SchemaGenerator) -> Schema {
        fn of<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Schema {
            schemas.subschema_for::<T>()
        }
        match self {
            Self::OpenAi => of::<Failure>(schemas),
            Self::Anthropic => of::<anthropic::Failure>(schemas),
            Self::Ollama => of::<ollama::Failure>(schemas),
        }
    }
}
