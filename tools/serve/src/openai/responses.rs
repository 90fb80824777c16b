//! `/v1/responses`: an answer as a list of items, which the next request may go on from.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use yuan::{sampler::Settings, session::Finish, tokenizer::Message};

use super::logprobs;
use crate::{
    asked::{Asked, refuse},
    constraint::{self, constrain},
    messages::{Content, Said},
    piece::Scored,
    problem::Problem,
    sampling::Sampling,
    server::{Loaded, Shared, now},
    stream::{Form, Writer, collect, stream},
    wanted::{Wanted, most},
    work::{Event, Figures, start},
};

/// Tokens that are told in the place of each.
const MOST_TOP: u32 = 20;
/// What `include` calls the probabilities of tokens.
const LOGPROBS: &str = "message.output_text.logprobs";

/// The body of a request.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Request {
    model: Option<String>,
    #[serde(default)]
    input: Input,
    instructions: Option<String>,
    previous_response_id: Option<String>,
    store: Option<bool>,
    stream: Option<bool>,
    max_output_tokens: Option<i64>,
    top_logprobs: Option<u32>,
    include: Option<Vec<String>>,
    metadata: Option<Map<String, Value>>,
    text: Option<Value>,
    tools: Option<Value>,
    background: Option<Value>,
    conversation: Option<Value>,
    prompt: Option<Value>,
    #[serde(flatten)]
    sampling: Sampling,
}

/// A text, or items.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Input {
    Text(String),
    Items(Vec<Item>),
}

impl Default for Input {
    fn default() -> Self {
        Self::Items(Vec::new())
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Item {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(flatten)]
    said: ItemSaid,
}

/// A message; other items have no role.
#[derive(Debug, Deserialize, JsonSchema)]
struct ItemSaid {
    role: Option<String>,
    content: Option<Content>,
}

impl Input {
    fn messages(self) -> Result<Vec<Message>, Problem> {
        let message = |item: Item| match (item.kind.as_deref(), item.said.role) {
            (None | Some("message"), Some(role)) => Said::new(role, item.said.content).message("input"),
            (kind, _) => {
                let kind = kind.unwrap_or("none");
                Err(Problem::field(
                    "input",
                    format!(
                        "an item of the input is of the type {kind:?}; give messages with a role and a content"
                    ),
                ))
            }
        };
        match self {
            Self::Text(text) => Ok(vec![Message::new("user", text)]),
            Self::Items(items) => items.into_iter().map(message).collect(),
        }
    }
}

/// Answers.
///
/// # Errors
/// What cannot be answered.
pub async fn create(
    State(server): State<Shared>,
    Asked(model, request): Asked<Request>,
) -> Result<Response, Problem> {
    let none = "there is none of it here; leave it out";
    for (name, value) in [
        ("background", &request.background),
        ("conversation", &request.conversation),
        ("prompt", &request.prompt),
    ] {
        refuse(name, value.as_ref(), &format!("{name}: {none}"))?;
    }
    refuse(
        "tools",
        request.tools.as_ref(),
        "tools cannot be called by way of /v1/responses; leave them out",
    )?;
    let format = request.text.as_ref().and_then(|text| text.get("format")).filter(|f| !f.is_null()).cloned();
    let form = format.as_ref().map(|format| constraint::openai("text.format", format)).transpose()?.flatten();
    let top = request.top_logprobs.unwrap_or(0);
    if top > MOST_TOP {
        return Err(Problem::field("top_logprobs", format!("top_logprobs is {top}; give 0 to {MOST_TOP}")));
    }
    let scored = top > 0 || request.include.iter().flatten().any(|name| name == LOGPROBS);
    let mut said = match &request.previous_response_id {
        None => Vec::new(),
        Some(id) => server.responses().said(id).ok_or_else(|| previous(id))?.to_vec(),
    };
    said.extend(request.input.messages()?);
    if said.is_empty() {
        return Err(Problem::field("input", "there is no input; give a text or messages"));
    }
    let instructions = request.instructions.iter().map(|text| Message::new("system", text.clone()));
    let all: Vec<_> = instructions.chain(said.iter().cloned()).collect();
    let prompt = model.served.engine.tokenizer().chat(&all, true)?;
    let wanted = Wanted {
        most: most("max_output_tokens", request.max_output_tokens, &[])?,
        top: scored.then_some(top as usize),
        ..Wanted::one(&request.sampling)
    };
    let mut jobs = wanted.jobs(&model, vec![prompt])?;
    constrain(&mut jobs, &model, form.as_ref())?;
    let settings = jobs[0].settings.clone();
    let answers = start(&server, &model, server.gate.enter()?, jobs);
    let writer = Answer {
        id: server.request("resp"),
        item: server.request("msg"),
        created: now().as_secs(),
        name: request.model.filter(|name| !name.is_empty()).unwrap_or_else(|| model.served.name.clone()),
        instructions: request.instructions,
        previous: request.previous_response_id,
        most: request.max_output_tokens,
        metadata: request.metadata.unwrap_or_default(),
        format: format.unwrap_or_else(|| json!({ "type": "text" })),
        store: request.store.unwrap_or(true),
        settings,
        said,
        scored,
        server,
        model,
        number: 0,
        text: String::new(),
        scores: Vec::new(),
    };
    if request.stream.unwrap_or(false) {
        return Ok(stream(answers, writer));
    }
    let mut reply = Value::Null;
    let mut writer = writer;
    for one in collect(answers, 1).await? {
        (writer.text, writer.scores) = (one.text, writer.scores_of(&one.tokens));
        reply = writer.finish(one.finish.unwrap_or(Finish::Stop), one.figures);
    }
    Ok(Json(reply).into_response())
}

/// Tells of a response that was kept.
///
/// # Errors
/// It is not there, or no more.
pub async fn get(State(server): State<Shared>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    server.responses().response(&id).cloned().map(Json).ok_or_else(|| missing(&id))
}

/// Forgets a response.
///
/// # Errors
/// It is not there, or no more.
pub async fn delete(State(server): State<Shared>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    match server.responses().forget(&id) {
        true => Ok(Json(json!({ "id": id, "object": "response", "deleted": true }))),
        false => Err(missing(&id)),
    }
}

const GONE: &str = "it was not stored, was deleted, or went to make room for newer ones";

fn missing(id: &str) -> Problem {
    Problem { message: format!("there is no response {id}: {GONE}"), ..Problem::not_found() }
}

fn previous(id: &str) -> Problem {
    let message =
        format!("there is no response {id} to go on from: {GONE}; send the whole conversation as input");
    Problem { code: Some("previous_response_not_found"), ..Problem::field("previous_response_id", message) }
}

/// An answer in the making.
struct Answer {
    id: String,
    /// The one item of the output.
    item: String,
    created: u64,
    name: String,
    instructions: Option<String>,
    previous: Option<String>,
    most: Option<i64>,
    metadata: Map<String, Value>,
    /// Of the text, as it was asked for.
    format: Value,
    store: bool,
    settings: Settings,
    /// What was said before, without the instructions.
    said: Vec<Message>,
    scored: bool,
    server: Shared,
    model: Arc<Loaded>,
    /// Of the next event.
    number: u64,
    text: String,
    scores: Vec<Value>,
}

impl Answer {
    fn response(&self, status: &str, output: Value, usage: Value) -> Value {
        let incomplete = (status == "incomplete").then(|| json!({ "reason": "max_output_tokens" }));
        json!({
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": null,
            "incomplete_details": incomplete, "instructions": self.instructions, "max_output_tokens": self.most,
            "metadata": self.metadata, "model": self.name, "output": output, "parallel_tool_calls": true,
            "previous_response_id": self.previous, "reasoning": { "effort": null, "summary": null }, "store": self.store,
            "temperature": self.settings.temperature, "text": { "format": self.format }, "tool_choice": "auto",
            "tools": [], "top_p": self.settings.top_p, "truncation": "disabled", "usage": usage,
        })
    }

    fn part(&self) -> Value {
        json!({ "type": "output_text", "text": self.text, "annotations": [], "logprobs": self.scores })
    }

    fn message(&self, status: &str, content: Value) -> Value {
        json!({ "id": self.item, "type": "message", "status": status, "role": "assistant", "content": content })
    }

    fn scores_of(&self, tokens: &[Scored]) -> Vec<Value> {
        let tokenizer = self.model.served.engine.tokenizer();
        match logprobs::chat(tokenizer, tokens)["content"].take() {
            Value::Array(scores) if self.scored => scores,
            _ => Vec::new(),
        }
    }

    /// The whole response, which is kept if that is wanted.
    fn finish(&mut self, finish: Finish, figures: Figures) -> Value {
        let status = status(finish);
        let usage = json!({
            "input_tokens": figures.prompt,
            "input_tokens_details": { "cached_tokens": figures.cached, "cache_write_tokens": 0 },
            "output_tokens": figures.answer, "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": figures.prompt + figures.answer,
        });
        let response = self.response(status, json!([self.message(status, json!([self.part()]))]), usage);
        if self.store {
            let mut said = std::mem::take(&mut self.said);
            said.push(Message::new("assistant", self.text.clone()));
            self.server.responses().keep(self.id.clone(), response.clone(), said);
        }
        response
    }

    /// An event of this type, with these fields, the next number, and, where it is about a part of the output, the place of that.
    fn event(&mut self, kind: &str, place: &[&str], fields: Value) -> Value {
        let mut event = fields;
        (event["type"], event["sequence_number"]) = (json!(kind), json!(self.number));
        self.number += 1;
        for name in place {
            event[*name] = if *name == "item_id" { json!(self.item) } else { json!(0) };
        }
        event
    }
}

const ITEM: [&str; 1] = ["output_index"];
const PART: [&str; 3] = ["item_id", "output_index", "content_index"];

fn status(finish: Finish) -> &'static str {
    if finish == Finish::Length { "incomplete" } else { "completed" }
}

impl Writer for Answer {
    const FORM: Form = Form::Events { ping: None };

    fn begin(&mut self) -> Vec<Value> {
        let response = self.response("in_progress", json!([]), Value::Null);
        let (item, part) = (self.message("in_progress", json!([])), self.part());
        vec![
            self.event("response.created", &[], json!({ "response": response })),
            self.event("response.in_progress", &[], json!({ "response": response })),
            self.event("response.output_item.added", &ITEM, json!({ "item": item })),
            self.event("response.content_part.added", &PART, json!({ "part": part })),
        ]
    }

    fn chunks(&mut self, _: usize, event: Event) -> Vec<Value> {
        match event {
            Event::Piece(piece) => {
                let scores = self.scores_of(&piece.tokens);
                self.text.push_str(&piece.text);
                self.scores.extend(scores.iter().cloned());
                let fields = json!({ "delta": piece.text, "logprobs": scores });
                vec![self.event("response.output_text.delta", &PART, fields)]
            }
            Event::End(finish, figures) => {
                let (text, part) = (json!({ "text": self.text, "logprobs": self.scores }), self.part());
                let item = self.message(status(finish), json!([part]));
                let response = self.finish(finish, figures);
                let last = format!("response.{}", status(finish));
                vec![
                    self.event("response.output_text.done", &PART, text),
                    self.event("response.content_part.done", &PART, json!({ "part": part })),
                    self.event("response.output_item.done", &ITEM, json!({ "item": item })),
                    self.event(&last, &[], json!({ "response": response })),
                ]
            }
            Event::Reading { .. } | Event::Prompt(_) | Event::Failed(_) => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn failed(&mut self, problem: &Problem) -> Vec<Value> {
        let mut response = self.response("failed", json!([]), Value::Null);
        response["error"] = json!({ "code": "server_error", "message": problem.message });
        vec![self.event("response.failed", &[], json!({ "response": response }))]
    }
}
