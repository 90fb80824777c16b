//! `GET /v1/models`.

use axum::{
    Json,
    extract::{Path, State},
};
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    problem::Problem,
    server::{Loaded, Shared, time},
};

/// A list of models.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Models {
    object: &'static str,
    data: Vec<Model>,
    // As Anthropic's clients read it.
    has_more: bool,
    first_id: String,
    last_id: String,
}

/// A model.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    // As Anthropic's clients read it.
    #[serde(rename = "type")]
    kind: &'static str,
    display_name: String,
    created_at: String,
    max_model_len: usize,
    meta: Meta,
}

/// As llama-server has it.
#[derive(Debug, Serialize, JsonSchema)]
struct Meta {
    n_vocab: usize,
    n_ctx: usize,
    n_ctx_train: usize,
    n_embd: usize,
}

impl Model {
    fn of(model: &Loaded) -> Self {
        let (config, context, name) =
            (model.served.engine.model().config(), model.served.context, &model.served.name);
        Self {
            id: name.clone(),
            object: "model",
            created: model.created,
            owned_by: "yuan",
            kind: "model",
            display_name: name.clone(),
            created_at: time(model.created),
            max_model_len: context,
            meta: Meta {
                n_vocab: config.vocab,
                n_ctx: context,
                n_ctx_train: config.context,
                n_embd: config.hidden,
            },
        }
    }
}

/// All models: the one.
///
/// # Errors
/// It is not there yet.
pub async fn models(State(server): State<Shared>) -> Result<Json<Models>, Problem> {
    let model = Model::of(server.model()?);
    let (first_id, last_id) = (model.id.clone(), model.id.clone());
    Ok(Json(Models { object: "list", data: vec![model], has_more: false, first_id, last_id }))
}

/// The model by its name.
///
/// # Errors
/// It is not there yet, or has another name.
pub async fn model(State(server): State<Shared>, Path(name): Path<String>) -> Result<Json<Model>, Problem> {
    let model = server.model()?;
    if name == model.served.name { Ok(Json(Model::of(model))) } else { Err(Problem::not_found()) }
}
