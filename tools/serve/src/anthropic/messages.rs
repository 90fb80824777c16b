//! `POST /v1/messages` and `POST /v1/messages/count_tokens`.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use yuan::{
    session::Finish,
    tokenizer::{Message, Special, Tokenizer},
};

use super::error;
use crate::{
    asked::{Asked, refuse},
    messages::{Content, Said},
    problem::Problem,
    sampling::Sampling,
    server::Shared,
    stream::{Form, Writer, collect, stream},
    wanted::{Wanted, most},
    work::{Event, Figures, start},
};

/// The body of a request.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Request {
    model: Option<String>,
    max_tokens: Option<i64>,
    stream: Option<bool>,
    #[serde(flatten)]
    sampling: Sampling,
    #[serde(flatten)]
    conversation: Conversation,
}

/// What is counted, and answered.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Conversation {
    messages: Vec<Said>,
    system: Option<Content>,
    tools: Option<Value>,
    thinking: Option<Value>,
    output_format: Option<Value>,
    output_config: Option<Value>,
}

impl Conversation {
    /// The prompt. Where the last message is the assistant's, the answer goes on with it.
    fn prompt(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>, Problem> {
        refuse(
            "tools",
            self.tools.as_ref(),
            "tools cannot be called by way of /v1/messages; leave them out",
        )?;
        let thinking = self.thinking.as_ref().filter(|thinking| thinking["type"] != "disabled");
        refuse(
            "thinking",
            thinking,
            "this model does not think before it answers; leave thinking out, or disable it",
        )?;
        let format = self.output_config.as_ref().and_then(|config| config.get("format"));
        refuse(
            "output_format",
            self.output_format.as_ref().or(format),
            "the form of an answer cannot be chosen by way of /v1/messages; leave it out",
        )?;
        let mut said = Vec::with_capacity(self.messages.len() + 1);
        if let Some(system) = &self.system {
            said.push(Message::new("system", system.text("system")?));
        }
        for message in &self.messages {
            said.push(message.message("messages")?);
        }
        if self.messages.is_empty() {
            return Err(Problem::field("messages", "there are no messages; give at least one"));
        }
        let begun = said.pop_if(|last| last.role == "assistant");
        let mut prompt = tokenizer.chat(&said, true)?;
        if let Some(begun) = begun {
            prompt.extend(tokenizer.encode(&begun.content, Special::AsText));
        }
        Ok(prompt)
    }
}

/// Says how many tokens a prompt has.
///
/// # Errors
/// It cannot be one.
pub async fn count_tokens(Asked(model, conversation): Asked<Conversation>) -> Result<Json<Value>, Problem> {
    let prompt = conversation.prompt(model.served.engine.tokenizer())?;
    Ok(Json(json!({ "input_tokens": prompt.len() })))
}

/// Answers.
///
/// # Errors
/// What cannot be answered.
pub async fn messages(
    State(server): State<Shared>,
    Asked(model, request): Asked<Request>,
) -> Result<Response, Problem> {
    let prompt = request.conversation.prompt(model.served.engine.tokenizer())?;
    let wanted =
        Wanted { most: most("max_tokens", request.max_tokens, &[])?, ..Wanted::one(&request.sampling) };
    let tokens = prompt.len();
    let jobs = wanted.jobs(&model, vec![prompt])?;
    let answers = start(&server, &model, server.gate.enter()?, jobs);
    let name = request.model.filter(|name| !name.is_empty()).unwrap_or_else(|| model.served.name.clone());
    let head = Head { id: server.request("msg"), model: name, stops: request.sampling.stop(), tokens };
    if request.stream.unwrap_or(false) {
        return Ok(stream(answers, head));
    }
    let mut reply = head.message();
    for one in collect(answers, 1).await? {
        reply["content"] = json!([{ "type": "text", "text": one.text }]);
        reply["usage"] = usage(&one.figures);
        let end = head.end_of(one.finish.unwrap_or(Finish::Stop), &one.figures);
        (reply["stop_reason"], reply["stop_sequence"]) = end;
    }
    Ok(Json(reply).into_response())
}

/// What is known before an answer begins.
struct Head {
    id: String,
    model: String,
    stops: Vec<String>,
    /// Of the prompt.
    tokens: usize,
}

impl Head {
    /// An answer without a text.
    fn message(&self) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": [], "stop_reason": null,
            "stop_sequence": null, "usage": usage(&Figures { prompt: self.tokens, ..Figures::default() }),
        })
    }

    /// Why it ended, and the text that ended it.
    fn end_of(&self, finish: Finish, figures: &Figures) -> (Value, Value) {
        let text = figures.stopped_by.and_then(|place| self.stops.get(place));
        let reason = match finish {
            Finish::Length => "max_tokens",
            Finish::StopText => "stop_sequence",
            Finish::Stop | Finish::Cancelled => "end_turn",
        };
        (json!(reason), json!(text))
    }
}

/// A prompt's tokens that were there already count apart.
fn usage(figures: &Figures) -> Value {
    json!({
        "input_tokens": figures.prompt - figures.cached, "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": figures.cached, "output_tokens": figures.answer,
    })
}

impl Writer for Head {
    const FORM: Form = Form::Events { ping: Some("ping") };

    fn begin(&mut self) -> Vec<Value> {
        vec![
            json!({ "type": "message_start", "message": self.message() }),
            json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }),
            json!({ "type": "ping" }),
        ]
    }

    fn chunks(&mut self, _: usize, event: Event) -> Vec<Value> {
        match event {
            Event::Piece(piece) => {
                let delta = json!({ "type": "text_delta", "text": piece.text });
                vec![json!({ "type": "content_block_delta", "index": 0, "delta": delta })]
            }
            Event::End(finish, figures) => {
                let (reason, text) = self.end_of(finish, &figures);
                let delta = json!({ "stop_reason": reason, "stop_sequence": text });
                vec![
                    json!({ "type": "content_block_stop", "index": 0 }),
                    json!({ "type": "message_delta", "delta": delta, "usage": usage(&figures) }),
                ]
            }
            Event::Reading { .. } | Event::Prompt(_) | Event::Failed(_) => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<Value> {
        vec![json!({ "type": "message_stop" })]
    }

    fn failed(&mut self, problem: &Problem) -> Vec<Value> {
        vec![error(problem)]
    }
}
