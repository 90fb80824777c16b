//! What a request asks: its body, and the model that it is for.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::{FromRequest, Request, rejection::BytesRejection},
    http::StatusCode,
};
use serde::de::DeserializeOwned;

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
        let asked = serde_json::from_slice(&body)
            .map_err(|e| Problem::request(format!("the body of the request is not as expected: {e}")))?;
        Ok(Self(model, asked))
    }
}

fn problem(rejection: BytesRejection) -> Problem {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::too_large(),
        _ => Problem::request("the body of the request did not arrive"),
    }
}
