//! Answers: tokens chosen one after another, shown as text, until something ends them.

use std::ops::ControlFlow;

use super::{Score, Session};
use crate::{
    error::{Error, Result},
    sampler::{Sampler, StopText},
};

/// Tokens before an answer that decide how its text begins: more than the bytes of one character.
const CONTEXT_OF_TEXT: usize = 8;

/// What ends an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens at most.
    pub most: usize,
    /// Tokens that end the answer and are no part of it, beside `<eod>`.
    pub stop_tokens: Vec<u32>,
    /// Texts that end the answer and are not shown.
    pub stop_texts: Vec<String>,
    /// Goes on after `<eod>`.
    pub ignore_eod: bool,
    /// What happens when the context is full: an error, or, with `Some(keep)`, the first `keep` tokens of the timeline are kept, the
    /// older half of the others is dropped, and the rest is run again.
    pub shift: Option<usize>,
}

impl Limits {
    /// Up to `most` tokens, or until `<eod>`.
    pub fn tokens(most: usize) -> Self {
        Self { most, stop_tokens: Vec::new(), stop_texts: Vec::new(), ignore_eod: false, shift: None }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it with `<eod>` or another stop token.
    Stop,
    /// A stop text came.
    StopText,
    /// As many tokens as were asked for.
    Length,
    /// The caller broke off, or used the session's [`Cancel`](super::Cancel) while the answer was running.
    Cancelled,
}

/// A token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// It ends the answer, and is no part of it.
    pub ends: bool,
    /// How likely it was, where that was asked for.
    pub score: Option<Score>,
}

impl Session {
    /// Continues the timeline. `show` hears every token with the text that can be shown now: none while a character is incomplete
    /// or might begin a stop text. At the end it may hear `None` with the text that was held back. It can break off.
    ///
    /// Every token that `show` heard belongs to the timeline, those of a stop text too; a stop token does not. The penalties
    /// of `sampler` follow the timeline.
    ///
    /// # Errors
    /// As [`Session::sync`]; [`Error::ContextFull`] when the context ends before the answer does, and no shift is asked for. The
    /// timeline keeps what `show` heard.
    pub fn generate(
        &mut self,
        sampler: &mut Sampler,
        limits: &Limits,
        mut show: impl FnMut(Option<u32>, &str) -> ControlFlow<()>,
    ) -> Result<Finish> {
        self.generate_scored(sampler, limits, None, |token, text| match token {
            Some(token) if token.ends => ControlFlow::Continue(()),
            token => show(token.map(|token| token.id), text),
        })
    }

    /// As [`Session::generate`]; `show` also hears of a stop token, and, with `Some(top)`, how likely every token was and which `top` tokens were the
    /// likeliest in its place.
    ///
    /// # Errors
    /// As [`Session::generate`].
    pub fn generate_scored(
        &mut self,
        sampler: &mut Sampler,
        limits: &Limits,
        top: Option<usize>,
        mut show: impl FnMut(Option<Token>, &str) -> ControlFlow<()>,
    ) -> Result<Finish> {
        let _call = self.state.cancel.begin();
        let engine = self.engine.clone();
        let tokenizer = engine.tokenizer();
        let eod = tokenizer.eod().filter(|_| !limits.ignore_eod);
        let mut stream = tokenizer.stream();
        let context = self.tokens.len().saturating_sub(CONTEXT_OF_TEXT);
        for &token in &self.tokens[context..] {
            stream.push(token);
        }
        let mut stop_text = StopText::new(&limits.stop_texts);
        sampler.follow(&self.tokens);

        let mut chosen = 0;
        let finish = loop {
            if chosen == limits.most {
                break Ok(Finish::Length);
            }
            let (token, score) = match self.next(sampler, limits.shift, top) {
                Ok(next) => next,
                Err(Error::Cancelled) => break Ok(Finish::Cancelled),
                Err(error) => break Err(error),
            };
            if eod == Some(token) || limits.stop_tokens.contains(&token) {
                // It is the end already.
                let _ = show(Some(Token { id: token, ends: true, score }), "");
                break Ok(Finish::Stop);
            }
            self.tokens.push(token);
            self.logits = None;
            chosen += 1;
            let (text, stopped) = stop_text.push(&stream.push(token));
            let flow = show(Some(Token { id: token, ends: false, score }), &text);
            if stopped {
                return Ok(Finish::StopText);
            }
            if flow.is_break() {
                break Ok(Finish::Cancelled);
            }
        };
        // What is held back belongs to the answer, or, when there is none, to the prompt.
        if chosen > 0 {
            let (text, stopped) = stop_text.push(&stream.finish());
            let held = if stopped { String::new() } else { stop_text.finish() };
            if !(text.is_empty() && held.is_empty()) {
                // It is the end already: there is nothing to break off.
                let _ = show(None, &(text + &held));
            }
            if stopped {
                return finish.map(|_| Finish::StopText);
            }
        }
        finish
    }

    /// Chooses the next token, behind the last, for which room is made where that is asked for.
    fn next(
        &mut self,
        sampler: &mut Sampler,
        shift: Option<usize>,
        top: Option<usize>,
    ) -> Result<(u32, Option<Score>)> {
        if self.state.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if let Some(keep) = shift
            && self.tokens.len() > self.capacity()
        {
            self.shift(keep)?;
        }
        let Some(top) = top else { return Ok((self.sample(sampler)?, None)) };
        let logits = self.logits()?;
        let token = sampler.sample(logits);
        Ok((token, Some(Score::of(logits, token, top))))
    }

    /// Keeps the first `keep` tokens, drops the older half of the others, and runs the rest again.
    fn shift(&mut self, keep: usize) -> Result<()> {
        let others = self.tokens.len().saturating_sub(keep);
        if others < 2 {
            return Err(Error::ContextFull { capacity: self.capacity(), wanted: self.tokens.len() });
        }
        let newer = keep + others.div_ceil(2);
        tracing::info!("the context is full: {} tokens are dropped", newer - keep);
        let kept = [&self.tokens[..keep], &self.tokens[newer..]].concat();
        self.sync(&kept, |_| ControlFlow::Continue(())).map(|_| ())
    }
}
