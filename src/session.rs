//! Tokens in, tokens out: one sequence on a shared model.

use std::{ops::ControlFlow, sync::Arc};

pub use crate::model::BATCH;
use crate::{
    error::{Error, Result},
    model::{KvType, Model, State, Want},
    sampler::Sampler,
};

/// One sequence.
#[derive(Debug)]
pub struct Session {
    model: Arc<Model>,
    state: State,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it with a stop token.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// The caller broke off.
    Cancelled,
}

impl Session {
    /// An empty sequence with room for `context` tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] for a context that cannot be addressed.
    pub fn new(model: Arc<Model>, context: usize, kv: KvType) -> Result<Self> {
        let state = State::new(model.config(), context, kv)?;
        Ok(Self { model, state })
    }

    /// Tokens that the sequence holds.
    pub fn position(&self) -> usize {
        self.state.position()
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Runs `tokens`, and returns the logits of the last one. `progress` hears how many are done after each batch and can
    /// break off, which leaves the sequence at that point.
    ///
    /// # Errors
    /// As [`Model::forward`]; [`Error::Cancelled`] when `progress` breaks off.
    pub fn extend(
        &mut self,
        tokens: &[u32],
        mut progress: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<f32>> {
        let wanted = self.position() + tokens.len();
        if wanted > self.state.capacity() {
            return Err(Error::ContextFull { capacity: self.state.capacity(), wanted });
        }
        let (mut logits, mut done) = (Vec::new(), 0);
        for batch in tokens.chunks(self.model.batch()) {
            let want = if done + batch.len() == tokens.len() { Want::Last } else { Want::Nothing };
            logits = self.model.forward(batch, &mut self.state, want)?;
            done += batch.len();
            if progress(done).is_break() {
                return Err(Error::Cancelled);
            }
        }
        if logits.is_empty() {
            return Err(Error::Argument("there are no tokens to run; give a prompt".into()));
        }
        Ok(logits)
    }

    /// Chooses up to `most` tokens after `logits`, the answer to the tokens so far. Each is shown to `on_token` before
    /// it is run; one of `stops` ends the answer and is not shown.
    ///
    /// # Errors
    /// As [`Model::forward`]; [`Error::ContextFull`] when the context ends before the answer does.
    pub fn generate(
        &mut self,
        mut logits: Vec<f32>,
        most: usize,
        stops: &[u32],
        sampler: &mut Sampler,
        mut on_token: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Finish> {
        for i in 0..most {
            let token = sampler.sample(&logits);
            if stops.contains(&token) {
                return Ok(Finish::Stop);
            }
            if on_token(token).is_break() {
                return Ok(Finish::Cancelled);
            }
            if i + 1 < most {
                logits = self.model.forward(&[token], &mut self.state, Want::Last)?;
            }
        }
        Ok(Finish::Length)
    }
}
