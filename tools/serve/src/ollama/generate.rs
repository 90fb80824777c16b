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
use yuan::{
    session::Finish,
    tokenizer::{Message, Special},
};

use super::{Options, error, name, now};
use crate::{
    asked::{Asked, refuse},
    constraint::{self, constrain},
    fim,
    messages::{Said, messages},
    openai::logprobs,
    piece::Scored,
    problem::Problem,
    server::{Loaded, Shared},
    stream::{Form, Writer, collect, stream},
    wanted::{Wanted, most},
    work::{Event, Figures, start},
};

/// Tokens that are told in the place of each.
const MOST_TOP: u32 = 20;

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
    tools: Option<Value>,
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
    refuse("tools", request.tools.as_ref(), "tools cannot be called by way of /api/chat; leave them out")?;
    let tokenizer = model.served.engine.tokenizer();
    let prompt = match request.messages.is_empty() {
        true => None,
        false => Some(tokenizer.chat(&messages(&request.messages)?, true)?),
    };
    answer(&server, model.clone(), request.common, Kind::Chat, prompt).await
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
    let (text, suffix) = (&request.prompt, request.suffix.filter(|suffix| !suffix.is_empty()));
    let prompt = match suffix {
        Some(suffix) => Some(fim::prompt(tokenizer, "suffix", text, &suffix)?),
        None if text.is_empty() => None,
        None if raw => Some(tokenizer.encode(text, Special::Parse)),
        None => {
            let system = request.system.filter(|system| !system.is_empty());
            let system = system.map(|system| Message::new("system", system));
            let said: Vec<_> = system.into_iter().chain([Message::new("user", text.clone())]).collect();
            Some(tokenizer.chat(&said, true)?)
        }
    };
    answer(&server, model.clone(), request.common, Kind::Generate, prompt).await
}

async fn answer(
    server: &Shared,
    model: Arc<Loaded>,
    common: Common,
    kind: Kind,
    prompt: Option<Vec<u32>>,
) -> Result<Response, Problem> {
    let begun = Instant::now();
    let form = constraint::ollama(common.format.as_ref())?;
    refuse("images", common.images.as_ref(), "this model reads text; leave the images out")?;
    refuse(
        "think",
        common.think.as_ref(),
        "this model does not think before it answers; send \"think\": false",
    )?;
    let top = common.top_logprobs.unwrap_or(0);
    if top > MOST_TOP {
        return Err(Problem::field("top_logprobs", format!("top_logprobs is {top}; give 0 to {MOST_TOP}")));
    }
    let scored = common.logprobs.unwrap_or(false);
    let options = Options::of(common.options)?;
    let streams = common.stream.unwrap_or(true);
    let lines = Lines { kind, name: name(common.model, &model), begun, scored, model };
    let Some(prompt) = prompt else {
        let mut line = lines.line("", &[]);
        (line["done"], line["done_reason"]) = (json!(true), json!("load"));
        return Ok(Json(line).into_response());
    };
    let wanted = Wanted {
        most: most("num_predict", options.num_predict, &[-1, -2])?,
        top: scored.then_some(top as usize),
        ..Wanted::one(&options.sampling)
    };
    let mut jobs = wanted.jobs(&lines.model, vec![prompt])?;
    constrain(&mut jobs, &lines.model, form.as_ref())?;
    let answers = start(server, &lines.model, server.gate.enter()?, jobs);
    if streams {
        return Ok(stream(answers, lines));
    }
    let mut line = json!(null);
    for one in collect(answers, 1).await? {
        line = lines.line(&one.text, &one.tokens);
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

impl Lines {
    fn line(&self, text: &str, tokens: &[Scored]) -> Value {
        let mut line = json!({ "model": self.name, "created_at": now(), "done": false });
        match self.kind {
            Kind::Chat => line["message"] = json!({ "role": "assistant", "content": text }),
            Kind::Generate => line["response"] = json!(text),
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

impl Writer for Lines {
    const FORM: Form = Form::Lines;

    fn chunks(&mut self, _: usize, event: Event) -> Vec<Value> {
        match event {
            Event::Piece(piece) => vec![self.line(&piece.text, &piece.tokens)],
            Event::End(finish, figures) => {
                let mut line = self.line("", &[]);
                self.end_with(&mut line, finish, figures);
                vec![line]
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
