//! `POST /api/chat` and `POST /api/generate`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use yuan::{session::Finish, tokenizer::Special};

use super::{Failure, Options, now};
use crate::{
    asked::{Asked, refuse},
    calls::Calls,
    constraint::{self, constrain},
    conversation::{Conversation, Prepared, thinks_with},
    fim,
    messages::{Call, Said, Turn, turns},
    openai::{
        logprobs::{self, TokenLogprob},
        tools::Tools,
    },
    parts::{Part, Parts, Start, Whole},
    piece::Scored,
    problem::Problem,
    server::{Loaded, Shared},
    stream::{Form, Writer, collect_one, stream},
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
#[schemars(rename = "OllamaChatRequest")]
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
#[schemars(rename = "OllamaGenerateRequest")]
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
        let line = lines.line(Shown::default(), &[]);
        return Ok(Json(Line { done: true, done_reason: Some("load"), ..line }).into_response());
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
    let one = collect_one(answers).await?;
    let Whole { text, reasoning: thinking, calls } = Whole::of(parts, &one.text);
    let calls = calls.into_iter().zip(0..).map(|(call, index)| ToolCall::of(call, index)).collect();
    let line = lines.line(Shown { text, thinking, calls }, &one.tokens);
    Ok(Json(lines.last(line, one.finish.unwrap_or(Finish::Stop), one.figures)).into_response())
}

/// A line of an answer, or the whole of it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaAnswer")]
pub struct Line {
    model: String,
    created_at: String,
    #[serde(flatten)]
    shown: Named,
    done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    done_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<TokenLogprob>>,
    #[serde(flatten)]
    counts: Option<Counts>,
}

/// What a line shows of the answer, as its endpoint names it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "OllamaText")]
enum Named {
    Chat { message: Message },
    Generate(Generated),
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaMessage")]
struct Message {
    role: &'static str,
    content: String,
    #[serde(flatten)]
    more: More,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaGenerated")]
struct Generated {
    response: String,
    #[serde(flatten)]
    more: More,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaThinkingAndCalls")]
struct More {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    thinking: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaToolCall")]
struct ToolCall {
    function: Called,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaFunctionCall")]
struct Called {
    index: usize,
    name: String,
    arguments: Value,
}

/// What an answer took; times in nanoseconds.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaCounts")]
struct Counts {
    total_duration: u64,
    /// What an answer waits for here is a sequence, and not a model.
    load_duration: u64,
    prompt_eval_count: usize,
    prompt_eval_duration: u64,
    eval_count: usize,
    eval_duration: u64,
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
    calls: Vec<ToolCall>,
}

impl ToolCall {
    /// The arguments are an object. An answer that was cut short may end in the middle of them.
    fn of(call: Call, index: usize) -> Self {
        let arguments = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
        Self { function: Called { index, name: call.name, arguments } }
    }
}

impl Lines {
    fn line(&self, shown: Shown, tokens: &[Scored]) -> Line {
        let Shown { text, thinking, calls } = shown;
        let more = More { thinking, tool_calls: calls };
        let shown = match self.kind {
            Kind::Chat => Named::Chat { message: Message { role: "assistant", content: text, more } },
            Kind::Generate => Named::Generate(Generated { response: text, more }),
        };
        let tokenizer = self.model.served.engine.tokenizer();
        Line {
            model: self.name.clone(),
            created_at: now(),
            shown,
            done: false,
            done_reason: None,
            logprobs: self.scored.then(|| logprobs::chat(tokenizer, tokens).content),
            counts: None,
        }
    }

    /// This line as the last one.
    fn last(&self, line: Line, finish: Finish, figures: Figures) -> Line {
        let (all, ns) = (self.begun.elapsed(), |time: Duration| time.as_nanos() as u64);
        let counts = Counts {
            total_duration: ns(all),
            load_duration: ns(all.saturating_sub(figures.prompt_time + figures.answer_time)),
            prompt_eval_count: figures.prompt,
            prompt_eval_duration: ns(figures.prompt_time),
            eval_count: figures.answer,
            eval_duration: ns(figures.answer_time),
        };
        let reason = if finish == Finish::Length { "length" } else { "stop" };
        Line { done: true, done_reason: Some(reason), counts: Some(counts), ..line }
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
        let of = |(i, shown)| json!(self.lines.line(shown, if i == 0 { tokens } else { &[] }));
        all.into_iter().enumerate().map(of).collect()
    }

    /// The call is whole.
    fn close(&mut self) -> Option<Shown> {
        let call = self.open.take()?;
        self.calls += 1;
        Some(Shown { calls: vec![ToolCall::of(call, self.calls - 1)], ..Shown::default() })
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
                all.extend(self.close().map(|shown| json!(self.lines.line(shown, &[]))));
                all.push(json!(self.lines.last(self.lines.line(Shown::default(), &[]), finish, figures)));
                all
            }
            Event::Reading { .. } | Event::Prompt(_) | Event::Failed(_) => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn failed(&mut self, problem: &Problem) -> Vec<Value> {
        vec![json!(Failure::of(problem))]
    }
}
