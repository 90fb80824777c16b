//! What a client is told when something cannot be done: `{"error": {"message", "type", "param", "code"}}` with the right status.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};
use yuan::Error;

/// Seconds after which a client may try again.
const AGAIN: u16 = 1;

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The status of the reply.
    pub status: StatusCode,
    /// What is wrong, and what can be done.
    pub message: String,
    /// The field of the request.
    pub param: Option<&'static str>,
    /// For programs.
    pub code: Option<&'static str>,
}

impl Problem {
    fn new(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code }
    }

    /// A request that makes no sense, because of this field.
    pub fn field(param: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::request(message) }
    }

    /// A request that makes no sense.
    pub fn request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, None, message)
    }

    /// A prompt of so many tokens, where `context` is the most.
    pub fn too_long(prompt: usize, context: usize) -> Self {
        let message = format!(
            "the prompt has {prompt} tokens and the context holds {context}; shorten the prompt, or start the server with a larger --context"
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Some("context_length_exceeded"), message)
    }

    /// A body of more bytes than are read.
    pub fn too_large() -> Self {
        let message = "the body of the request is too large; the server's --body raises the limit";
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Some("body_too_large"), message)
    }

    /// No key, or a wrong one.
    pub fn key() -> Self {
        let message =
            "the key is missing or wrong; send it as Authorization: Bearer KEY, or as x-api-key: KEY";
        Self::new(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), message)
    }

    /// A web page that may not use the server.
    pub fn page(origin: &str) -> Self {
        let message = format!(
            "a page of {origin} may not use this server; if it shall, start the server with --cors {origin}"
        );
        Self::new(StatusCode::FORBIDDEN, Some("foreign_page"), message)
    }

    /// A name that is not the server's.
    pub fn name(host: &str) -> Self {
        let message = format!(
            "this server is for programs of its machine, and does not go by the name {host}; call it localhost, or start it with --allowed-host {host}"
        );
        Self::new(StatusCode::FORBIDDEN, Some("foreign_host"), message)
    }

    /// No such address.
    pub fn not_found() -> Self {
        let message = "there is nothing at this address; /v1/models, /v1/chat/completions and /api/chat are some that there are";
        Self::new(StatusCode::NOT_FOUND, Some("not_found"), message)
    }

    /// An address that takes another method.
    pub fn method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            Some("method_not_allowed"),
            "this address takes another method",
        )
    }

    /// The queue is full.
    pub fn busy(queue: usize) -> Self {
        let message = format!("{queue} requests are waiting already, and no more may; try again soon");
        Self::new(StatusCode::TOO_MANY_REQUESTS, Some("queue_full"), message)
    }

    /// The model is not there yet.
    pub fn loading() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Some("loading"),
            "the model is being loaded; try again soon",
        )
    }

    /// The server ends.
    pub fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("stopping"), "the server is stopping")
    }

    /// A client that did not read its answer.
    pub fn slow() -> Self {
        let message = "the answer was cut off, because it was not read in time; read faster, or raise the server's --timeout";
        Self::new(StatusCode::REQUEST_TIMEOUT, Some("cut_off"), message)
    }

    /// The system has no thread for the request.
    pub fn crowded() -> Self {
        let message = "this machine has no more threads now; try again soon";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("crowded"), message)
    }

    /// A mistake in the server.
    pub fn internal() -> Self {
        let message = "the server has made a mistake with this request; its log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, None, message)
    }

    /// As OpenAI names its kind.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "unavailable_error",
            StatusCode::NOT_FOUND => "not_found_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// As OpenAI writes it.
    pub fn failure(&self) -> Failure {
        let message = self.message.clone();
        Failure { error: Details { message, kind: self.kind(), param: self.param, code: self.code } }
    }

    /// The reply with this body.
    pub fn reply(&self, body: Value) -> Response {
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, AGAIN.into());
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

/// What OpenAI's clients are told.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Failure {
    error: Details,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Details {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'static str>,
    code: Option<&'static str>,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.reply(json!(self.failure()));
        // For addresses of other protocols, which write it in another form.
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match &error {
            Error::ContextFull { capacity, wanted } => Self::too_long(*wanted, *capacity),
            Error::Argument(_) => Self::request(error.to_string()),
            Error::Memory(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("out_of_memory"), error.to_string())
            }
            // Nobody else stops a call whose client still listens.
            Error::Cancelled => Self::stopping(),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, None, error.to_string()),
        }
    }
}
