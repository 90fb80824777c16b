//! `POST /v1/messages` and `POST /v1/messages/count_tokens`.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use yuan::{session::Finish, tokenizer::Special};

use super::{
    Failure,
    said::{self, Listed, Said, ToolChoice},
};
use crate::{
    asked::{Asked, refuse},
    constraint::{constrain, openai},
    conversation::{Conversation, Prepared},
    messages::{Content, Turn},
    parts::{Part, Parts, Whole},
    problem::Problem,
    sampling::Sampling,
    server::{Loaded, Shared},
    stream::{Form, Writer, collect_one, stream},
    wanted::{Wanted, most},
    work::{Event, Figures, start},
};

/// The body of a request.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "MessagesRequest")]
pub struct Request {
    model: Option<String>,
    max_tokens: Option<i64>,
    stream: Option<bool>,
    #[serde(flatten)]
    sampling: Sampling,
    #[serde(flatten)]
    asking: Asking,
}

/// What is counted, and answered.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "CountTokensRequest")]
pub struct Asking {
    messages: Vec<Said>,
    system: Option<Content>,
    tools: Option<Vec<Listed>>,
    tool_choice: Option<ToolChoice>,
    thinking: Option<Value>,
    output_format: Option<Value>,
    output_config: Option<Value>,
}

impl Asking {
    /// The prompt, and what belongs to it. Where the last message is the assistant's, the answer goes on with it.
    fn prepare(self, model: &Loaded) -> Result<Prepared, Problem> {
        let tokenizer = model.served.engine.tokenizer();
        let thinking = self.thinking.filter(|thinking| thinking["type"] != "disabled");
        if !tokenizer.has_thinking() {
            refuse(
                "thinking",
                thinking.as_ref(),
                "this model does not think before it answers; leave thinking out, or disable it",
            )?;
        }
        let format = self.output_config.as_ref().and_then(|config| config.get("format"));
        let format = self.output_format.as_ref().or(format).filter(|format| !format.is_null());
        let form = format.map(|format| openai("output_format", format)).transpose()?.flatten();
        let calls = said::calls(self.tools.as_deref(), self.tool_choice.as_ref())?;
        if self.messages.is_empty() {
            return Err(Problem::field("messages", "there are no messages; give at least one"));
        }
        let mut turns = Vec::with_capacity(self.messages.len() + 1);
        if let Some(system) = &self.system {
            turns.push(Turn::new("system", system.text("system")?));
        }
        for message in self.messages {
            turns.extend(message.turns()?);
        }
        let begun = turns.pop_if(|last| last.role == "assistant" && last.calls.is_empty());
        let conversation = Conversation { turns, calls, form, thinking: Some(thinking.is_some()) };
        let mut prepared = conversation.prepare(model)?;
        if let Some(begun) = begun {
            prepared.prompt.extend(tokenizer.encode(&begun.content, Special::AsText));
        }
        Ok(prepared)
    }
}

/// How many tokens a prompt has.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CountedTokens")]
pub struct Counted {
    input_tokens: usize,
}

/// An answer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Message {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    role: &'static str,
    model: String,
    content: Vec<Block>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<String>,
    usage: Usage,
}

/// A part of an answer.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(rename = "ContentBlock")]
enum Block {
    Thinking { thinking: String, signature: &'static str },
    Text { text: String },
    ToolUse { id: String, name: String, input: Value },
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "MessageUsage")]
struct Usage {
    input_tokens: usize,
    cache_creation_input_tokens: usize,
    cache_read_input_tokens: usize,
    output_tokens: usize,
}

impl Usage {
    /// A prompt's tokens that were there already count apart.
    fn of(figures: &Figures) -> Self {
        Self {
            input_tokens: figures.prompt - figures.cached,
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: figures.cached,
            output_tokens: figures.answer,
        }
    }
}

/// Says how many tokens a prompt has.
///
/// # Errors
/// It cannot be one.
pub async fn count_tokens(Asked(model, asking): Asked<Asking>) -> Result<Json<Counted>, Problem> {
    Ok(Json(Counted { input_tokens: asking.prepare(&model)?.prompt.len() }))
}

/// Answers.
///
/// # Errors
/// What cannot be answered.
pub async fn messages(
    State(server): State<Shared>,
    Asked(model, request): Asked<Request>,
) -> Result<Response, Problem> {
    let Prepared { prompt, form, parts } = request.asking.prepare(&model)?;
    let wanted =
        Wanted { most: most("max_tokens", request.max_tokens, &[])?, ..Wanted::one(&request.sampling) };
    let tokens = prompt.len();
    let mut jobs = wanted.jobs(&model, vec![prompt])?;
    constrain(&mut jobs, &model, form.as_ref())?;
    let answers = start(&server, &model, server.gate.enter()?, jobs);
    let name = model.name(request.model.as_deref());
    let head = Head { id: server.request("msg"), model: name, stops: request.sampling.stop(), tokens };
    if request.stream.unwrap_or(false) {
        return Ok(stream(answers, Streamed { head, parts, blocks: Blocks::default() }));
    }
    let one = collect_one(answers).await?;
    let whole = Whole::of(parts, &one.text);
    let (reason, text) = head.end_of(one.finish.unwrap_or(Finish::Stop), !whole.calls.is_empty());
    let reply = Message {
        content: content(whole, &head.id),
        usage: Usage::of(&one.figures),
        stop_reason: Some(reason),
        stop_sequence: text,
        ..head.message()
    };
    Ok(Json(reply).into_response())
}

/// The blocks of a whole answer.
fn content(whole: Whole, id: &str) -> Vec<Block> {
    let Whole { text, reasoning, calls } = whole;
    let mut blocks = Vec::new();
    if !reasoning.is_empty() {
        blocks.push(Block::Thinking { thinking: reasoning, signature: "" });
    }
    if !text.is_empty() || calls.is_empty() {
        blocks.push(Block::Text { text });
    }
    for (call, number) in calls.into_iter().zip(1..) {
        // An answer that was cut short may end in the middle of them.
        let input = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
        blocks.push(Block::ToolUse { id: call_id(id, number), name: call.name, input });
    }
    blocks
}

/// The name of a call of an answer.
fn call_id(answer: &str, number: usize) -> String {
    format!("toolu_{answer}_{number}")
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
    fn message(&self) -> Message {
        Message {
            id: self.id.clone(),
            kind: "message",
            role: "assistant",
            model: self.model.clone(),
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage: Usage::of(&Figures { prompt: self.tokens, ..Figures::default() }),
        }
    }

    /// Why it ended, and the text that ended it.
    fn end_of(&self, finish: Finish, called: bool) -> (&'static str, Option<String>) {
        let text = if let Finish::StopText(place) = finish { self.stops.get(place).cloned() } else { None };
        let reason = match finish {
            Finish::Length => "max_tokens",
            Finish::StopText(_) => "stop_sequence",
            _ if called => "tool_use",
            Finish::Stop | Finish::Cancelled => "end_turn",
        };
        (reason, text)
    }
}

/// The blocks of an answer as they come.
#[derive(Debug, Default)]
struct Blocks {
    /// The type of the one that is open.
    open: Option<&'static str>,
    /// Those that have begun.
    begun: usize,
    calls: usize,
}

impl Blocks {
    /// The events of a part of the answer with this name.
    fn events(&mut self, part: Part, id: &str) -> Vec<Value> {
        let mut events = Vec::new();
        match part {
            Part::Text(text) => {
                self.within(&mut events, "text", || Block::Text { text: String::new() });
                events.push(self.delta(json!({ "type": "text_delta", "text": text })));
            }
            Part::Reasoning(text) => {
                let block = || Block::Thinking { thinking: String::new(), signature: "" };
                self.within(&mut events, "thinking", block);
                events.push(self.delta(json!({ "type": "thinking_delta", "thinking": text })));
            }
            Part::Call(name) => {
                events.extend(self.close());
                self.calls += 1;
                let id = call_id(id, self.calls);
                self.within(&mut events, "tool_use", || Block::ToolUse { id, name, input: json!({}) });
            }
            Part::Arguments(json) => {
                events.push(self.delta(json!({ "type": "input_json_delta", "partial_json": json })));
            }
        }
        events
    }

    /// Opens a block of this type, unless it is open.
    fn within(&mut self, events: &mut Vec<Value>, kind: &'static str, block: impl FnOnce() -> Block) {
        if self.open == Some(kind) {
            return;
        }
        events.extend(self.close());
        events.push(json!({ "type": "content_block_start", "index": self.begun, "content_block": block() }));
        self.open = Some(kind);
        self.begun += 1;
    }

    fn delta(&self, delta: Value) -> Value {
        json!({ "type": "content_block_delta", "index": self.begun.saturating_sub(1), "delta": delta })
    }

    /// Closes the block that is open.
    fn close(&mut self) -> Option<Value> {
        let index = self.begun.saturating_sub(1);
        self.open.take().map(|_| json!({ "type": "content_block_stop", "index": index }))
    }
}

struct Streamed {
    head: Head,
    parts: Parts,
    blocks: Blocks,
}

impl Streamed {
    fn events(&mut self, parts: Vec<Part>) -> Vec<Value> {
        parts.into_iter().flat_map(|part| self.blocks.events(part, &self.head.id)).collect()
    }
}

impl Writer for Streamed {
    const FORM: Form = Form::Events { ping: Some("ping") };

    fn begin(&mut self) -> Vec<Value> {
        vec![json!({ "type": "message_start", "message": self.head.message() }), json!({ "type": "ping" })]
    }

    fn chunks(&mut self, _: usize, event: Event) -> Vec<Value> {
        match event {
            Event::Piece(piece) => {
                let parts = self.parts.push(&piece.text);
                self.events(parts)
            }
            Event::End(finish, figures) => {
                let parts = self.parts.finish();
                let mut events = self.events(parts);
                if self.blocks.begun == 0 {
                    events.extend(self.events(vec![Part::Text(String::new())]));
                }
                events.extend(self.blocks.close());
                let (reason, text) = self.head.end_of(finish, self.parts.called());
                let delta = json!({ "stop_reason": reason, "stop_sequence": text });
                events.push(json!({ "type": "message_delta", "delta": delta, "usage": Usage::of(&figures) }));
                events
            }
            Event::Reading { .. } | Event::Prompt(_) | Event::Failed(_) => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<Value> {
        vec![json!({ "type": "message_stop" })]
    }

    fn failed(&mut self, problem: &Problem) -> Vec<Value> {
        vec![json!(Failure::of(problem))]
    }
}
