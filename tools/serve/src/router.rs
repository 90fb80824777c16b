//! Which address does what, and who may use it.

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderValue, Method, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;
use tower_http::cors::{Any, CorsLayer};

use crate::{
    experts, metrics,
    openai::{chat::chat, completions::completions, embeddings::embeddings, models},
    page,
    problem::Problem,
    server::Shared,
    text,
};

/// All addresses of a server.
///
/// # Errors
/// An origin that is none.
pub fn router(server: Shared) -> anyhow::Result<Router> {
    let body = usize::try_from(server.options.body).unwrap_or(usize::MAX).saturating_mul(1_000_000);
    let openai = Router::new()
        .route("/chat/completions", post(chat))
        .route("/completions", post(completions))
        .route("/embeddings", post(embeddings))
        .route("/models", get(models::models))
        .route("/models/{*name}", get(models::model));
    let router = Router::new()
        .nest("/v1", openai.clone())
        .merge(openai)
        .route("/tokenize", post(text::tokenize))
        .route("/detokenize", post(text::detokenize))
        .route("/tokenizer_info", get(text::tokenizer_info))
        .route("/apply-template", post(text::apply_template))
        .route("/metrics", get(counters))
        .route("/experts", get(experts::experts))
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::method())
        .layer(DefaultBodyLimit::max(body))
        .layer(from_fn_with_state(server.clone(), check_key))
        // The page asks for the key, and whoever watches the server need not have one.
        .merge(page::routes())
        .route("/health", get(health))
        .route("/v1/health", get(health))
        .layer(from_fn_with_state(server.clone(), count));
    let router = match cors(&server.options.cors)? {
        Some(cors) => router.layer(cors),
        None => router,
    };
    Ok(router.with_state(server))
}

/// What web pages of other origins may do.
fn cors(origins: &[String]) -> anyhow::Result<Option<CorsLayer>> {
    if origins.is_empty() {
        return Ok(None);
    }
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE]);
    if origins.iter().any(|origin| origin == "*") {
        return Ok(Some(layer.allow_origin(Any)));
    }
    let origin = |origin: &String| {
        let url = origin.contains("://") && !origin.ends_with('/');
        HeaderValue::from_str(origin)
            .ok()
            .filter(|_| url)
            .ok_or_else(|| anyhow::anyhow!("{origin:?} is no origin; give one as https://example.org, or *"))
    };
    let origins: Vec<_> = origins.iter().map(origin).collect::<anyhow::Result<_>>()?;
    Ok(Some(layer.allow_origin(origins)))
}

/// Lets those in who know a key. Digests are compared, in constant time ([`blake3::Hash`]), all of them.
async fn check_key(State(server): State<Shared>, request: Request, next: Next) -> Response {
    if !server.keys.is_empty() {
        let sent =
            request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let sent = sent.split_at_checked(7).filter(|(kind, _)| kind.eq_ignore_ascii_case(b"bearer "));
        let digest = blake3::hash(sent.map(|(_, key)| key.trim_ascii()).unwrap_or_default());
        let known = server.keys.iter().fold(false, |known, key| known | (*key == digest));
        if !known {
            return Problem::key().into_response();
        }
    }
    next.run(request).await
}

async fn count(State(server): State<Shared>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    server.metrics.replied(response.status().as_u16());
    response
}

async fn health(State(server): State<Shared>) -> Result<Response, Problem> {
    server.model()?;
    Ok(Json(json!({ "status": "ok" })).into_response())
}

async fn counters(State(server): State<Shared>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, Body::from(metrics::text(&server))).into_response()
}
