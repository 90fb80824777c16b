//! An answer: the prompt is run, and tokens are chosen and shown until something ends them.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use serde_json::json;
use yuan::{
    model::Model,
    sampler::Sampler,
    session::{
        Drafted, Finish, Limits, Session, Synced,
        stats::{self, Lap, Meter},
    },
};
use yuan_tools::console::{self, token_bar, unless_stopped};

/// A generated text with its figures.
pub struct Answer {
    /// What of the prompt was there, and what was run.
    pub synced: Synced,
    pub tokens: Vec<u32>,
    pub text: String,
    pub finish: Finish,
    /// Of the random choices, where there were any.
    pub seed: Option<u64>,
    pub prefill: Duration,
    pub decode: Duration,
    /// What the pager did in each.
    pub laps: [Lap; 2],
    /// Of the tokens behind the first.
    pub times: Vec<Duration>,
    /// What was drafted of it.
    pub drafted: Drafted,
}

impl Answer {
    /// Tokens a second of prefill and decode. The first token of the answer comes from the prefill.
    pub fn rates(&self) -> (f64, f64) {
        let decoded = self.tokens.len().saturating_sub(1) as f64;
        let seconds = |d: Duration| d.as_secs_f64().max(1e-9);
        (self.synced.computed as f64 / seconds(self.prefill), decoded / seconds(self.decode))
    }
}

/// Makes the session's timeline `prompt`, and streams the answer to `show`, until it ends or Ctrl-C is pressed.
pub fn answer(
    session: &mut Session,
    prompt: &[u32],
    limits: &Limits,
    sampler: &mut Sampler,
    mut show: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Answer> {
    let _stop = console::cancel_on_stop(session.cancel_token());
    let engine = session.engine().clone();
    let mut meter = Meter::new(engine.model());
    let start = Instant::now();
    let bar = token_bar(prompt.len() as u64, "prompt");
    let synced = session.sync(prompt, |done| {
        bar.set_position(done as u64);
        unless_stopped()
    });
    bar.finish_and_clear();
    let synced = synced?;
    let prefill = start.elapsed();
    let prompt_lap = meter.lap(synced.computed);

    let (start, before) = (Instant::now(), session.drafted());
    let (mut tokens, mut text, mut shown) = (Vec::new(), String::new(), Ok(()));
    let (mut times, mut last) = (Vec::new(), start);
    let finish = session.generate(sampler, limits, |token, piece| {
        if token.is_some() && !tokens.is_empty() {
            times.push(last.elapsed());
        }
        last = Instant::now();
        tokens.extend(token);
        text.push_str(piece);
        if shown.is_ok() {
            shown = show(piece);
        }
        if shown.is_err() { ControlFlow::Break(()) } else { unless_stopped() }
    });
    shown?;
    let decode = start.elapsed();
    let laps = [prompt_lap, meter.lap(tokens.len().saturating_sub(1))];
    let (drafted, seed) = (session.drafted().since(before), sampler.seed());
    Ok(Answer { synced, tokens, text, finish: finish?, seed, prefill, decode, laps, times, drafted })
}

/// Why an answer ended, for programs.
pub fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::StopText(_) => "stop_text",
        Finish::Length => "length",
        Finish::Cancelled => "cancelled",
    }
}

/// The figures of an answer to `prompt`, for programs.
pub fn to_json(answer: &Answer, prompt: &[u32], model: &Model) -> serde_json::Value {
    let (prefill, decode) = answer.rates();
    json!({
        "prompt_tokens": prompt, "reused_tokens": answer.synced.reused, "tokens": answer.tokens, "text": answer.text,
        "finish": finish_name(answer.finish), "seed": answer.seed, "prefill_tokens_per_second": prefill, "decode_tokens_per_second": decode,
        "drafted_tokens": answer.drafted.tokens, "accepted_tokens": answer.drafted.accepted,
        "token_ms": stats::token_times(&answer.times), "paging": stats::placement(model),
        "prefill": answer.laps[0].json(), "decode": answer.laps[1].json(),
    })
}
