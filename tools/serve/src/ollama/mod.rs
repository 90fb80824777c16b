//! Ollama's interface: one JSON a line, streamed unless the client does not want it, times in nanoseconds.

pub mod embed;
pub mod generate;
pub mod models;

use std::time::SystemTime;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    problem::Problem,
    sampling::{Sampling, with_defaults},
};

/// The version of ollama whose interface this is: clients ask for it.
const VERSION: &str = "0.13.0";

/// What ollama does where a request says nothing, by the names of its options.
const DEFAULTS: [(&str, f64); 4] =
    [("temperature", 0.8), ("top_k", 40.0), ("top_p", 0.9), ("repeat_penalty", 1.1)];

/// What clients are told when something cannot be done.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaFailure")]
pub struct Failure {
    error: String,
}

impl Failure {
    /// Of a problem.
    pub fn of(problem: &Problem) -> Self {
        Self { error: problem.message.clone() }
    }
}

/// `options` of a request: the sampler's, and the length of the answer. Those that say how a model is loaded are passed over, for it is.
#[derive(Debug, Deserialize)]
struct Options {
    num_predict: Option<i64>,
    #[serde(flatten)]
    sampling: Sampling,
}

impl Options {
    fn of(options: Option<Map<String, Value>>) -> Result<Self, Problem> {
        with_defaults(options.unwrap_or_default(), &DEFAULTS)
    }
}

fn now() -> String {
    humantime::format_rfc3339_nanos(SystemTime::now()).to_string()
}
