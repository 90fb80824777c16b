//! Answers: tokens chosen one after another, shown as text, until something ends them.

use std::{collections::VecDeque, ops::ControlFlow};

use super::{Score, Session, ahead::Ahead};
use crate::{
    error::{Error, Result},
    grammar::{Constraint, Guide},
    model::forward::no_tokens,
    sampler::{Sampler, StopText},
};

/// Tokens before an answer that decide how its text begins: more than the bytes of one character.
const CONTEXT_OF_TEXT: usize = 8;

/// What ends an answer.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Tokens at most.
    pub most: usize,
    /// Tokens that end the answer and are no part of it, beside those of the vocabulary (`<eod>`).
    pub stop_tokens: Vec<u32>,
    /// Texts that end the answer and are not shown.
    pub stop_texts: Vec<String>,
    /// Goes on after `<eod>`, and after `<|end_of_sentence|>` of Yuan 3.0.
    pub ignore_eod: bool,
    /// What happens when the context is full: an error, or, with `Some(keep)`, the first `keep` tokens of the timeline are kept, the
    /// older half of the others is dropped, and the rest is run again.
    pub shift: Option<usize>,
    /// What the answer has to be ([`Engine::constraint`](super::Engine::constraint)): other tokens are not chosen, `<eod>` and stop tokens only where
    /// it is complete, and it ends when nothing can follow.
    pub constraint: Option<Constraint>,
}

impl Limits {
    /// Up to `most` tokens, or until `<eod>`.
    pub fn tokens(most: usize) -> Self {
        Self {
            most,
            stop_tokens: Vec::new(),
            stop_texts: Vec::new(),
            ignore_eod: false,
            shift: None,
            constraint: None,
        }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it with `<eod>`, `<|end_of_sentence|>` or another stop token, or it is all that its grammar has.
    Stop,
    /// The stop text in this place of the list came.
    StopText(usize),
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
    /// The grammar had nothing else in its place: it was not chosen.
    pub forced: bool,
    /// How likely it was, where that was asked for.
    pub score: Option<Score>,
}

/// What decides on the tokens of an answer beside their logits, and what is known of those to come.
pub(super) struct Course {
    pub guide: Option<Guide>,
    /// What the guide says will follow in any case.
    pub forced: VecDeque<u32>,
    /// Tokens that end the answer.
    pub ends: Vec<u32>,
    pub ahead: Ahead,
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
        show: impl FnMut(Option<Token>, &str) -> ControlFlow<()>,
    ) -> Result<Finish> {
        let finish = self.answer(sampler, limits, top, show);
        self.state.refuse();
        finish
    }

    /// [`Session::generate_scored`]; drafts may be left behind the state.
    fn answer(
        &mut self,
        sampler: &mut Sampler,
        limits: &Limits,
        top: Option<usize>,
        mut show: impl FnMut(Option<Token>, &str) -> ControlFlow<()>,
    ) -> Result<Finish> {
        let _call = self.state.cancel.begin();
        let engine = self.engine.clone();
        let tokenizer = engine.tokenizer();
        let ends = tokenizer.ends().filter(|_| !limits.ignore_eod);
        let mut stream = tokenizer.stream();
        let context = self.tokens.len().saturating_sub(CONTEXT_OF_TEXT);
        for &token in &self.tokens[context..] {
            stream.push(token);
        }
        let mut stop_text = StopText::new(&limits.stop_texts);
        sampler.follow(&self.tokens);

        let guide = limits.constraint.as_ref().map(|c| c.guide(stream.at_start())).transpose()?;
        let ends = ends.chain(limits.stop_tokens.iter().copied()).collect();
        let mut course = Course { guide, forced: VecDeque::new(), ends, ahead: Ahead::default() };
        self.draft.begin(&self.tokens, true);

        let mut chosen = 0;
        let finish = loop {
            if course.guide.as_ref().is_some_and(Guide::is_complete) {
                break Ok(Finish::Stop);
            }
            if chosen == limits.most {
                break Ok(Finish::Length);
            }
            let next = match self.next(sampler, &mut course, limits, limits.most - chosen, top) {
                Ok(next) => next,
                Err(Error::Cancelled) => break Ok(Finish::Cancelled),
                Err(error) => break Err(error),
            };
            let token = next.id;
            if next.ends {
                // It is the end already.
                let _ = show(Some(next), "");
                break Ok(Finish::Stop);
            }
            self.push(token, &mut course.ahead);
            chosen += 1;
            let (text, stopped) = stop_text.push(&stream.push(token));
            let flow = show(Some(next), &text);
            if let Some(place) = stopped {
                return Ok(Finish::StopText(place));
            }
            if flow.is_break() {
                break Ok(Finish::Cancelled);
            }
        };
        // What is held back belongs to the answer, or, when there is none, to the prompt.
        if chosen > 0 {
            let (text, stopped) = stop_text.push(&stream.finish());
            let held = if stopped.is_some() { String::new() } else { stop_text.finish() };
            if !(text.is_empty() && held.is_empty()) {
                // It is the end already: there is nothing to break off.
                let _ = show(None, &(text + &held));
            }
            if let Some(place) = stopped {
                return finish.map(|_| Finish::StopText(place));
            }
        }
        finish
    }

    /// A token of the answer.
    fn push(&mut self, token: u32, ahead: &mut Ahead) {
        self.tokens.push(token);
        self.logits = None;
        self.draft.chosen(token);
        if ahead.accepts(token) {
            self.draft.done.accepted += 1;
            self.engine.passes().count_accepted();
        }
    }

    /// Chooses the next of up to `left` tokens, behind the last, for which room is made where that is asked for. What a grammar forces is not chosen, and so what is
    /// before it need not be run yet.
    fn next(
        &mut self,
        sampler: &mut Sampler,
        course: &mut Course,
        limits: &Limits,
        left: usize,
        top: Option<usize>,
    ) -> Result<Token> {
        if self.state.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if self.tokens.is_empty() {
            return Err(no_tokens());
        }
        if self.tokens.len() > self.capacity() {
            match limits.shift {
                Some(keep) => {
                    course.ahead = Ahead::default();
                    self.shift(keep)?;
                    self.draft.begin(&self.tokens, false);
                }
                None => self.check(&self.tokens)?,
            }
        }
        if let Some(guide) = course.guide.as_mut().filter(|_| course.forced.is_empty()) {
            course.forced.extend(guide.forced());
        }
        let forced = course.forced.pop_front();
        if forced.is_none() || top.is_some() {
            self.look_ahead(course, forced, left)?;
        }
        let id = match (forced, &mut course.guide) {
            (Some(id), _) => {
                sampler.accept(id);
                id
            }
            (None, Some(guide)) => {
                let mut logits = self.logits()?.to_vec();
                guide.mask(&mut logits, &course.ends)?;
                let id = sampler.sample(&logits);
                if logits.get(id as usize).is_none_or(|logit| !logit.is_finite()) {
                    return Err(Error::Argument(
                        "the logit biases forbid every token that the grammar allows; take some away".into(),
                    ));
                }
                id
            }
            (None, None) if top.is_some() => sampler.sample(self.logits()?),
            (None, None) => self.sample(sampler)?,
        };
        let score = top.map(|top| Ok::<_, Error>(Score::of(self.logits()?, id, top))).transpose()?;
        let ends = course.ends.contains(&id);
        if let Some(guide) = course.guide.as_mut().filter(|_| !ends) {
            guide.push(id)?;
        }
        Ok(Token { id, ends, forced: forced.is_some(), score })
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
