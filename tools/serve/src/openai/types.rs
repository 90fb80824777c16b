//! What chat and completions have in common.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use yuan::session::{Drafted, Finish};

use crate::{
    drafting,
    problem::Problem,
    sampling::Sampling,
    server::{Loaded, now},
    wanted::{Wanted, most},
    work::{Event, Figures, Job},
};

/// Answers to one prompt.
const MOST_CHOICES: u32 = 128;

/// Fields of both.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct Common {
    pub model: Option<String>,
    #[serde(default)]
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    #[serde(alias = "max_completion_tokens", alias = "n_predict")]
    max_tokens: Option<i64>,
    n: Option<u32>,
    return_progress: Option<bool>,
    #[serde(flatten)]
    sampling: Sampling,
    #[serde(flatten)]
    drafting: drafting::Fields,
}

/// How chunks are written.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct StreamOptions {
    include_usage: Option<bool>,
}

impl Common {
    /// Whether the answer comes in chunks.
    pub fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Answers to each prompt.
    ///
    /// # Errors
    /// None, or too many.
    pub fn choices(&self) -> Result<usize, Problem> {
        match self.n.unwrap_or(1) {
            n @ 1..=MOST_CHOICES => Ok(n as usize),
            n => Err(Problem::field("n", format!("n is {n}; give 1 to {MOST_CHOICES}"))),
        }
    }

    /// The jobs of these prompts.
    ///
    /// # Errors
    /// As [`Wanted::jobs`].
    pub fn jobs(
        &self,
        model: &Loaded,
        prompts: Vec<Vec<u32>>,
        top: Option<usize>,
        echo: bool,
    ) -> Result<Vec<Job>, Problem> {
        let wanted = Wanted {
            sampling: &self.sampling,
            most: most("max_tokens", self.max_tokens, &[-1])?,
            choices: self.choices()?,
            top,
            echo,
            progress: self.streams() && self.return_progress.unwrap_or(false),
            drafting: self.drafting.drafting(model)?,
        };
        wanted.jobs(model, prompts)
    }
}

/// A reply or a chunk without its choices.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Head {
    pub id: String,
    pub object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
}

impl Head {
    /// With the name of the model as the client knows it.
    pub fn new(id: String, object: &'static str, model: &Loaded, asked: Option<&str>) -> Self {
        let (created, system_fingerprint) = (now().as_secs(), model.fingerprint.clone());
        Self { id, object, created, model: model.name(asked), system_fingerprint }
    }

    /// With these choices.
    fn with(&self, choices: Value) -> Value {
        let mut value = json!(self);
        value["choices"] = choices;
        value
    }
}

/// What comes behind the choices of a whole reply.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Tail {
    usage: Counts,
    timings: Timings,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Usage")]
struct Counts {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: Cached,
    completion_tokens_details: Predicted,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "PromptTokensDetails")]
struct Cached {
    cached_tokens: usize,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "CompletionTokensDetails")]
struct Predicted {
    accepted_prediction_tokens: u64,
    rejected_prediction_tokens: u64,
}

/// As llama-server has it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Timings {
    cache_n: usize,
    prompt_n: usize,
    prompt_ms: f64,
    prompt_per_second: f64,
    predicted_n: usize,
    predicted_ms: f64,
    predicted_per_second: f64,
    draft_n: u64,
    draft_n_accepted: u64,
}

/// As OpenAI names it.
pub fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::StopText(_) | Finish::Cancelled => "stop",
        Finish::Length => "length",
    }
}

/// The figures of all answers.
#[derive(Clone, Debug)]
pub struct Usage {
    /// Answers to each prompt.
    choices: usize,
    all: Vec<Figures>,
}

impl Usage {
    /// Of so many answers to each of so many prompts.
    pub fn new(choices: usize, jobs: usize) -> Self {
        Self { choices, all: vec![Figures::default(); jobs] }
    }

    /// The answer in this place has ended.
    pub fn set(&mut self, place: usize, figures: Figures) {
        self.all[place] = figures;
    }

    /// What comes behind the choices.
    pub fn tail(&self) -> Tail {
        Tail { usage: self.counts(), timings: self.timings() }
    }

    /// A prompt counts once, however many answers it has.
    fn counts(&self) -> Counts {
        let prompts = || self.all.iter().step_by(self.choices);
        let (prompt, answer) =
            (prompts().map(|f| f.prompt).sum::<usize>(), self.all.iter().map(|f| f.answer).sum::<usize>());
        let drafted = self.drafted();
        Counts {
            prompt_tokens: prompt,
            completion_tokens: answer,
            total_tokens: prompt + answer,
            prompt_tokens_details: Cached { cached_tokens: prompts().map(|f| f.cached).sum() },
            completion_tokens_details: Predicted {
                accepted_prediction_tokens: drafted.accepted,
                rejected_prediction_tokens: drafted.tokens - drafted.accepted,
            },
        }
    }

    /// What was drafted of all answers.
    fn drafted(&self) -> Drafted {
        let sum = |of: fn(&Drafted) -> u64| self.all.iter().map(|figures| of(&figures.drafted)).sum();
        Drafted { tokens: sum(|d| d.tokens), accepted: sum(|d| d.accepted) }
    }

    /// Of all answers together.
    pub fn timings(&self) -> Timings {
        let sum = |of: fn(&Figures) -> usize| self.all.iter().map(of).sum::<usize>();
        let time = |of: fn(&Figures) -> Duration| self.all.iter().map(of).sum::<Duration>().as_secs_f64();
        let (prompt, answer) = (sum(|f| f.prompt - f.cached), sum(|f| f.answer));
        let drafted = self.drafted();
        let (prompt_time, answer_time) = (time(|f| f.prompt_time), time(|f| f.answer_time));
        Timings {
            cache_n: sum(|f| f.cached),
            prompt_n: prompt,
            prompt_ms: prompt_time * 1e3,
            prompt_per_second: rate(prompt, prompt_time),
            predicted_n: answer,
            predicted_ms: answer_time * 1e3,
            predicted_per_second: rate(answer, answer_time),
            draft_n: drafted.tokens,
            draft_n_accepted: drafted.accepted,
        }
    }
}

fn rate(tokens: usize, seconds: f64) -> f64 {
    tokens as f64 / seconds.max(1e-6)
}

/// What all chunks have in common.
pub struct Chunks {
    pub head: Head,
    pub usage: Usage,
    include_usage: bool,
    /// Answers of which something was written.
    begun: Vec<bool>,
}

impl Chunks {
    /// Of a request with so many jobs.
    pub fn new(head: Head, common: &Common, choices: usize, jobs: usize) -> Self {
        let include_usage = common.stream_options.as_ref().and_then(|o| o.include_usage).unwrap_or(false);
        Self { head, usage: Usage::new(choices, jobs), include_usage, begun: vec![false; jobs] }
    }

    /// Whether the answer in this place begins now.
    pub fn begins(&mut self, place: usize) -> bool {
        !std::mem::replace(&mut self.begun[place], true)
    }

    /// A chunk with one choice.
    pub fn chunk(&self, choice: Value) -> Value {
        let mut chunk = self.head.with(json!([choice]));
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// A chunk that says how much of the prompt was read. Its choices are empty: clients that do not know it pass over it.
    pub fn progress(&self, done: usize, total: usize, cached: usize, time: Duration) -> Value {
        let mut chunk = self.head.with(json!([]));
        chunk["prompt_progress"] = json!({ "total": total, "cache": cached, "processed": done, "time_ms": time.as_secs_f64() * 1e3 });
        chunk
    }

    /// The last chunk of an answer, with the timings of all so far.
    pub fn last(&mut self, place: usize, figures: Figures, choice: Value) -> Value {
        self.usage.set(place, figures);
        let mut chunk = self.chunk(choice);
        chunk["timings"] = json!(self.usage.timings());
        chunk
    }

    /// The chunk behind all answers.
    pub fn end(&self) -> Vec<Value> {
        if !self.include_usage {
            return Vec::new();
        }
        let (mut chunk, Tail { usage, timings }) = (self.head.with(json!([])), self.usage.tail());
        (chunk["usage"], chunk["timings"]) = (json!(usage), json!(timings));
        vec![chunk]
    }
}

/// For endpoints that do not know an event.
pub fn reading(chunks: &Chunks, event: &Event) -> Vec<Value> {
    match event {
        Event::Reading { done, total, cached, time } => vec![chunks.progress(*done, *total, *cached, *time)],
        _ => Vec::new(),
    }
}
