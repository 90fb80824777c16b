//! `POST /v1/embeddings`: the last token's hidden state, of length one.

use axum::{Json, extract::State};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::completions::Prompts;
use crate::{asked::Asked, problem::Problem, server::Shared, wanted::check, work::embed};

/// Texts of one request.
const MOST_INPUTS: usize = 2048;

/// The body of a request.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "EmbeddingsRequest")]
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

/// The reply.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Embeddings {
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: Usage,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum Vector {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "EmbeddingsUsage")]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl Vector {
    fn of(floats: Vec<f32>, encoding: Encoding) -> Self {
        match encoding {
            Encoding::Float => Self::Floats(floats),
            Encoding::Base64 => {
                Self::Base64(STANDARD.encode(floats.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()))
            }
        }
    }
}

/// Embeds.
///
/// # Errors
/// What cannot be embedded.
pub async fn embeddings(
    State(server): State<Shared>,
    Asked(model, request): Asked<Request>,
) -> Result<Json<Embeddings>, Problem> {
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
    let vectors = embed(&server, &model, ticket, inputs).await?;
    let entry = |(index, floats)| {
        let embedding = Vector::of(floats, request.encoding_format);
        Embedding { object: "embedding", index, embedding }
    };
    Ok(Json(Embeddings {
        object: "list",
        data: vectors.into_iter().enumerate().map(entry).collect(),
        model: model.name(request.model.as_deref()),
        usage: Usage { prompt_tokens: tokens, total_tokens: tokens },
    }))
}
