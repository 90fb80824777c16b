//! `POST /infill`: what stands between two texts, for editors.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use yuan::session::Finish;

use crate::{
    asked::Asked,
    fim,
    openai::types::{Timings, Usage},
    problem::Problem,
    sampling::{Sampling, with_defaults},
    server::Shared,
    stream::{Form, Writer, collect_one, stream},
    wanted::{Wanted, most},
    work::{Event, Figures, start},
};

/// What llama-server does where a request says nothing.
const DEFAULTS: [(&str, f64); 4] = [("temperature", 0.8), ("top_k", 40.0), ("top_p", 0.95), ("min_p", 0.05)];

/// The body of a request.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "InfillRequest")]
pub struct Request {
    #[serde(default)]
    input_prefix: String,
    #[serde(default)]
    input_suffix: String,
    /// What was written of the line with the gap.
    prompt: Option<String>,
    #[serde(alias = "max_tokens")]
    n_predict: Option<i64>,
    stream: Option<bool>,
    #[serde(flatten)]
    sampling: Map<String, Value>,
}

/// An answer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Filled {
    index: usize,
    content: String,
    stop: bool,
    model: String,
    stop_type: &'static str,
    stopping_word: String,
    tokens_predicted: usize,
    tokens_evaluated: usize,
    tokens_cached: usize,
    truncated: bool,
    timings: Timings,
}

/// Fills the gap.
///
/// # Errors
/// What cannot be answered; a model whose vocabulary has no tokens for it.
pub async fn infill(
    State(server): State<Shared>,
    Asked(model, request): Asked<Request>,
) -> Result<Response, Problem> {
    let before = request.input_prefix + request.prompt.as_deref().unwrap_or_default();
    let tokenizer = model.served.engine.tokenizer();
    let prompt = fim::prompt(tokenizer, "input_suffix", &before, &request.input_suffix)?;
    let sampling: Sampling = with_defaults(request.sampling, &DEFAULTS)?;
    let wanted = Wanted { most: most("n_predict", request.n_predict, &[-1, -2])?, ..Wanted::one(&sampling) };
    let jobs = wanted.jobs(&model, vec![prompt])?;
    let writer = Streamed { model: model.served.name.clone(), stops: sampling.stop() };
    let answers = start(&server, &model, server.gate.enter()?, jobs);
    if request.stream.unwrap_or(false) {
        return Ok(stream(answers, writer));
    }
    let one = collect_one(answers).await?;
    let reply = writer.last(one.finish.unwrap_or(Finish::Stop), one.figures);
    Ok(Json(Filled { content: one.text, ..reply }).into_response())
}

struct Streamed {
    model: String,
    stops: Vec<String>,
}

impl Streamed {
    fn last(&self, finish: Finish, figures: Figures) -> Filled {
        let (kind, word) = match finish {
            Finish::Length => ("limit", ""),
            Finish::StopText(place) => ("word", self.stops.get(place).map_or("", String::as_str)),
            Finish::Stop | Finish::Cancelled => ("eos", ""),
        };
        let mut usage = Usage::new(1, 1);
        usage.set(0, figures);
        Filled {
            index: 0,
            content: String::new(),
            stop: true,
            model: self.model.clone(),
            stop_type: kind,
            stopping_word: word.to_owned(),
            tokens_predicted: figures.answer,
            tokens_evaluated: figures.prompt,
            tokens_cached: figures.cached,
            truncated: false,
            timings: usage.timings(),
        }
    }
}

impl Writer for Streamed {
    const FORM: Form = Form::Data { done: false };

    fn chunks(&mut self, _: usize, event: Event) -> Vec<Value> {
        match event {
            Event::Piece(piece) => vec![json!({ "index": 0, "content": piece.text, "stop": false })],
            Event::End(finish, figures) => vec![json!(self.last(finish, figures))],
            Event::Reading { .. } | Event::Prompt(_) | Event::Failed(_) => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<Value> {
        Vec::new()
    }
}
