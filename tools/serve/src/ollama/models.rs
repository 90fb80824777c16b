//! What is served, as ollama's clients ask for it: `/api/tags`, `/api/ps`, `/api/show`, `/api/version`.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use axum::{Json, extract::State};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::VERSION;
use crate::{
    asked::Asked,
    fim,
    problem::Problem,
    server::{Loaded, Shared, time},
};

/// The model stays loaded, which for clients is a time far away.
const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// `GET /api/version`.
pub async fn version() -> Json<Value> {
    Json(json!({ "version": VERSION }))
}

/// `GET /api/tags`: all models, the one.
///
/// # Errors
/// It is not there yet.
pub async fn tags(State(server): State<Shared>) -> Result<Json<Value>, Problem> {
    let model = server.model()?;
    let mut entry = entry(model)?;
    entry["modified_at"] = json!(time(model.created));
    Ok(Json(json!({ "models": [entry] })))
}

/// `GET /api/ps`: the models in memory, the one.
///
/// # Errors
/// It is not there yet.
pub async fn ps(State(server): State<Shared>) -> Result<Json<Value>, Problem> {
    let model = server.model()?;
    let mut entry = entry(model)?;
    let until = SystemTime::now() + FAR;
    entry["expires_at"] = json!(humantime::format_rfc3339_seconds(until).to_string());
    // What of it is on a GPU is not told apart here.
    (entry["size_vram"], entry["context_length"]) = (json!(0), json!(model.served.context));
    Ok(Json(json!({ "models": [entry] })))
}

/// The body of a request to `/api/show`. Whatever it names, there is one model.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Show {}

/// `POST /api/show`: the model.
///
/// # Errors
/// It is not there yet.
pub async fn show(Asked(model, Show {}): Asked<Show>) -> Result<Json<Value>, Problem> {
    let (engine, served) = (&model.served.engine, &model.served);
    let (config, tokenizer) = (engine.model().config(), engine.tokenizer());
    let mut abilities = vec!["completion", "embedding"];
    abilities.extend(fim::is_there(tokenizer).then_some("insert"));
    let family = config.architecture_name();
    let info = json!({
        "general.architecture": family, "general.basename": served.name, "general.parameter_count": weights(&model),
        (format!("{family}.context_length")): served.context,
        (format!("{family}.embedding_length")): config.hidden,
        (format!("{family}.block_count")): config.layers,
        (format!("{family}.feed_forward_length")): config.ffn,
        (format!("{family}.attention.head_count")): config.heads,
        (format!("{family}.expert_count")): config.experts,
        (format!("{family}.expert_used_count")): config.experts_used,
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.eos_token_id": tokenizer.eod(),
    });
    Ok(Json(json!({
        "license": "", "modelfile": format!("FROM {}", served.name), "parameters": "",
        "template": tokenizer.vocab().chat_template, "details": details(&model), "model_info": info,
        "capabilities": abilities, "modified_at": time(model.created),
    })))
}

fn entry(model: &Loaded) -> Result<Value, Problem> {
    let (name, container) = (&model.served.name, model.served.engine.container());
    let digest = container.fingerprint()?.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Ok(json!({
        "name": name, "model": name, "size": container.data_bytes(), "digest": digest, "details": details(model),
    }))
}

fn details(model: &Loaded) -> Value {
    let mut types = BTreeMap::<String, u64>::new();
    for tensor in model.served.engine.container().tensors() {
        *types.entry(tensor.stored.name()).or_default() += tensor.bytes;
    }
    let most = types.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(name, _)| name.to_uppercase());
    let family = model.served.engine.model().config().architecture_name();
    json!({
        "parent_model": "", "format": "gguf", "family": family, "families": [family],
        "parameter_size": short(weights(model)), "quantization_level": most,
    })
}

/// Numbers that the model consists of.
fn weights(model: &Loaded) -> u64 {
    let tensors = model.served.engine.container().tensors();
    tensors.iter().map(|tensor| tensor.dims.iter().product::<u64>()).sum()
}

/// As ollama writes it: `40.1B`.
fn short(weights: u64) -> String {
    match weights {
        ..1_000_000 => format!("{:.1}K", weights as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}M", weights as f64 / 1e6),
        _ => format!("{:.1}B", weights as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let sizes = [(0, "0.0K"), (812_345, "812.3K"), (2_100_000_000, "2.1B"), (40_080_000_000, "40.1B")];
        for (weights, text) in sizes {
            assert_eq!(short(weights), text);
        }
    }
}
