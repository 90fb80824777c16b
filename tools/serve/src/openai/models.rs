//! `GET /v1/models`.

use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::{Value, json};

use crate::{
    problem::Problem,
    server::{Loaded, Shared, time},
};

fn entry(model: &Loaded) -> Value {
    let config = model.served.engine.model().config();
    json!({
        "id": model.served.name, "object": "model", "created": model.created, "owned_by": "yuan",
        // As Anthropic's clients read it.
        "type": "model", "display_name": model.served.name, "created_at": time(model.created),
        "max_model_len": model.served.context,
        "meta": { "n_vocab": config.vocab, "n_ctx": model.served.context, "n_ctx_train": config.context, "n_embd": config.hidden },
    })
}

/// All models: the one.
///
/// # Errors
/// It is not there yet.
pub async fn models(State(server): State<Shared>) -> Result<Json<Value>, Problem> {
    let list = [entry(server.model()?)];
    Ok(Json(
        json!({ "object": "list", "data": list, "has_more": false, "first_id": list[0]["id"], "last_id": list[0]["id"] }),
    ))
}

/// The model by its name.
///
/// # Errors
/// It is not there yet, or has another name.
pub async fn model(State(server): State<Shared>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    let model = server.model()?;
    if name == model.served.name { Ok(Json(entry(model))) } else { Err(Problem::not_found()) }
}
