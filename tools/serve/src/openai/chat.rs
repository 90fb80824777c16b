//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    logprobs,
    types::{Chunks, Common, Head, Usage, finish_reason, reading},
};
use crate::{
    asked::Asked,
    messages::{Said, messages},
    problem::Problem,
    server::{Loaded, Shared},
    stream::{Writer, collect, stream},
    work::{Event, start},
};

/// Tokens that are told in the place of each.
const MOST_TOP: u32 = 20;

/// The body of a request.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Request {
    messages: Vec<Said>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    #[serde(flatten)]
    common: Common,
}

/// Answers.
///
/// # Errors
/// What cannot be answered.
pub async fn chat(
    State(server): State<Shared>,
    Asked(model, request): Asked<Request>,
) -> Result<Response, Problem> {
    let top = match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (false, Some(1..)) => {
            return Err(Problem::field("top_logprobs", "top_logprobs needs \"logprobs\": true"));
        }
        (_, Some(top)) if top > MOST_TOP => {
            return Err(Problem::field(
                "top_logprobs",
                format!("top_logprobs is {top}; give 0 to {MOST_TOP}"),
            ));
        }
        (logprobs, top) => logprobs.then_some(top.unwrap_or(0) as usize),
    };
    if request.messages.is_empty() {
        return Err(Problem::field("messages", "there are no messages; give at least one"));
    }
    let prompt = model.served.engine.tokenizer().chat(&messages(&request.messages)?, true)?;
    let common = &request.common;
    let jobs = common.jobs(&model, vec![prompt], top, false)?;
    let (choices, scored) = (jobs.len(), top.is_some());
    let ticket = server.gate.enter()?;
    let object = if common.streams() { "chat.completion.chunk" } else { "chat.completion" };
    let head = Head::new(server.request("chatcmpl"), object, &model, common.model.as_deref());
    let answers = start(&server, &model, ticket, jobs);
    if common.streams() {
        let chunks = Chunks::new(head, common, choices, choices);
        return Ok(stream(answers, Chat { chunks, scored, model }));
    }
    let (mut usage, mut listed) = (Usage::new(choices, choices), Vec::new());
    for (index, one) in collect(answers, choices).await?.into_iter().enumerate() {
        usage.set(index, one.figures);
        let logprobs = scored.then(|| logprobs::chat(model.served.engine.tokenizer(), &one.tokens));
        listed.push(json!({
            "index": index, "message": { "role": "assistant", "content": one.text, "refusal": null },
            "logprobs": logprobs, "finish_reason": one.finish.map(finish_reason),
        }));
    }
    Ok(Json(head.reply(listed, &usage)).into_response())
}

struct Chat {
    chunks: Chunks,
    scored: bool,
    model: Arc<Loaded>,
}

impl Chat {
    fn delta(&self, index: usize, delta: Value, logprobs: Option<Value>) -> Value {
        self.chunks
            .chunk(json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null }))
    }
}

impl Writer for Chat {
    fn chunks(&mut self, place: usize, event: Event) -> Vec<Value> {
        let mut chunks = reading(&self.chunks, &event);
        if matches!(event, Event::Piece(_) | Event::End(..)) && self.chunks.begins(place) {
            chunks.push(self.delta(place, json!({ "role": "assistant", "content": "" }), None));
        }
        match event {
            Event::Piece(piece) => {
                let tokenizer = self.model.served.engine.tokenizer();
                let logprobs = self.scored.then(|| logprobs::chat(tokenizer, &piece.tokens));
                chunks.push(self.delta(place, json!({ "content": piece.text }), logprobs));
            }
            Event::End(finish, figures) => {
                let choice = json!({ "index": place, "delta": {}, "logprobs": null, "finish_reason": finish_reason(finish) });
                chunks.push(self.chunks.last(place, figures, choice));
            }
            Event::Reading { .. } | Event::Prompt(_) | Event::Failed(_) => {}
        }
        chunks
    }

    fn end(&mut self) -> Vec<Value> {
        self.chunks.end()
    }
}
