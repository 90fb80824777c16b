//! `POST /v1/embeddings`: the last token's hidden state, of length one.

use axum::{Json, extract::State};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::completions::Prompts;
use crate::{asked::Asked, problem::Problem, server::Shared, wanted::check, work::embed};

/// Texts of one request.
const MOST_INPUTS: usize = 2048;

/// The body of a request.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Request {
    input: Prompts,
    model: Option<String>,
    #[serde(default)]
    encoding_format: Encoding,
    dimensions: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    #[default]
    Float,
    Base64,
}

/// Embeds.
///
/// # Errors
/// What cannot be embedded.
pub async fn embeddings(
    State(server): State<Shared>,
    Asked(model, request): Asked<Request>,
) -> Result<Json<Value>, Problem> {
    let (engine, context) = (&model.served.engine, model.served.context);
    let config = engine.model().config();
    if request.dimensions.is_some_and(|d| d != config.hidden) {
        return Err(Problem::field(
            "dimensions",
            format!("embeddings of this model have {} dimensions", config.hidden),
        ));
    }
    let inputs = request.input.ids(engine.tokenizer());
    if inputs.is_empty() || inputs.len() > MOST_INPUTS {
        return Err(Problem::field(
            "input",
            format!("there are {} inputs; give 1 to {MOST_INPUTS}", inputs.len()),
        ));
    }
    for input in &inputs {
        check(input, config.vocab, context).map_err(|problem| Problem { param: Some("input"), ..problem })?;
    }
    let tokens: usize = inputs.iter().map(Vec::len).sum();
    let ticket = server.gate.enter()?;
    let mut data = Vec::with_capacity(inputs.len());
    for (index, vector) in embed(&server, &model, ticket, inputs).await?.into_iter().enumerate() {
        let embedding = match request.encoding_format {
            Encoding::Float => json!(vector),
            Encoding::Base64 => {
                json!(STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()))
            }
        };
        data.push(json!({ "object": "embedding", "index": index, "embedding": embedding }));
    }
    let name = request.model.filter(|name| !name.is_empty()).unwrap_or_else(|| model.served.name.clone());
    Ok(Json(json!({
        "object": "list", "data": data, "model": name, "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    })))
}
