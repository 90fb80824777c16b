//! Anthropic's interface: messages, and how many tokens they are.

pub mod messages;
mod said;

use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use crate::problem::Problem;

/// What clients are told when something cannot be done.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AnthropicFailure")]
pub struct Failure {
    #[serde(rename = "type")]
    kind: &'static str,
    error: Details,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AnthropicFailureDetails")]
struct Details {
    #[serde(rename = "type")]
    kind: &'static str,
    message: String,
}

impl Failure {
    /// Of a problem.
    pub fn of(problem: &Problem) -> Self {
        let error = Details { kind: kind(problem.status), message: problem.message.clone() };
        Self { kind: "error", error }
    }
}

fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        StatusCode::REQUEST_TIMEOUT => "timeout_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    }
}
