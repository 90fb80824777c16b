//! What a request wants of its prompts, by whatever protocol it came: the sequences that answer it.

use std::sync::Arc;

use yuan::{
    sampler::{Sampler, Settings},
    session::Limits,
};

use crate::{drafting::Drafting, problem::Problem, sampling::Sampling, server::Loaded, work::Job};

/// Answers of one request.
const MOST_JOBS: usize = 4096;
/// Tokens that are told in the place of each.
const MOST_TOP: u32 = 20;

/// What is wanted of each prompt.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// How tokens are chosen, and which texts end an answer.
    pub sampling: &'a Sampling,
    /// Tokens of an answer at most; they end where the context does in any case.
    pub most: usize,
    /// Answers.
    pub choices: usize,
    /// Whether the tokens of answers are scored, and how many of the likeliest are told.
    pub top: Option<usize>,
    /// Whether the tokens of prompts are scored, too.
    pub echo: bool,
    /// Whether the client hears how much of a prompt was read.
    pub progress: bool,
    /// What answers are drafted from, and whether they are.
    pub drafting: Drafting,
}

impl<'a> Wanted<'a> {
    /// One answer, as long as the context allows, without scores.
    pub fn one(sampling: &'a Sampling) -> Self {
        let drafting = Drafting::default();
        Self { sampling, most: usize::MAX, choices: 1, top: None, echo: false, progress: false, drafting }
    }

    /// The jobs of these prompts: as many for each as there are to be answers, of which the first has the request's seed, the next the seed behind it, and so on.
    ///
    /// # Errors
    /// What makes no sense, before anything is begun.
    pub fn jobs(&self, model: &Loaded, prompts: Vec<Vec<u32>>) -> Result<Vec<Job>, Problem> {
        let (engine, context, choices) = (&model.served.engine, model.served.context, self.choices);
        if prompts.len().saturating_mul(choices) > MOST_JOBS {
            let message = format!(
                "{} prompts of {choices} answers are too many at once; send several requests, of {MOST_JOBS} answers at most",
                prompts.len()
            );
            return Err(Problem::field("prompt", message));
        }
        let vocab = engine.model().config().vocab;
        let settings = self.sampling.settings(vocab)?;
        let mut jobs = Vec::with_capacity(prompts.len() * choices);
        for prompt in prompts {
            check(&prompt, vocab, context)?;
            let prompt: Arc<[u32]> = prompt.into();
            // The last token of an answer is not run, so it needs no room.
            let limits = Limits {
                stop_texts: self.sampling.stop(),
                ignore_eod: self.sampling.ignores_eod(),
                ..Limits::tokens(self.most.min(context + 1 - prompt.len()))
            };
            for choice in 0..choices {
                // With a seed in any case: where none was given, each answer has a random one of its own.
                let seed = match settings.seed {
                    Some(seed) => Some(seed.wrapping_add(choice as u64)),
                    None => Sampler::new(Settings::default())?.settings().seed,
                };
                jobs.push(Job {
                    prompt: prompt.clone(),
                    settings: Settings { seed, ..settings.clone() },
                    limits: limits.clone(),
                    top: self.top,
                    echo: self.echo,
                    progress: self.progress,
                    drafting: self.drafting.clone(),
                });
            }
        }
        Ok(jobs)
    }
}

/// Tokens of an answer by a field of the request; where there is none, or a negative one of `all`, as many as the context allows.
///
/// # Errors
/// Another negative number.
pub fn most(param: &'static str, asked: Option<i64>, all: &[i64]) -> Result<usize, Problem> {
    match asked {
        None => Ok(usize::MAX),
        Some(most) if all.contains(&most) => Ok(usize::MAX),
        Some(most) => usize::try_from(most)
            .map_err(|_| Problem::field(param, format!("{param} is {most}; give 0 or more"))),
    }
}

/// Tokens that are told in the place of each, by `top_logprobs` of a request; without it none.
///
/// # Errors
/// They are too many.
pub fn top(asked: Option<u32>) -> Result<usize, Problem> {
    match asked.unwrap_or(0) {
        top @ 0..=MOST_TOP => Ok(top as usize),
        top => Err(Problem::field("top_logprobs", format!("top_logprobs is {top}; give 0 to {MOST_TOP}"))),
    }
}

/// Whether a prompt can be run.
///
/// # Errors
/// It is empty, too long, or has an id outside the vocabulary.
pub fn check(prompt: &[u32], vocab: usize, context: usize) -> Result<(), Problem> {
    if prompt.is_empty() {
        return Err(Problem::field("prompt", "the prompt has no tokens; give some text"));
    }
    if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab) {
        return Err(Problem::field("prompt", format!("there is no token {id}: the vocabulary has {vocab}")));
    }
    if prompt.len() > context {
        return Err(Problem::too_long(prompt.len(), context));
    }
    Ok(())
}
