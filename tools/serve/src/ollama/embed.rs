//! `POST /api/embed`, and `POST /api/embeddings` of older clients.

use std::time::Instant;

use axum::{Json, extract::State};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use yuan::tokenizer::Special;

use crate::{
    asked::Asked,
    messages::Texts,
    problem::Problem,
    server::{Loaded, Shared},
    wanted::check,
    work,
};

/// Texts of one request.
const MOST_INPUTS: usize = 2048;

/// The body of a request to `/api/embed`.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "OllamaEmbedRequest")]
pub struct Embed {
    model: Option<String>,
    input: Texts,
    truncate: Option<bool>,
    dimensions: Option<usize>,
}

/// The body of a request to `/api/embeddings`.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "OllamaEmbeddingRequest")]
pub struct Embeddings {
    prompt: String,
}

/// Embeddings of texts; times in nanoseconds.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaEmbeddings")]
pub struct Embedded {
    model: String,
    embeddings: Vec<Vec<f32>>,
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: usize,
}

/// An embedding of a text.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaEmbedding")]
pub struct Embedding {
    embedding: Vec<f32>,
}

/// Embeds texts.
///
/// # Errors
/// What cannot be embedded.
pub async fn embed(
    State(server): State<Shared>,
    Asked(model, request): Asked<Embed>,
) -> Result<Json<Embedded>, Problem> {
    let (begun, hidden) = (Instant::now(), model.served.engine.model().config().hidden);
    if request.dimensions.is_some_and(|d| d != hidden && d != 0) {
        return Err(Problem::field(
            "dimensions",
            format!("embeddings of this model have {hidden} dimensions; leave dimensions out"),
        ));
    }
    let texts = request.input.list();
    if texts.len() > MOST_INPUTS {
        return Err(Problem::field(
            "input",
            format!("there are {} inputs; give {MOST_INPUTS} at most", texts.len()),
        ));
    }
    let lists = ids(&model, texts, request.truncate.unwrap_or(true))?;
    let tokens: usize = lists.iter().map(Vec::len).sum();
    let embeddings = match lists.is_empty() {
        true => Vec::new(),
        false => work::embed(&server, &model, server.gate.enter()?, lists).await?,
    };
    Ok(Json(Embedded {
        model: model.name(request.model.as_deref()),
        embeddings,
        total_duration: begun.elapsed().as_nanos() as u64,
        load_duration: 0,
        prompt_eval_count: tokens,
    }))
}

/// Embeds a text.
///
/// # Errors
/// What cannot be embedded.
pub async fn embeddings(
    State(server): State<Shared>,
    Asked(model, request): Asked<Embeddings>,
) -> Result<Json<Embedding>, Problem> {
    let lists = ids(&model, vec![request.prompt], true)?;
    let mut vectors = work::embed(&server, &model, server.gate.enter()?, lists).await?;
    Ok(Json(Embedding { embedding: vectors.swap_remove(0) }))
}

/// The ids of texts, cut to the context where that is allowed.
fn ids(model: &Loaded, texts: Vec<String>, truncate: bool) -> Result<Vec<Vec<u32>>, Problem> {
    let (engine, context) = (&model.served.engine, model.served.context);
    let ids = |text: &String| {
        let mut ids = engine.tokenizer().encode(text, Special::Parse);
        if truncate {
            ids.truncate(context);
        }
        check(&ids, engine.model().config().vocab, context)
            .map_err(|problem| Problem { param: Some("input"), ..problem })?;
        Ok(ids)
    };
    texts.iter().map(ids).collect()
}
