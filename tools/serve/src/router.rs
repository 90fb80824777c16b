//! Which address does what, and who may use it.

use std::time::Instant;

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderName, HeaderValue, Method, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tower_http::cors::{AllowHeaders, Any, CorsLayer};
use tracing::Instrument;

use crate::{
    addresses::{Addresses, Reply},
    anthropic::messages,
    dialect::Dialect,
    experts,
    llama::{infill, saved, state},
    metrics,
    ollama::{embed, generate, models as served},
    openai::{chat, completions, embeddings, models, output, responses},
    page,
    problem::Problem,
    server::Shared,
    text, visitors,
};

/// Where Anthropic's clients send their key.
const ANTHROPIC_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// What a client, or whatever stands before the server, calls a request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Bytes of it.
const LONGEST_ID: usize = 128;

/// All addresses of a server.
///
/// # Errors
/// An origin that is none.
pub fn router(server: Shared) -> anyhow::Result<Router> {
    let body = usize::try_from(server.options.body).unwrap_or(usize::MAX).saturating_mul(1_000_000);
    let router = addresses()
        .router()
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::method())
        .layer(DefaultBodyLimit::max(body))
        .layer(from_fn_with_state(server.clone(), check_key))
        // The page asks for the key, and whoever watches the server need not have one.
        .merge(page::routes())
        .route("/health", get(health))
        .route("/v1/health", get(health))
        .layer(from_fn_with_state(server.clone(), visitors::check))
        .layer(from_fn(dialect))
        .layer(from_fn_with_state(server.clone(), watch));
    let router = match cors(&server.options.cors)? {
        Some(cors) => router.layer(cors),
        None => router,
    };
    Ok(router.with_state(server))
}

/// All but those that need no key.
fn addresses() -> Addresses {
    let addresses = ["/v1", ""].into_iter().fold(Addresses::new(), openai);
    let counted = Reply::of::<messages::Counted>();
    addresses
        .post(
            "/v1/messages",
            "Anthropic's messages",
            Reply::of::<messages::Message>().or_events(),
            messages::messages,
        )
        .post("/v1/messages/count_tokens", "Tokens of Anthropic's messages", counted, messages::count_tokens)
        .post("/api/chat", "Ollama's chat", Reply::of::<generate::Line>().or_lines(), generate::chat)
        .post(
            "/api/generate",
            "Ollama's continuation of a text",
            Reply::of::<generate::Line>().or_lines(),
            generate::generate,
        )
        .post("/api/embed", "Ollama's embeddings", Reply::of::<embed::Embedded>(), embed::embed)
        .post(
            "/api/embeddings",
            "An embedding, for older clients of ollama",
            Reply::of::<embed::Embedding>(),
            embed::embeddings,
        )
        .get("/api/tags", "The model, as ollama lists it", Reply::of::<served::Models>(), served::tags)
        .post(
            "/api/show",
            "The model, as ollama describes it",
            Reply::of::<served::Description>(),
            served::show,
        )
        .get(
            "/api/ps",
            "The model, as ollama lists what is loaded",
            Reply::of::<served::Models>(),
            served::ps,
        )
        .get(
            "/api/version",
            "The version of ollama whose interface this is",
            Reply::of::<served::Version>(),
            served::version,
        )
        .post("/tokenize", "The tokens of a text or of messages", Reply::of::<text::Tokens>(), text::tokenize)
        .post("/detokenize", "The text of tokens", Reply::of::<text::Text>(), text::detokenize)
        .get(
            "/tokenizer_info",
            "Special tokens and the chat template",
            Reply::of::<text::Info>(),
            text::tokenizer_info,
        )
        .post("/apply-template", "Messages as a prompt", Reply::of::<text::Prompt>(), text::apply_template)
        .post(
            "/infill",
            "What stands between two texts",
            Reply::of::<infill::Filled>().or_events(),
            infill::infill,
        )
        .get(
            "/experts",
            "What the experts do, once or as events",
            Reply::of::<experts::Figures>().or_events(),
            experts::experts,
        )
        .get("/slots", "What each sequence does", Reply::of::<Vec<state::Shown>>(), state::slots)
        .post(
            "/slots/{id}",
            "Saves, restores or erases what a slot has had (action)",
            Reply::of::<saved::Done>(),
            saved::act,
        )
        .get("/props", "What is served", Reply::of::<state::Props>(), state::props)
        .get("/metrics", "Counters, for Prometheus", Reply::TEXT, counters)
}

/// OpenAI's addresses, which many clients call without `/v1`, too.
fn openai(addresses: Addresses, root: &str) -> Addresses {
    let at = |path: &str| format!("{root}{path}");
    let response = Reply::of::<output::Response>();
    addresses
        .post(
            &at("/chat/completions"),
            "OpenAI's chat completions",
            Reply::of::<chat::ChatCompletion>().or_events(),
            chat::chat,
        )
        .post(
            &at("/completions"),
            "OpenAI's completions",
            Reply::of::<completions::Completion>().or_events(),
            completions::completions,
        )
        .post(
            &at("/embeddings"),
            "OpenAI's embeddings",
            Reply::of::<embeddings::Embeddings>(),
            embeddings::embeddings,
        )
        .post(&at("/responses"), "OpenAI's responses", response.or_events(), responses::create)
        .get(&at("/responses/{id}"), "A response that was stored", response, responses::get)
        .delete(
            &at("/responses/{id}"),
            "Forgets a response",
            Reply::of::<responses::Deleted>(),
            responses::delete,
        )
        .get(&at("/models"), "All models, the one", Reply::of::<models::Models>(), models::models)
        .get(&at("/models/{*name}"), "The model by its name", Reply::of::<models::Model>(), models::model)
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
    let dialect = Dialect::of(request.uri().path());
    let response = next.run(request).await;
    let problem: Option<&Problem> = response.extensions().get().filter(|_| dialect != Dialect::OpenAi);
    problem.map(|problem| problem.reply(dialect.failure(problem))).unwrap_or(response)
}

/// Counts and logs a request, which gets a name where it has none. What is said in it is not logged.
async fn watch(State(server): State<Shared>, request: Request, next: Next) -> Response {
    let sent = request.headers().get(REQUEST_ID).filter(|id| id.len() <= LONGEST_ID && id.to_str().is_ok());
    let id = sent.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&server.request("req")).unwrap_or(HeaderValue::from_static("req"))
    });
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default());
    let begun = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let (status, ms) = (response.status().as_u16(), begun.elapsed().as_millis() as u64);
    span.in_scope(|| tracing::info!(%method, path, status, ms, "replied"));
    server.metrics.replied(status);
    response.headers_mut().insert(REQUEST_ID, id);
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
