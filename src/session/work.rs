//! What sessions hand in to the loop, and what comes back: always, whatever happens to it.

use std::time::Instant;

use super::{
    lent::Lent,
    schedule::Share,
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
    /// Some tokens behind a state.
    Run { state: Lent, tokens: Vec<u32>, want: Want },
    /// The logits of so many hidden states.
    Head { hidden: Vec<f32>, rows: usize },
}

pub(super) struct Answer {
    /// Empty where none was lent.
    pub state: Lent,
    pub result: Result<Output>,
}

impl Work {
    /// Tokens to run; 0 for hidden states.
    pub fn tokens(&self) -> usize {
        match &self.task {
            Task::Run { tokens, .. } => tokens.len(),
            Task::Head { .. } => 0,
        }
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
            Task::Run { state, tokens, want } => {
                let whole = share.tokens == tokens.len() || *want == Want::Hidden;
                let want = if whole { *want } else { Want::Nothing };
                Some(Sequence { tokens: &tokens[..share.tokens], state: &mut *state, want })
            }
            Task::Head { .. } => None,
        }
    }

    pub fn is_cancelled(&self) -> bool {
        matches!(&self.task, Task::Run { state, .. } if state.cancel.is_cancelled())
    }

    pub fn answer(mut self, result: Result<Output>) {
        self.give_back(result);
    }

    fn give_back(&mut self, result: Result<Output>) {
        if let Some(back) = self.back.take() {
            let state = match &mut self.task {
                Task::Run { state, .. } => state.take(),
                Task::Head { .. } => Lent::default(),
            };
            // Whoever lent it waits for it.
            let _ = back.send(Answer { state, result });
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.give_back(Err(Error::Internal("the engine's loop has ended".into())));
    }
}

/// Waits for the answer to work that was handed in.
pub(super) fn wait(answer: &Receiver<Answer>) -> Answer {
    answer.recv().expect("work is answered before it ends")
}
