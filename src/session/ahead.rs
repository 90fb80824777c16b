//! What passes have run ahead of an answer: drafts, each with the logits behind it.
//!
//! A draft becomes a part of the session's state when it was chosen and something is asked for that depends on it, as if it had been run then. The others are dropped, and
//! leave no trace.

use std::collections::VecDeque;

use super::{Session, generate::Course};
use crate::{
    error::{Error, Result},
    limits::MOST_DRAFTED,
    model::{Output, Want},
    session::Drafts,
};

/// The drafts that were run behind a session's state.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Each with the logits behind it, \[V\].
    rows: VecDeque<(u32, Vec<f32>)>,
    /// How many of the first were chosen.
    accepted: usize,
    /// A pass with drafts has failed, and may not fail without them.
    off: bool,
}

impl Ahead {
    /// This token comes next. Says whether it was drafted; other drafts in its place go.
    pub fn accepts(&mut self, token: u32) -> bool {
        let accepted = self.rows.get(self.accepted).is_some_and(|(draft, _)| *draft == token);
        if accepted {
            self.accepted += 1;
        } else {
            self.rows.truncate(self.accepted);
        }
        accepted
    }
}

impl Session {
    /// Runs what has not been run of the timeline, with drafts behind it where there are some; what was drafted and chosen is there already. Up to `left` tokens
    /// will be chosen yet, the first of which is `forced`, or is not.
    ///
    /// # Errors
    /// [`Error::Cancelled`]. Whatever else fails, is done without drafts by whoever asks for the logits.
    pub(super) fn look_ahead(&mut self, course: &mut Course, forced: Option<u32>, left: usize) -> Result<()> {
        self.catch_up(&mut course.ahead);
        let (waiting, room) =
            (self.tokens.len() - self.state.position(), self.capacity() - self.tokens.len());
        if waiting == 0 || course.ahead.off || self.draft.drafts == Drafts::Off {
            return Ok(());
        }
        let batch = self.engine.model().batch().saturating_sub(waiting);
        let most = MOST_DRAFTED.min(left.saturating_sub(1)).min(room).min(batch);
        let mut draft: Vec<u32> = match forced {
            // They will be chosen: their logits are wanted for their likelihoods only.
            Some(first) => [first].into_iter().chain(course.forced.iter().copied()).take(most).collect(),
            None => self.draft.propose(&self.tokens, most),
        };
        let vocab = self.engine.model().config().vocab;
        let possible = |id: &u32| (*id as usize) < vocab && !course.ends.contains(id);
        draft.truncate(draft.iter().take_while(|id| possible(id)).count());
        if let Some(guide) = course.guide.as_mut().filter(|_| forced.is_none() && !draft.is_empty()) {
            draft.truncate(guide.allows(&draft));
        }
        if draft.is_empty() {
            return Ok(());
        }
        match self.run_ahead(&draft) {
            Ok(rows) => course.ahead.rows = rows,
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            Err(error) => {
                tracing::debug!("the rest of the answer is not drafted: {error}");
                course.ahead.off = true;
            }
        }
        Ok(())
    }

    /// Goes on with the drafts that were chosen.
    fn catch_up(&mut self, ahead: &mut Ahead) {
        for (_, logits) in ahead.rows.drain(..ahead.accepted) {
            if !self.state.take_up() {
                break;
            }
            self.engine.model().count_taken_up();
            self.logits = Some(Output::Rows(logits));
        }
        if ahead.accepted > 0 {
            self.state.share(&self.tokens);
        }
        // Behind tokens that were never drafted its logits are not the last token's.
        if self.state.position() < self.tokens.len() {
            self.logits = None;
            ahead.rows.clear();
            self.state.refuse();
        }
        ahead.accepted = 0;
    }

    /// Runs what has not been run of the timeline, and a draft. Keeps the logits of the last token, and returns those of the drafts that were run.
    fn run_ahead(&mut self, draft: &[u32]) -> Result<VecDeque<(u32, Vec<f32>)>> {
        let engine = self.engine.clone();
        let vocab = engine.model().config().vocab;
        loop {
            let waiting = &self.tokens[self.state.position()..];
            let (alone, tokens) = (waiting.len() == 1, [waiting, draft].concat());
            self.logits = None;
            let (tokens, want) = ((tokens, draft.len()), Want::Tail(1 + draft.len()));
            let (output, pass) = engine.passes().run(self.number, &mut self.state, tokens, want)?;
            self.state.share(&self.tokens);
            if self.state.position() < self.tokens.len() {
                // Others were in the pass, too: a piece of it was run.
                continue;
            }
            let all = output.into_rows();
            let mut rows = all.chunks_exact(vocab).map(<[f32]>::to_vec);
            self.logits = rows.next().map(Output::Rows);
            let rows: VecDeque<_> = draft.iter().copied().zip(rows).collect();
            self.draft.done.tokens += rows.len() as u64;
            if alone {
                self.draft.ran(rows.len(), &pass);
            }
            return Ok(rows);
        }
    }
}
