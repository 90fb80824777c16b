//! What a request asks: its body, and the model that it is for.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::{FromRequest, Request, rejection::BytesRejection},
    http::StatusCode,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    problem::Problem,
    server::{Loaded, Shared},
};

/// The model, and the body of a request as `T`. Status 413 where that is too large, 503 while there is no model, 400 where it is no JSON or has a field
/// of the wrong type.
pub struct Asked<T>(pub Arc<Loaded>, pub T);

impl<T: DeserializeOwned> FromRequest<Shared> for Asked<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, server: &Shared) -> Result<Self, Problem> {
        let body = Bytes::from_request(request, server).await;
        let model = server.model()?.clone();
        let body = body.map_err(problem)?;
        // Nothing is no fields, for clients that have none to send.
        let asked = serde_json::from_slice(if body.is_empty() { b"{}" } else { &body })
            .map_err(|e| Problem::request(format!("the body of the request is not as expected: {e}")))?;
        Ok(Self(model, asked))
    }
}

/// Refuses a field that asks for something that there is not: one that is not null, false or empty.
///
/// # Errors
/// `message`, which says so and what can be done.
pub fn refuse(param: &'static str, value: Option<&Value>, message: &str) -> Result<(), Problem> {
    let asks = match value {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
        Some(Value::Bool(true) | Value::Number(_)) => true,
    };
    if asks { Err(Problem::field(param, message)) } else { Ok(()) }
}

fn problem(rejection: BytesRejection) -> Problem {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::too_large(),
        _ => Problem::request("the body of the request did not arrive"),
    }
}
