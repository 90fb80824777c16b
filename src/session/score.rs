//! How likely tokens are behind those before them.

use std::ops::ControlFlow;

use super::{Session, Synced};
use crate::{
    error::{Error, Result},
    model::{LOGIT_ROWS, Output, Want},
    sampler::{self, exp::exp},
};

/// How likely a token was in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The token.
    pub token: u32,
    /// The logarithm of its probability, before any setting of a sampler.
    pub logprob: f32,
    /// The likeliest tokens in its place with theirs: best first, and of equals the lower id first. A token has the same number here and above.
    pub best: Vec<(u32, f32)>,
}

impl Score {
    /// Of `token`, which has these logits \[V\], all finite, before it; with the `top` likeliest tokens.
    pub fn of(logits: &[f32], token: u32, top: usize) -> Self {
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = logits.iter().map(|&l| exp(f64::from(l) - max)).sum();
        let whole = max + libm::log(sum);
        let logprob = |logit: f32| (f64::from(logit) - whole) as f32;
        let best = sampler::best(logits, top).into_iter().map(|(id, logit)| (id, logprob(logit))).collect();
        Self { token, logprob: logprob(logits[token as usize]), best }
    }
}

impl Session {
    /// Makes the timeline these `tokens`, as [`Session::sync`], and runs them. Of every token from the place `from` on, 1 or later, `show` hears
    /// how likely it was behind those before it, with the `top` likeliest in its place. It can break off.
    ///
    /// What is before `from` may be there already, and what other lists with the same beginning have been told: the engine remembers scores of some lists (8 MiB
    /// at most). The rest is run. Memory is taken for the logits of a few tokens, and not of all.
    ///
    /// # Errors
    /// As [`Session::sync`], and [`Error::Argument`] for a place that is not in the list.
    pub fn score(
        &mut self,
        tokens: &[u32],
        from: usize,
        top: usize,
        mut show: impl FnMut(Score) -> ControlFlow<()>,
    ) -> Result<Synced> {
        if from == 0 || from > tokens.len() {
            return Err(Error::Argument(format!(
                "there are no scores from place {from} on of {} tokens; give 1 up to their number",
                tokens.len()
            )));
        }
        self.check(tokens)?;
        let _call = self.state.cancel.begin();
        let engine = self.engine.clone();
        let mut scores = engine.scored().find(self.kv_type(), tokens, top);
        // Of the first so many tokens nothing is to be computed but the state behind them.
        let known = scores.len().max(from - 1);
        let synced = self.sync(&tokens[..known], |_| ControlFlow::Continue(()))?;
        if scores.iter().skip(from - 1).any(|score| show(score.clone()).is_break()) {
            return Err(Error::Cancelled);
        }
        let all = scores.len() == known;
        self.tokens.extend_from_slice(&tokens[known..]);
        self.logits = None;
        // What is behind a place is scored by the logits of the token before it.
        self.state.mark_at(self.returns.iter().filter_map(|place| place.checked_sub(1)));
        let scored = self.score_rest(top, &mut |score| {
            if all {
                scores.push(score.clone());
            }
            show(score)
        });
        if scored.is_err() {
            self.tokens.truncate(self.state.position());
            self.logits = None;
        }
        scored?;
        self.state.mark();
        // What was read from a file is believed by this session alone.
        if all && !self.state.is_foreign() {
            engine.scored().put(self.kv_type(), tokens, top, scores);
        }
        Ok(Synced { computed: tokens.len() - synced.reused, ..synced })
    }

    /// Runs what has not been run of the timeline, and keeps the logits of its last token.
    fn score_rest(&mut self, top: usize, show: &mut impl FnMut(Score) -> ControlFlow<()>) -> Result<()> {
        let engine = self.engine.clone();
        let (passes, config) = (engine.passes(), engine.model().config());
        while self.state.position() < self.tokens.len() {
            let mut at = self.state.position();
            let rest = &self.tokens[at..];
            let batch = rest[..rest.len().min(engine.model().batch())].to_vec();
            let hidden = passes.run(self.number, &mut self.state, (batch, 0), Want::Hidden)?.0.into_rows();
            self.state.share(&self.tokens);
            for rows in hidden.chunks(LOGIT_ROWS * config.hidden) {
                let logits = passes.logits(self.number, rows, rows.len() / config.hidden)?;
                for row in logits.chunks_exact(config.vocab) {
                    at += 1;
                    match self.tokens.get(at) {
                        Some(&token) if show(Score::of(row, token, top)).is_break() => {
                            return Err(Error::Cancelled);
                        }
                        Some(_) => {}
                        None => self.logits = Some(Output::Rows(row.to_vec())),
                    }
                }
                if self.state.cancel.is_cancelled() && at < self.tokens.len() {
                    return Err(Error::Cancelled);
                }
            }
        }
        Ok(())
    }
}
