//! Which address does what, and who may use it.

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderName, HeaderValue, Method, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tower_http::cors::{AllowHeaders, Any, CorsLayer};

use crate::{
    anthropic::{self, messages},
    experts,
    llama::{infill, state},
    metrics,
    ollama::{self, embed, generate, models as served},
    openai::{chat::chat, completions::completions, embeddings::embeddings, models, responses},
    page,
    problem::Problem,
    server::Shared,
    text,
};

/// Where Anthropic's clients send their key.
const ANTHROPIC_KEY: HeaderName = HeaderName::from_static("x-api-key");

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
        .route("/responses", post(responses::create))
        .route("/responses/{id}", get(responses::get).delete(responses::delete))
        .route("/models", get(models::models))
        .route("/models/{*name}", get(models::model));
    let ollama = Router::new()
        .route("/chat", post(generate::chat))
        .route("/generate", post(generate::generate))
        .route("/embed", post(embed::embed))
        .route("/embeddings", post(embed::embeddings))
        .route("/tags", get(served::tags))
        .route("/show", post(served::show))
        .route("/ps", get(served::ps))
        .route("/version", get(served::version));
    let router = Router::new()
        .nest("/api", ollama)
        .nest("/v1", openai.clone())
        .route("/v1/messages", post(messages::messages))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .merge(openai)
        .route("/tokenize", post(text::tokenize))
        .route("/detokenize", post(text::detokenize))
        .route("/tokenizer_info", get(text::tokenizer_info))
        .route("/apply-template", post(text::apply_template))
        .route("/infill", post(infill::infill))
        .route("/slots", get(state::slots))
        .route("/props", get(state::props))
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
        .layer(from_fn(dialect))
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
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // Clients in browsers send many of their own.
        .allow_headers(AllowHeaders::mirror_request());
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
        let header = |name| request.headers().get(name).map(HeaderValue::as_bytes);
        let bearer = header(header::AUTHORIZATION).and_then(|sent| sent.split_at_checked(7));
        let bearer = bearer.filter(|(kind, _)| kind.eq_ignore_ascii_case(b"bearer ")).map(|(_, key)| key);
        let sent = bearer.or_else(|| header(ANTHROPIC_KEY)).unwrap_or_default();
        let digest = blake3::hash(sent.trim_ascii());
        let known = server.keys.iter().fold(false, |known, key| known | (*key == digest));
        if !known {
            return Problem::key().into_response();
        }
    }
    next.run(request).await
}

/// Writes a refusal in the form of the protocol whose address was asked.
async fn dialect(request: Request, next: Next) -> Response {
    let form: fn(&Problem) -> Value = match request.uri().path() {
        path if path.starts_with("/api/") => ollama::error,
        path if path.starts_with("/v1/messages") => anthropic::error,
        _ => return next.run(request).await,
    };
    let response = next.run(request).await;
    response.extensions().get().map(|problem: &Problem| problem.reply(form(problem))).unwrap_or(response)
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
