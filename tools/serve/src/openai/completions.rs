//! `POST /v1/completions`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use yuan::{
    session::Score,
    tokenizer::{Special, Tokenizer},
};

use super::{
    logprobs::Lists,
    types::{Chunks, Common, Head, Tail, Usage, finish_reason, reading},
};
use crate::{
    asked::Asked,
    constraint::{Form, constrain},
    fim,
    piece::Scored,
    problem::Problem,
    server::{Loaded, Shared},
    stream::{Writer, collect, stream},
    work::{Event, start},
};

/// Tokens that are told in the place of each.
const MOST_TOP: u32 = 100;

/// The body of a request.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "CompletionRequest")]
pub struct Request {
    prompt: Prompts,
    logprobs: Option<u32>,
    echo: Option<bool>,
    best_of: Option<u32>,
    suffix: Option<String>,
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    form: Form,
}

/// One prompt or several, as texts or as ids.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    Lists(Vec<Vec<u32>>),
}

impl Prompts {
    /// The ids of each. Special strings in a text are special tokens, as in `yuan generate`.
    pub fn ids(self, tokenizer: &Tokenizer) -> Vec<Vec<u32>> {
        let ids = |text: &String| tokenizer.encode(text, Special::Parse);
        match self {
            Self::Text(text) => vec![ids(&text)],
            Self::Texts(texts) => texts.iter().map(ids).collect(),
            Self::Ids(ids) => vec![ids],
            Self::Lists(lists) => lists,
        }
    }

    /// The ids of each with a gap behind it, and then the suffix.
    fn before(self, tokenizer: &Tokenizer, suffix: &str) -> Result<Vec<Vec<u32>>, Problem> {
        let texts = match self {
            Self::Text(text) => vec![text],
            Self::Texts(texts) => texts,
            Self::Ids(_) | Self::Lists(_) => {
                return Err(Problem::field(
                    "suffix",
                    "a suffix goes with a prompt of text, and not with ids",
                ));
            }
        };
        texts.iter().map(|text| fim::prompt(tokenizer, "suffix", text, suffix)).collect()
    }
}

/// The whole reply.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Completion {
    #[serde(flatten)]
    head: Head,
    choices: Vec<Choice>,
    #[serde(flatten)]
    tail: Tail,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CompletionChoice")]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<Lists>,
    finish_reason: Option<&'static str>,
}

/// Answers.
///
/// # Errors
/// What cannot be answered.
pub async fn completions(
    State(server): State<Shared>,
    Asked(model, request): Asked<Request>,
) -> Result<Response, Problem> {
    let common = &request.common;
    let choices = common.choices()?;
    if request.best_of.is_some_and(|best| best as usize != choices) {
        return Err(Problem::field(
            "best_of",
            "best_of is not supported; ask for n answers with logprobs, and choose",
        ));
    }
    if let Some(top) = request.logprobs.filter(|top| *top > MOST_TOP) {
        return Err(Problem::field("logprobs", format!("logprobs is {top}; give 0 to {MOST_TOP}")));
    }
    let (top, echo) = (request.logprobs.map(|top| top as usize), request.echo.unwrap_or(false));
    let tokenizer = model.served.engine.tokenizer();
    let prompts = match request.suffix.filter(|suffix| !suffix.is_empty()) {
        Some(suffix) => request.prompt.before(tokenizer, &suffix)?,
        None => request.prompt.ids(tokenizer),
    };
    if prompts.is_empty() {
        return Err(Problem::field("prompt", "there is no prompt; give at least one"));
    }
    let mut jobs = common.jobs(&model, prompts, top, echo)?;
    constrain(&mut jobs, &model, request.form.grammar()?.as_ref())?;
    let ticket = server.gate.enter()?;
    let echoes = jobs.iter().map(|job| echo.then(|| Echo::of(tokenizer, &job.prompt))).collect();
    let shape = Shape { echoes, scored: top.is_some(), model: model.clone() };
    let head = Head::new(server.request("cmpl"), "text_completion", &model, common.model.as_deref());
    let count = jobs.len();
    let answers = start(&server, &model, ticket, jobs);
    if common.streams() {
        let chunks = Chunks::new(head, common, choices, count);
        return Ok(stream(answers, Completions { chunks, shape }));
    }
    let (mut usage, mut listed) = (Usage::new(choices, count), Vec::with_capacity(count));
    for (index, one) in collect(answers, count).await?.into_iter().enumerate() {
        usage.set(index, one.figures);
        let logprobs = shape.logprobs(index, Some(&one.prompt), &one.tokens);
        let text = shape.before(index).to_owned() + &one.text;
        listed.push(Choice { index, text, logprobs, finish_reason: one.finish.map(finish_reason) });
    }
    Ok(Json(Completion { head, choices: listed, tail: usage.tail() }).into_response())
}

/// A prompt that stands before its answer.
struct Echo {
    text: String,
    /// Its first token, which has nothing before it and so no score.
    first: u32,
    /// Characters before each token, and before the answer.
    offsets: Vec<usize>,
}

impl Echo {
    /// Of a prompt of at least one token.
    fn of(tokenizer: &Tokenizer, prompt: &[u32]) -> Self {
        let (mut stream, mut offsets) = (tokenizer.stream(), vec![0]);
        for &id in prompt {
            offsets.push(offsets[offsets.len() - 1] + stream.push(id).chars().count());
        }
        Self { text: tokenizer.decode(prompt), first: prompt[0], offsets }
    }
}

/// How choices are written.
struct Shape {
    /// By choice; none where prompts do not stand before their answers.
    echoes: Vec<Option<Echo>>,
    scored: bool,
    model: Arc<Loaded>,
}

impl Shape {
    /// What stands before the answer.
    fn before(&self, index: usize) -> &str {
        self.echoes[index].as_ref().map_or("", |echo| &echo.text)
    }

    /// The scores of the prompt, if they are to stand here and are wanted, and of these tokens.
    fn logprobs(&self, index: usize, prompt: Option<&[Score]>, tokens: &[Scored]) -> Option<Lists> {
        if !self.scored {
            return None;
        }
        let (tokenizer, mut lists, mut before) = (self.model.served.engine.tokenizer(), Lists::default(), 0);
        if let Some(Echo { first, offsets, .. }) = &self.echoes[index] {
            before = offsets[offsets.len() - 1];
            if let Some(prompt) = prompt {
                lists.first(tokenizer, *first);
                let scores = prompt.iter().zip(&offsets[1..]);
                scores.for_each(|(score, offset)| lists.push(tokenizer, score, *offset));
            }
        }
        tokens.iter().for_each(|token| lists.push(tokenizer, &token.score, before + token.offset));
        Some(lists)
    }
}

struct Completions {
    chunks: Chunks,
    shape: Shape,
}

impl Completions {
    fn choice(&self, index: usize, text: &str, logprobs: Option<Lists>) -> Value {
        self.chunks
            .chunk(json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": null }))
    }
}

impl Writer for Completions {
    fn chunks(&mut self, place: usize, event: Event) -> Vec<Value> {
        let mut chunks = reading(&self.chunks, &event);
        if !matches!(event, Event::Reading { .. })
            && self.chunks.begins(place)
            && self.shape.echoes[place].is_some()
        {
            let scores = if let Event::Prompt(scores) = &event { Some(&scores[..]) } else { None };
            let logprobs = self.shape.logprobs(place, scores, &[]);
            chunks.push(self.choice(place, self.shape.before(place), logprobs));
        }
        match event {
            Event::Piece(piece) => {
                let logprobs = self.shape.logprobs(place, None, &piece.tokens);
                chunks.push(self.choice(place, &piece.text, logprobs));
            }
            Event::End(finish, figures) => {
                let choice = json!({ "index": place, "text": "", "logprobs": null, "finish_reason": finish_reason(finish) });
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
