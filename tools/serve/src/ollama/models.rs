//! What is served, as ollama's clients ask for it: `/api/tags`, `/api/ps`, `/api/show`, `/api/version`.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use axum::{Json, extract::State};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
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

/// The version of ollama.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaVersion")]
pub struct Version {
    version: &'static str,
}

/// A list of models.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaModels")]
pub struct Models {
    models: [Model; 1],
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaModel")]
struct Model {
    name: String,
    model: String,
    size: u64,
    digest: String,
    details: Details,
    /// Among all models.
    #[serde(skip_serializing_if = "Option::is_none")]
    modified_at: Option<String>,
    /// Among those in memory.
    #[serde(flatten)]
    loaded: Option<InMemory>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaLoaded")]
struct InMemory {
    expires_at: String,
    /// What of it is on a GPU is not told apart here.
    size_vram: u64,
    context_length: usize,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaDetails")]
struct Details {
    parent_model: &'static str,
    format: &'static str,
    family: &'static str,
    families: [&'static str; 1],
    parameter_size: String,
    quantization_level: Option<String>,
}

/// A model, in detail.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaDescription")]
pub struct Description {
    license: &'static str,
    modelfile: String,
    parameters: &'static str,
    template: Option<String>,
    details: Details,
    model_info: Value,
    capabilities: Vec<&'static str>,
    modified_at: String,
}

/// `GET /api/version`.
pub async fn version() -> Json<Version> {
    Json(Version { version: VERSION })
}

/// `GET /api/tags`: all models, the one.
///
/// # Errors
/// It is not there yet.
pub async fn tags(State(server): State<Shared>) -> Result<Json<Models>, Problem> {
    let model = server.model()?;
    Ok(Json(Models { models: [Model { modified_at: Some(time(model.created)), ..Model::of(model)? }] }))
}

/// `GET /api/ps`: the models in memory, the one.
///
/// # Errors
/// It is not there yet.
pub async fn ps(State(server): State<Shared>) -> Result<Json<Models>, Problem> {
    let model = server.model()?;
    let loaded = InMemory {
        expires_at: humantime::format_rfc3339_seconds(SystemTime::now() + FAR).to_string(),
        size_vram: 0,
        context_length: model.served.context,
    };
    Ok(Json(Models { models: [Model { loaded: Some(loaded), ..Model::of(model)? }] }))
}

/// The body of a request to `/api/show`. Whatever it names, there is one model.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "OllamaShowRequest")]
pub struct Show {}

/// `POST /api/show`: the model.
///
/// # Errors
/// It is not there yet.
pub async fn show(Asked(model, Show {}): Asked<Show>) -> Result<Json<Description>, Problem> {
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
    Ok(Json(Description {
        license: "",
        modelfile: format!("FROM {}", served.name),
        parameters: "",
        template: tokenizer.vocab().chat_template.clone(),
        details: Details::of(&model),
        model_info: info,
        capabilities: abilities,
        modified_at: time(model.created),
    }))
}

impl Model {
    fn of(model: &Loaded) -> Result<Self, Problem> {
        let (name, container) = (&model.served.name, model.served.engine.container());
        Ok(Self {
            name: name.clone(),
            model: name.clone(),
            size: container.data_bytes(),
            digest: container.fingerprint()?.iter().map(|byte| format!("{byte:02x}")).collect(),
            details: Details::of(model),
            modified_at: None,
            loaded: None,
        })
    }
}

impl Details {
    fn of(model: &Loaded) -> Self {
        let mut types = BTreeMap::<String, u64>::new();
        for tensor in model.served.engine.container().tensors() {
            *types.entry(tensor.stored.name()).or_default() += tensor.bytes;
        }
        let most = types.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(name, _)| name.to_uppercase());
        let family = model.served.engine.model().config().architecture_name();
        Self {
            parent_model: "",
            format: "gguf",
            family,
            families: [family],
            parameter_size: short(weights(model)),
            quantization_level: most,
        }
    }
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
