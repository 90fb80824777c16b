//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use yuan::session::Finish;

use super::{
    logprobs::{self, Logprobs},
    tools::{Deltas, Message, Tools},
    types::{Chunks, Common, Head, Tail, Usage, finish_reason, reading},
};
use crate::{
    asked::Asked,
    constraint::{Form, constrain},
    conversation::{Conversation, Prepared, Thinking},
    messages::{Said, turns},
    parts::{self, Parts, Whole},
    problem::Problem,
    server::{Loaded, Shared},
    stream::{Writer, collect, stream},
    wanted,
    work::{Event, start},
};

/// The body of a request.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ChatRequest")]
pub struct Request {
    messages: Vec<Said>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    /// `none` leaves it in the text.
    reasoning_format: Option<String>,
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    form: Form,
    #[serde(flatten)]
    tools: Tools,
    #[serde(flatten)]
    thinking: Thinking,
}

/// The whole reply.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ChatCompletion {
    #[serde(flatten)]
    head: Head,
    choices: Vec<Choice>,
    #[serde(flatten)]
    tail: Tail,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatCompletionChoice")]
struct Choice {
    index: usize,
    message: Message,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
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
        (logprobs, asked) => {
            let top = wanted::top(asked)?;
            logprobs.then_some(top)
        }
    };
    if request.messages.is_empty() {
        return Err(Problem::field("messages", "there are no messages; give at least one"));
    }
    let conversation = Conversation {
        turns: turns(&request.messages)?,
        calls: request.tools.calls()?,
        form: request.form.grammar()?,
        thinking: request.thinking.wanted(),
    };
    let Prepared { prompt, form, mut parts } = conversation.prepare(&model)?;
    if request.reasoning_format.as_deref() == Some("none") {
        parts = parts.plain();
    }
    let common = &request.common;
    let mut jobs = common.jobs(&model, vec![prompt], top, false)?;
    constrain(&mut jobs, &model, form.as_ref())?;
    let (choices, scored) = (jobs.len(), top.is_some());
    let ticket = server.gate.enter()?;
    let object = if common.streams() { "chat.completion.chunk" } else { "chat.completion" };
    let head = Head::new(server.request("chatcmpl"), object, &model, common.model.as_deref());
    let answers = start(&server, &model, ticket, jobs);
    if common.streams() {
        let chunks = Chunks::new(head, common, choices, choices);
        let parts = vec![(parts, Deltas::default()); choices];
        return Ok(stream(answers, Chat { chunks, parts, scored, model }));
    }
    let (mut usage, mut listed) = (Usage::new(choices, choices), Vec::with_capacity(choices));
    for (index, one) in collect(answers, choices).await?.into_iter().enumerate() {
        usage.set(index, one.figures);
        let logprobs = scored.then(|| logprobs::chat(model.served.engine.tokenizer(), &one.tokens));
        let whole = Whole::of(parts.clone(), &one.text);
        let finish_reason = one.finish.map(|finish| reason(finish, !whole.calls.is_empty()));
        let message = Message::of(whole, &format!("{}_{index}", head.id));
        listed.push(Choice { index, message, logprobs, finish_reason });
    }
    Ok(Json(ChatCompletion { head, choices: listed, tail: usage.tail() }).into_response())
}

/// Why an answer, with calls or without, has ended.
fn reason(finish: Finish, called: bool) -> &'static str {
    match finish_reason(finish) {
        "stop" if called => "tool_calls",
        reason => reason,
    }
}

struct Chat {
    chunks: Chunks,
    /// By choice.
    parts: Vec<(Parts, Deltas)>,
    scored: bool,
    model: Arc<Loaded>,
}

impl Chat {
    fn delta(&self, index: usize, delta: Value, logprobs: Option<Logprobs>) -> Value {
        self.chunks
            .chunk(json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null }))
    }

    /// A chunk for each of these parts; the scores come with the first, and by themselves where there are no parts yet.
    fn deltas(
        &mut self,
        index: usize,
        parts: Vec<parts::Part>,
        mut logprobs: Option<Logprobs>,
    ) -> Vec<Value> {
        let id = format!("{}_{index}", self.chunks.head.id);
        let mut deltas: Vec<_> = parts.into_iter().map(|part| self.parts[index].1.of(part, &id)).collect();
        if deltas.is_empty() && logprobs.is_some() {
            deltas.push(json!({ "content": "" }));
        }
        deltas.into_iter().map(|delta| self.delta(index, delta, logprobs.take())).collect()
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
                let parts = self.parts[place].0.push(&piece.text);
                chunks.extend(self.deltas(place, parts, logprobs));
            }
            Event::End(finish, figures) => {
                let parts = self.parts[place].0.finish();
                chunks.extend(self.deltas(place, parts, None));
                let reason = reason(finish, self.parts[place].0.called());
                let choice =
                    json!({ "index": place, "delta": {}, "logprobs": null, "finish_reason": reason });
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
