//! The output of `/v1/responses`: items that come one after the other, whole or as events.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};
use yuan::{sampler::Settings, session::Finish};

use super::logprobs::{self, TokenLogprob};
use crate::{
    messages::{Call, Turn},
    parts::{Part, Parts, Whole},
    piece::Scored,
    problem::Problem,
    sampling::as_written,
    server::{Loaded, Shared},
    stream::{Collected, Form, Writer},
    work::{Event, Figures},
};

/// What the client is told.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Response {
    id: String,
    object: &'static str,
    created_at: u64,
    status: &'static str,
    error: Option<Failed>,
    incomplete_details: Option<Incomplete>,
    instructions: Option<String>,
    max_output_tokens: Option<i64>,
    metadata: Map<String, Value>,
    model: String,
    output: Vec<Item>,
    parallel_tool_calls: bool,
    previous_response_id: Option<String>,
    reasoning: Reasoning,
    store: bool,
    temperature: f64,
    text: Text,
    tool_choice: Value,
    tools: Value,
    top_p: f64,
    truncation: &'static str,
    usage: Option<Usage>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "ResponseError")]
struct Failed {
    code: &'static str,
    message: String,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "IncompleteDetails")]
struct Incomplete {
    reason: &'static str,
}

#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "ResponseReasoning")]
struct Reasoning {
    effort: Option<String>,
    summary: (),
}

#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "ResponseText")]
struct Text {
    format: Value,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "ResponseUsage")]
struct Usage {
    input_tokens: usize,
    input_tokens_details: InputDetails,
    output_tokens: usize,
    output_tokens_details: OutputDetails,
    total_tokens: usize,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "InputTokensDetails")]
struct InputDetails {
    cached_tokens: usize,
    cache_write_tokens: usize,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "OutputTokensDetails")]
struct OutputDetails {
    reasoning_tokens: usize,
}

/// An item of the output.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(rename = "OutputItem")]
enum Item {
    Message {
        id: String,
        status: &'static str,
        role: &'static str,
        content: Vec<ItemPart>,
    },
    Reasoning {
        id: String,
        status: &'static str,
        summary: [(); 0],
        content: Vec<ItemPart>,
    },
    FunctionCall {
        id: String,
        status: &'static str,
        call_id: String,
        #[serde(flatten)]
        call: Call,
    },
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(rename = "OutputItemPart")]
enum ItemPart {
    OutputText { text: String, annotations: [(); 0], logprobs: Vec<TokenLogprob> },
    ReasoningText { text: String },
}

/// What a response tells of its request.
pub struct About {
    pub created: u64,
    pub name: String,
    pub instructions: Option<String>,
    pub previous: Option<String>,
    pub most: Option<i64>,
    pub metadata: Map<String, Value>,
    /// Of the text, as it was asked for.
    pub format: Value,
    pub tools: Value,
    pub tool_choice: Value,
    /// Calls at once.
    pub several: bool,
    /// Of reasoning.
    pub effort: Option<String>,
    pub store: bool,
    pub settings: Settings,
}

/// An answer in the making.
pub struct Answer {
    id: String,
    about: About,
    /// What was said before, without the instructions.
    said: Vec<Turn>,
    parts: Parts,
    scored: bool,
    server: Shared,
    model: Arc<Loaded>,
    /// Of the next event.
    number: u64,
    /// Items that are whole.
    items: Vec<Item>,
    open: Option<Open>,
    /// Scores of tokens whose text has not come.
    scores: Vec<TokenLogprob>,
    whole: Whole,
}

/// What an item is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Message,
    Reasoning,
    /// A call of this function.
    Call(String),
}

/// An item that is not whole.
#[derive(Clone, Debug)]
struct Open {
    kind: Kind,
    id: String,
    /// A text, or arguments.
    text: String,
    scores: Vec<TokenLogprob>,
}

impl Open {
    fn part(&self) -> ItemPart {
        let text = self.text.clone();
        match self.kind {
            Kind::Reasoning => ItemPart::ReasoningText { text },
            _ => ItemPart::OutputText { text, annotations: [], logprobs: self.scores.clone() },
        }
    }

    fn item(&self, status: &'static str) -> Item {
        let id = self.id.clone();
        let content = || if status == "in_progress" { Vec::new() } else { vec![self.part()] };
        match &self.kind {
            Kind::Message => Item::Message { id, status, role: "assistant", content: content() },
            Kind::Reasoning => Item::Reasoning { id, status, summary: [], content: content() },
            Kind::Call(name) => {
                let call_id = id.replacen("fc_", "call_", 1);
                let call = Call { name: name.clone(), arguments: self.text.clone() };
                Item::FunctionCall { id, status, call_id, call }
            }
        }
    }
}

impl Answer {
    /// One that has not begun.
    pub fn new(
        id: String,
        about: About,
        said: Vec<Turn>,
        parts: Parts,
        scored: bool,
        server: Shared,
        model: Arc<Loaded>,
    ) -> Self {
        Self {
            id,
            about,
            said,
            parts,
            scored,
            server,
            model,
            number: 0,
            items: Vec::new(),
            open: None,
            scores: Vec::new(),
            whole: Whole::default(),
        }
    }

    /// The whole response to a request that wants it at once, which is kept if that is wanted.
    pub fn whole(&mut self, one: &Collected) -> Response {
        self.scores = self.scores_of(&one.tokens);
        let parts = self.parts.push(&one.text);
        self.add(parts);
        let finish = one.finish.unwrap_or(Finish::Stop);
        self.end_items(finish);
        self.finish(finish, one.figures)
    }

    /// The last item ends, which there is in any case.
    fn end_items(&mut self, finish: Finish) -> Vec<Value> {
        let parts = self.parts.finish();
        let mut events = self.add(parts);
        if self.items.is_empty() && self.open.is_none() {
            events.extend(self.more(Some(Kind::Message), ""));
        }
        events.extend(self.close(status(finish)));
        events
    }

    fn response(&self, status: &'static str, output: Vec<Item>, usage: Option<Usage>) -> Response {
        let About { created, name, instructions, previous, most, metadata, .. } = &self.about;
        let About { format, tools, tool_choice, several, effort, store, settings, .. } = &self.about;
        let incomplete = Incomplete { reason: "max_output_tokens" };
        Response {
            id: self.id.clone(),
            object: "response",
            created_at: *created,
            status,
            error: None,
            incomplete_details: (status == "incomplete").then_some(incomplete),
            instructions: instructions.clone(),
            max_output_tokens: *most,
            metadata: metadata.clone(),
            model: name.clone(),
            output,
            parallel_tool_calls: *several,
            previous_response_id: previous.clone(),
            reasoning: Reasoning { effort: effort.clone(), summary: () },
            store: *store,
            temperature: as_written(settings.temperature),
            text: Text { format: format.clone() },
            tool_choice: tool_choice.clone(),
            tools: tools.clone(),
            top_p: as_written(settings.top_p),
            truncation: "disabled",
            usage,
        }
    }

    fn scores_of(&self, tokens: &[Scored]) -> Vec<TokenLogprob> {
        if !self.scored {
            return Vec::new();
        }
        logprobs::chat(self.model.served.engine.tokenizer(), tokens).content
    }

    /// The whole response, which is kept if that is wanted.
    fn finish(&mut self, finish: Finish, figures: Figures) -> Response {
        let usage = Usage {
            input_tokens: figures.prompt,
            input_tokens_details: InputDetails { cached_tokens: figures.cached, cache_write_tokens: 0 },
            output_tokens: figures.answer,
            output_tokens_details: OutputDetails { reasoning_tokens: 0 },
            total_tokens: figures.prompt + figures.answer,
        };
        let response = self.response(status(finish), self.items.clone(), Some(usage));
        if self.about.store {
            let mut said = std::mem::take(&mut self.said);
            said.push(self.whole.turn());
            self.server.responses().keep(self.id.clone(), response.clone(), said);
        }
        response
    }

    /// An event of this type, with these fields and the next number.
    fn event(&mut self, kind: &str, mut fields: Value) -> Value {
        (fields["type"], fields["sequence_number"]) = (json!(kind), json!(self.number));
        self.number += 1;
        fields
    }

    /// One about the item that is open, or about the one part that it has.
    fn about_item(&mut self, kind: &str, mut fields: Value, is_part: bool) -> Value {
        fields["output_index"] = json!(self.items.len());
        if is_part {
            fields["content_index"] = json!(0);
        }
        if fields.get("item").is_none() {
            fields["item_id"] = json!(self.open.as_ref().map(|open| &open.id));
        }
        self.event(kind, fields)
    }

    /// These parts go on with the item that is open, or open the next one.
    fn add(&mut self, parts: Vec<Part>) -> Vec<Value> {
        let mut events = Vec::new();
        for part in parts {
            self.whole.add(part.clone());
            match part {
                Part::Text(text) => events.extend(self.more(Some(Kind::Message), &text)),
                Part::Reasoning(text) => events.extend(self.more(Some(Kind::Reasoning), &text)),
                Part::Call(name) => {
                    events.extend(self.close("completed"));
                    events.extend(self.more(Some(Kind::Call(name)), ""));
                }
                Part::Arguments(text) => events.extend(self.more(None, &text)),
            }
        }
        events
    }

    /// More of an item of this kind; without one, of that which is open.
    fn more(&mut self, kind: Option<Kind>, text: &str) -> Vec<Value> {
        let mut events = Vec::new();
        if let Some(kind) = kind
            && self.open.as_ref().is_none_or(|open| open.kind != kind)
        {
            events.extend(self.close("completed"));
            let prefix = match kind {
                Kind::Message => "msg",
                Kind::Reasoning => "rs",
                Kind::Call(_) => "fc",
            };
            let id = format!("{prefix}_{}_{}", self.id, self.items.len());
            let has_part = !matches!(kind, Kind::Call(_));
            let open = Open { kind, id, text: String::new(), scores: Vec::new() };
            let (item, part) = (open.item("in_progress"), open.part());
            self.open = Some(open);
            events.push(self.about_item("response.output_item.added", json!({ "item": item }), false));
            if has_part {
                events.push(self.about_item("response.content_part.added", json!({ "part": part }), true));
            }
        }
        let Some(open) = &mut self.open else { return events };
        open.text.push_str(text);
        match open.kind {
            Kind::Message => {
                let scores = std::mem::take(&mut self.scores);
                open.scores.extend(scores.iter().cloned());
                let fields = json!({ "delta": text, "logprobs": scores });
                events.push(self.about_item("response.output_text.delta", fields, true));
            }
            Kind::Reasoning => {
                events.push(self.about_item("response.reasoning_text.delta", json!({ "delta": text }), true));
            }
            Kind::Call(_) if text.is_empty() => {}
            Kind::Call(_) => {
                let fields = json!({ "delta": text });
                events.push(self.about_item("response.function_call_arguments.delta", fields, false));
            }
        }
        events
    }

    /// The item that is open ends.
    fn close(&mut self, status: &'static str) -> Vec<Value> {
        let Some(open) = &mut self.open else { return Vec::new() };
        if open.kind == Kind::Message {
            open.scores.append(&mut self.scores);
        }
        let open = open.clone();
        let (item, part, text) = (open.item(status), open.part(), json!(open.text));
        let mut events = match open.kind {
            Kind::Message => {
                let fields = json!({ "text": text, "logprobs": open.scores });
                vec![self.about_item("response.output_text.done", fields, true)]
            }
            Kind::Reasoning => {
                vec![self.about_item("response.reasoning_text.done", json!({ "text": text }), true)]
            }
            Kind::Call(ref name) => {
                let fields = json!({ "name": name, "arguments": text });
                vec![self.about_item("response.function_call_arguments.done", fields, false)]
            }
        };
        if !matches!(open.kind, Kind::Call(_)) {
            events.push(self.about_item("response.content_part.done", json!({ "part": part }), true));
        }
        events.push(self.about_item("response.output_item.done", json!({ "item": item }), false));
        self.items.push(item);
        self.open = None;
        events
    }
}

fn status(finish: Finish) -> &'static str {
    if finish == Finish::Length { "incomplete" } else { "completed" }
}

impl Writer for Answer {
    const FORM: Form = Form::Events { ping: None };

    fn begin(&mut self) -> Vec<Value> {
        let response = self.response("in_progress", Vec::new(), None);
        vec![
            self.event("response.created", json!({ "response": response })),
            self.event("response.in_progress", json!({ "response": response })),
        ]
    }

    fn chunks(&mut self, _: usize, event: Event) -> Vec<Value> {
        match event {
            Event::Piece(piece) => {
                let scores = self.scores_of(&piece.tokens);
                self.scores.extend(scores);
                let parts = self.parts.push(&piece.text);
                self.add(parts)
            }
            Event::End(finish, figures) => {
                let mut events = self.end_items(finish);
                let response = self.finish(finish, figures);
                events.push(
                    self.event(&format!("response.{}", status(finish)), json!({ "response": response })),
                );
                events
            }
            Event::Reading { .. } | Event::Prompt(_) | Event::Failed(_) => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn failed(&mut self, problem: &Problem) -> Vec<Value> {
        let error = Failed { code: "server_error", message: problem.message.clone() };
        let response = Response { error: Some(error), ..self.response("failed", Vec::new(), None) };
        vec![self.event("response.failed", json!({ "response": response }))]
    }
}
