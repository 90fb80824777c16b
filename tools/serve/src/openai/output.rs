//! The output of `/v1/responses`: items that come one after the other, whole or as events.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use yuan::{sampler::Settings, session::Finish};

use super::logprobs;
use crate::{
    messages::Turn,
    parts::{Part, Parts, Whole},
    piece::Scored,
    problem::Problem,
    server::{Loaded, Shared},
    stream::{Collected, Form, Writer},
    work::{Event, Figures},
};

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
    items: Vec<Value>,
    open: Option<Open>,
    /// Scores of tokens whose text has not come.
    scores: Vec<Value>,
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
    scores: Vec<Value>,
}

impl Open {
    fn part(&self) -> Value {
        match self.kind {
            Kind::Reasoning => json!({ "type": "reasoning_text", "text": self.text }),
            _ => {
                json!({ "type": "output_text", "text": self.text, "annotations": [], "logprobs": self.scores })
            }
        }
    }

    fn item(&self, status: &str) -> Value {
        let parts = if status == "in_progress" { json!([]) } else { json!([self.part()]) };
        match &self.kind {
            Kind::Message => {
                json!({ "id": self.id, "type": "message", "status": status, "role": "assistant", "content": parts })
            }
            Kind::Reasoning => {
                json!({ "id": self.id, "type": "reasoning", "status": status, "summary": [], "content": parts })
            }
            Kind::Call(name) => json!({
                "id": self.id, "type": "function_call", "status": status, "call_id": self.id.replacen("fc_", "call_", 1), "name": name,
                "arguments": self.text,
            }),
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
    pub fn whole(&mut self, one: &Collected) -> Value {
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

    fn response(&self, status: &str, output: Value, usage: Value) -> Value {
        let incomplete = (status == "incomplete").then(|| json!({ "reason": "max_output_tokens" }));
        let about = &self.about;
        json!({
            "id": self.id, "object": "response", "created_at": about.created, "status": status, "error": null,
            "incomplete_details": incomplete, "instructions": about.instructions, "max_output_tokens": about.most,
            "metadata": about.metadata, "model": about.name, "output": output, "parallel_tool_calls": about.several,
            "previous_response_id": about.previous, "reasoning": { "effort": about.effort, "summary": null }, "store": about.store,
            "temperature": about.settings.temperature, "text": { "format": about.format }, "tool_choice": about.tool_choice,
            "tools": about.tools, "top_p": about.settings.top_p, "truncation": "disabled", "usage": usage,
        })
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
        let usage = json!({
            "input_tokens": figures.prompt,
            "input_tokens_details": { "cached_tokens": figures.cached, "cache_write_tokens": 0 },
            "output_tokens": figures.answer, "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": figures.prompt + figures.answer,
        });
        let response = self.response(status(finish), json!(self.items), usage);
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
    fn close(&mut self, status: &str) -> Vec<Value> {
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
        let response = self.response("in_progress", json!([]), Value::Null);
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
        let mut response = self.response("failed", json!([]), Value::Null);
        response["error"] = json!({ "code": "server_error", "message": problem.message });
        vec![self.event("response.failed", json!({ "response": response }))]
    }
}
