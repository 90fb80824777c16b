//! What sessions hand in to the loop, and what comes back: always, whatever happens to it.

use std::time::{Duration, Instant};

use super::{
    lent::Lent,
    schedule::{Share, Waiting},
    sync::mpsc::{Receiver, SyncSender},
};
use crate::{
    error::{Error, Result},
    model::{Output, Sequence, Want},
};

/// What a session wants, with what it lends.
pub(super) struct Work {
    pub session: u64,
    pub task: Task,
    pub since: Instant,
    /// Where it goes back; taken when it is answered.
    pub back: Option<SyncSender<Answer>>,
}

pub(super) enum Task {
    /// Some tokens behind a state, of which the last so many are drafts.
    Run { state: Lent, tokens: Vec<u32>, drafted: usize, want: Want },
    /// The logits of so many hidden states.
    Head { hidden: Vec<f32>, rows: usize },
}

pub(super) struct Answer {
    /// Empty where none was lent.
    pub state: Lent,
    pub result: Result<Output>,
    pub pass: Pass,
}

/// The pass that work was in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pass {
    /// Sequences in it.
    pub sequences: usize,
    /// How long it took, where it was one of the next tokens of answers and nothing else.
    pub took: Option<Duration>,
}

impl Work {
    /// What waits to be run; no tokens for hidden states.
    pub fn waiting(&self) -> Waiting {
        match &self.task {
            Task::Run { tokens, drafted, .. } => {
                Waiting { tokens: tokens.len() - drafted, drafted: *drafted }
            }
            Task::Head { .. } => Waiting::default(),
        }
    }

    /// Whether hidden states wait for their logits.
    pub fn is_head(&self) -> bool {
        matches!(self.task, Task::Head { .. })
    }

    /// Hidden states whose logits are wanted.
    pub fn rows(&self) -> usize {
        match &self.task {
            Task::Run { .. } => 0,
            Task::Head { rows, .. } => *rows,
        }
    }

    /// The hidden states whose logits are wanted.
    pub fn hidden(&self) -> &[f32] {
        match &self.task {
            Task::Run { .. } => &[],
            Task::Head { hidden, .. } => hidden,
        }
    }

    /// Its part of a pass.
    pub fn sequence<'w>((work, share): (&'w mut Self, &Share)) -> Option<Sequence<'w>> {
        match &mut work.task {
            Task::Run { state, tokens, drafted, want } => {
                let certain = tokens.len() - *drafted;
                let drafted = share.tokens.saturating_sub(certain);
                let want = match *want {
                    Want::Hidden => Want::Hidden,
                    _ if share.tokens < certain => Want::Nothing,
                    Want::Tail(_) => Want::Tail(1 + drafted),
                    want => want,
                };
                Some(Sequence { tokens: &tokens[..share.tokens], drafted, state: &mut *state, want })
            }
            Task::Head { .. } => None,
        }
    }

    pub fn is_cancelled(&self) -> bool {
        matches!(&self.task, Task::Run { state, .. } if state.cancel.is_cancelled())
    }

    /// Gives back what was lent, with the result and the pass that it is of.
    pub fn answer(mut self, result: Result<Output>, pass: Pass) {
        self.give_back(result, pass);
    }

    fn give_back(&mut self, result: Result<Output>, pass: Pass) {
        if let Some(back) = self.back.take() {
            let state = match &mut self.task {
                Task::Run { state, .. } => state.take(),
                Task::Head { .. } => Lent::default(),
            };
            // Whoever lent it waits for it.
            let _ = back.send(Answer { state, result, pass });
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.give_back(Err(Error::Internal("the engine's loop has ended".into())), Pass::default());
    }
}

/// Waits for the answer to work that was handed in.
pub(super) fn wait(answer: &Receiver<Answer>) -> Answer {
    answer.recv().expect("work is answered before it ends")
}
