//! `POST /api/chat` and `POST /api/generate`.

use std::{sync::Arc, time::Instant};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use yuan::{session::Finish, tokenizer::Special};

use super::{Options, error, now};
use crate::{
    asked::{Asked, refuse},
    calls::Calls,
    constraint::{self, constrain},
    conversation::{Conversation, Prepared, thinks_with},
    fim,
    messages::{Call, Said, Turn, turns},
    openai::{logprobs, tools::Tools},
    parts::{Part, Parts, Start, Whole},
    piece::Scored,
    problem::Problem,
    server::{Loaded, Shared},
    stream::{Form, Writer, collect, stream},
    wanted::{Wanted, most, top},
    work::{Event, Figures, start},
};

/// The fields of both.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Common {
    model: Option<String>,
    stream: Option<bool>,
    format: Option<Value>,
    images: Option<Value>,
    think: Option<Value>,
    options: Option<Map<String, Value>>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
}

/// The body of a request to `/api/chat`.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Chat {
    #[serde(default)]
    messages: Vec<Said>,
    #[serde(flatten)]
    tools: Tools,
    #[serde(flatten)]
    common: Common,
}

/// The body of a request to `/api/generate`.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Generate {
    #[serde(default)]
    prompt: String,
    suffix: Option<String>,
    system: Option<String>,
    template: Option<Value>,
    context: Option<Value>,
    raw: Option<bool>,
    #[serde(flatten)]
    common: Common,
}

/// Answers messages. Without any, the model is loaded already.
///
/// # Errors
/// What cannot be answered.
pub async fn chat(
    State(server): State<Shared>,
    Asked(model, request): Asked<Chat>,
) -> Result<Response, Problem> {
    let Chat { messages, tools, common } = request;
    let prepared = match messages.is_empty() {
        true => None,
        false => Some(common.prepare(&model, turns(&messages)?, tools.calls()?)?),
    };
    answer(&server, model, common, Kind::Chat, prepared).await
}

/// Goes on behind a text. Without one, the model is loaded already.
///
/// # Errors
/// What cannot be answered.
pub async fn generate(
    State(server): State<Shared>,
    Asked(model, request): Asked<Generate>,
) -> Result<Response, Problem> {
    let raw = request.raw.unwrap_or(false);
    let template =
        "the model's own template is used; leave it out, or send a whole prompt with \"raw\": true";
    refuse("template", request.template.as_ref().filter(|_| !raw), template)?;
    refuse(
        "context",
        request.context.as_ref(),
        "context is not kept as tokens; send the messages to /api/chat",
    )?;
    let tokenizer = model.served.engine.tokenizer();
    let Generate { prompt: text, suffix, system, common, .. } = request;
    let prompt = match suffix.filter(|suffix| !suffix.is_empty()) {
        Some(suffix) => Some(fim::prompt(tokenizer, "suffix", &text, &suffix)?),
        None if raw => (!text.is_empty()).then(|| tokenizer.encode(&text, Special::Parse)),
        None => None,
    };
    let prepared = match prompt {
        Some(prompt) => Some(Prepared {
            prompt,
            form: constraint::ollama(common.format.as_ref())?,
            parts: Parts::new(None, Start::Text),
        }),
        None if text.is_empty() => None,
        None => {
            let system = system.filter(|system| !system.is_empty());
            let system = system.map(|system| Turn::new("system", system));
            let turns = system.into_iter().chain([Turn::new("user", text)]).collect();
            Some(common.prepare(&model, turns, None)?)
        }
    };
    answer(&server, model, common, Kind::Generate, prepared).await
}

impl Common {
    /// The prompt of a conversation, and what belongs to it.
    fn prepare(&self, model: &Loaded, turns: Vec<Turn>, calls: Option<Calls>) -> Result<Prepared, Problem> {
        let form = constraint::ollama(self.format.as_ref())?;
        Conversation { turns, calls, form, thinking: self.thinks(model)? }.prepare(model)
    }

    /// Whether the model thinks, where anything is said of it: so, or with an effort.
    fn thinks(&self, model: &Loaded) -> Result<Option<bool>, Problem> {
        if !model.served.engine.tokenizer().has_thinking() {
            refuse(
                "think",
                self.think.as_ref(),
                "this model does not think before it answers; send \"think\": false",
            )?;
        }
        match &self.think {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(thinks)) => Ok(Some(*thinks)),
            Some(Value::String(effort)) => Ok(Some(thinks_with(effort))),
            Some(other) => {
                Err(Problem::field("think", format!("think is {other}; give true, false or an effort")))
            }
        }
    }
}

async fn answer(
    server: &Shared,
    model: Arc<Loaded>,
    common: Common,
    kind: Kind,
    prepared: Option<Prepared>,
) -> Result<Response, Problem> {
    let begun = Instant::now();
    refuse("images", common.images.as_ref(), "this model reads text; leave the images out")?;
    let top = top(common.top_logprobs)?;
    let scored = common.logprobs.unwrap_or(false);
    let options = Options::of(common.options)?;
    let streams = common.stream.unwrap_or(true);
    let lines = Lines { kind, name: model.name(common.model.as_deref()), begun, scored, model };
    let Some(Prepared { prompt, form, parts }) = prepared else {
        let mut line = lines.line(Shown::default(), &[]);
        (line["done"], line["done_reason"]) = (json!(true), json!("load"));
        return Ok(Json(line).into_response());
    };
    let wanted = Wanted {
        most: most("num_predict", options.num_predict, &[-1, -2])?,
        top: scored.then_some(top),
        ..Wanted::one(&options.sampling)
    };
    let mut jobs = wanted.jobs(&lines.model, vec![prompt])?;
    constrain(&mut jobs, &lines.model, form.as_ref())?;
    let answers = start(server, &lines.model, server.gate.enter()?, jobs);
    if streams {
        return Ok(stream(answers, Streamed { lines, parts, open: None, calls: 0 }));
    }
    let mut line = json!(null);
    for one in collect(answers, 1).await? {
        let whole = Whole::of(parts.clone(), &one.text);
        let calls = whole.calls.iter().zip(0..).map(|(call, index)| shown_call(call, index)).collect();
        line = lines.line(Shown { text: whole.text, thinking: whole.reasoning, calls }, &one.tokens);
        lines.end_with(&mut line, one.finish.unwrap_or(Finish::Stop), one.figures);
    }
    Ok(Json(line).into_response())
}

/// Under which name the text of an answer stands.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Chat,
    Generate,
}

struct Lines {
    kind: Kind,
    name: String,
    begun: Instant,
    scored: bool,
    model: Arc<Loaded>,
}

/// What a line shows of the answer.
#[derive(Debug, Default)]
struct Shown {
    text: String,
    thinking: String,
    calls: Vec<Value>,
}

/// A call as ollama writes it, the arguments being an object. An answer that was cut short may end in the middle of them.
fn shown_call(call: &Call, index: usize) -> Value {
    let arguments = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
    json!({ "function": { "index": index, "name": call.name, "arguments": arguments } })
}

impl Lines {
    fn line(&self, shown: Shown, tokens: &[Scored]) -> Value {
        let mut line = json!({ "model": self.name, "created_at": now(), "done": false });
        let message = match self.kind {
            Kind::Chat => {
                line["message"] = json!({ "role": "assistant", "content": shown.text });
                &mut line["message"]
            }
            Kind::Generate => {
                line["response"] = json!(shown.text);
                &mut line
            }
        };
        if !shown.thinking.is_empty() {
            message["thinking"] = json!(shown.thinking);
        }
        if !shown.calls.is_empty() {
            message["tool_calls"] = shown.calls.into();
        }
        if self.scored {
            line["logprobs"] = logprobs::chat(self.model.served.engine.tokenizer(), tokens)["content"].take();
        }
        line
    }

    fn end_with(&self, line: &mut Value, finish: Finish, figures: Figures) {
        let all = self.begun.elapsed();
        let waited = all.saturating_sub(figures.prompt_time + figures.answer_time);
        let reason = if finish == Finish::Length { "length" } else { "stop" };
        (line["done"], line["done_reason"]) = (json!(true), json!(reason));
        for (name, time) in [
            ("total_duration", all),
            // What an answer waits for here is a sequence, and not a model.
            ("load_duration", waited),
            ("prompt_eval_duration", figures.prompt_time),
            ("eval_duration", figures.answer_time),
        ] {
            line[name] = json!(time.as_nanos() as u64);
        }
        (line["prompt_eval_count"], line["eval_count"]) = (json!(figures.prompt), json!(figures.answer));
    }
}

struct Streamed {
    lines: Lines,
    parts: Parts,
    /// A call that is not known to be whole.
    open: Option<Call>,
    /// Those that were.
    calls: usize,
}

impl Streamed {
    /// The lines of these parts; a line of tokens, whatever they are.
    fn shown(&mut self, parts: Vec<Part>, tokens: &[Scored]) -> Vec<Value> {
        let mut all = Vec::new();
        for part in parts {
            match part {
                Part::Text(text) => all.push(Shown { text, ..Shown::default() }),
                Part::Reasoning(thinking) => all.push(Shown { thinking, ..Shown::default() }),
                Part::Call(name) => {
                    all.extend(self.close());
                    self.open = Some(Call { name, arguments: String::new() });
                }
                Part::Arguments(more) => {
                    self.open.iter_mut().for_each(|call| call.arguments.push_str(&more));
                }
            }
        }
        if all.is_empty() && !tokens.is_empty() {
            all.push(Shown::default());
        }
        let of = |(i, shown)| self.lines.line(shown, if i == 0 { tokens } else { &[] });
        all.into_iter().enumerate().map(of).collect()
    }

    /// The call is whole.
    fn close(&mut self) -> Option<Shown> {
        let call = self.open.take()?;
        self.calls += 1;
        Some(Shown { calls: vec![shown_call(&call, self.calls - 1)], ..Shown::default() })
    }
}

impl Writer for Streamed {
    const FORM: Form = Form::Lines;

    fn chunks(&mut self, _: usize, event: Event) -> Vec<Value> {
        match event {
            Event::Piece(piece) => {
                let parts = self.parts.push(&piece.text);
                self.shown(parts, &piece.tokens)
            }
            Event::End(finish, figures) => {
                let parts = self.parts.finish();
                let mut all = self.shown(parts, &[]);
                all.extend(self.close().map(|shown| self.lines.line(shown, &[])));
                let mut last = self.lines.line(Shown::default(), &[]);
                self.lines.end_with(&mut last, finish, figures);
                all.push(last);
                all
            }
            Event::Reading { .. } | Event::Prompt(_) | Event::Failed(_) => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn failed(&mut self, problem: &Problem) -> Vec<Value> {
        vec![error(problem)]
    }
}
