//! Tokens in, tokens out: an [`Engine`] is a model with its tokenizer, a [`Session`] one timeline on it.

mod ahead;
mod company;
mod draft;
mod engine;
pub mod exactness;
mod experts;
mod generate;
mod lent;
#[cfg(all(test, loom))]
mod models;
mod passes;
mod restore;
mod runner;
mod save;
mod schedule;
mod score;
mod scored;
pub mod stats;
mod sync;
mod work;

use std::{ops::ControlFlow, sync::Arc};

use crate::{
    error::{Error, Result},
    model::{KvType, Output, State, Want, forward::no_tokens},
    pager::Mode,
    sampler::Sampler,
};
use draft::Drafter;

pub use crate::model::{BATCH, Cancel};
pub use draft::{Drafted, Drafts, Guesses, Hint};
pub use engine::Engine;
pub use experts::{Experts, Place};
pub use generate::{Finish, Limits, Token};
use lent::Lent;
pub use restore::{Restored, Size};
pub use score::Score;
pub use stats::Counts;

/// One timeline of tokens. Any number of sessions share an engine, each used by one thread at a time. What sessions on several threads want at the same
/// time runs in the same passes of the model, and each gets the bits that it would get alone.
///
/// The model runs a token when something is asked for that depends on it: the last token of an answer is not run before the
/// session goes on.
#[derive(Debug)]
pub struct Session {
    engine: Arc<Engine>,
    /// Who this is to the engine's loop.
    number: u64,
    state: Lent,
    /// The timeline; the model has run the first `state.position()`.
    tokens: Vec<u32>,
    /// Of the last token, if they are computed.
    logits: Option<Output>,
    /// Where other timelines will part from this one.
    returns: Vec<usize>,
    draft: Drafter,
    /// What the program wants to find again in a saved session: `yuan chat` keeps the messages here.
    pub note: String,
}

/// What [`Session::sync`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    /// Tokens whose state was there already.
    pub reused: usize,
    /// Those of them that came with pages of other sessions, or of earlier timelines of this one.
    pub shared: usize,
    /// Tokens that the model ran.
    pub computed: usize,
}

impl Session {
    /// An empty timeline for `context` tokens at most. It takes memory as it fills, out of what the model has for all sessions.
    ///
    /// # Errors
    /// [`Error::Memory`] for a context that cannot be addressed; [`Error::Argument`] for one that is larger than any.
    pub fn new(engine: Arc<Engine>, context: usize, kv: KvType) -> Result<Self> {
        let state = engine.model().state(context, kv)?;
        let (number, state) = (engine.passes().join(), Lent::new(state));
        let streamed = engine.model().pager().mode() == Mode::Streamed;
        Ok(Self {
            engine,
            number,
            state,
            tokens: Vec::new(),
            logits: None,
            returns: Vec::new(),
            draft: Drafter::new(streamed),
            note: String::new(),
        })
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The timeline so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Number of tokens of the timeline.
    pub fn position(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens that there is room for.
    pub fn capacity(&self) -> usize {
        self.state.capacity()
    }

    /// Makes room for at least `context` tokens.
    ///
    /// # Errors
    /// As [`Session::new`]; the room is then as before.
    pub fn reserve(&mut self, context: usize) -> Result<()> {
        if context > self.capacity() { self.state.resize(context) } else { Ok(()) }
    }

    /// The type of the key-value cache.
    pub fn kv_type(&self) -> KvType {
        self.state.kv_type()
    }

    /// Stops this session's calls from another thread: the one that runs when it is used, between two tokens, batches or layers. That call
    /// returns [`Error::Cancelled`], or [`Finish::Cancelled`] from [`Session::generate`], and the session can go on from there. Where no call
    /// is running, nothing happens.
    pub fn cancel_token(&self) -> Cancel {
        self.state.cancel.clone()
    }

    /// Whether the next tokens of answers are drafted: by default as they pay. Answers are the same, token by token and bit by bit; only the time that they take is not.
    pub fn set_drafts(&mut self, drafts: Drafts) {
        self.draft.drafts = drafts;
    }

    /// Drafts from this text, too, in place of an earlier one.
    pub fn draft_from(&mut self, hint: Hint) {
        self.draft.hint = hint;
    }

    /// Drafts what `guesses` says in place of what it finds itself: it is given the timeline, and how many tokens at most are wanted. Where it is wrong, an answer takes longer, and
    /// is no other one.
    pub fn draft_by(&mut self, guesses: Option<Guesses>) {
        self.draft.set_guesses(guesses);
    }

    /// What was drafted so far.
    pub fn drafted(&self) -> Drafted {
        self.draft.done
    }

    /// Makes the timeline these `tokens`, and runs them: what the timeline has in common with them at its beginning is kept, or
    /// as much of it as there is a snapshot for. Where pages of other sessions reach farther, only the tokens behind those are run. `progress` hears how many tokens of the list are done after each batch, and can
    /// break off.
    ///
    /// The state is the same, bit for bit, as if the timeline had never been another one.
    ///
    /// # Errors
    /// [`Error::ContextFull`] or [`Error::Argument`] (an id outside the vocabulary), and nothing has changed;
    /// [`Error::Cancelled`], [`Error::Memory`] when the sessions of the model have filled its memory for keys and values, and those of the pager:
    /// the timeline then is the tokens that were run.
    pub fn sync(&mut self, tokens: &[u32], progress: impl FnMut(usize) -> ControlFlow<()>) -> Result<Synced> {
        self.check(tokens)?;
        let _call = self.state.cancel.begin();
        let (own, mut shared) = self.reuse(tokens);
        if own + shared < tokens.len() {
            self.logits = None;
        }
        self.tokens.extend_from_slice(&tokens[own + shared..]);
        // Not at every step of a program that runs token by token: the last marks would then be its last tokens.
        let is_prompt = tokens.len() - own - shared > 1;
        if is_prompt {
            // A chat closes the prompt with a token that the next prompt does not have in this place.
            self.state.mark_at(self.returns.iter().copied().chain([tokens.len() - 1]));
        }
        match self.run(Want::Nothing, progress) {
            Ok(found) => shared += found,
            Err(error) => {
                self.tokens.truncate(self.state.position());
                return Err(error);
            }
        }
        if is_prompt {
            self.state.mark();
        }
        let reused = own + shared;
        Ok(Synced { reused, shared, computed: tokens.len() - reused })
    }

    /// Keeps what it takes to go back to these places, fifteen at most, as [`Session::sync`] and [`Session::score`] pass them: of another list of tokens
    /// that is the same up to there, nothing before it is run again (by [`Session::score`] its last token, whose logits are wanted). It holds until it is said
    /// anew.
    pub fn return_to(&mut self, places: &[usize]) {
        self.returns = places.to_vec();
    }

    /// Makes the timeline as many of the first of these `tokens` as need not be run: what it has in common with them, as far as there is a snapshot, or
    /// what other sessions have left, where that reaches farther. Returns their number. [`Session::sync`] with the same tokens runs the rest.
    ///
    /// # Errors
    /// As [`Session::sync`] for lists that are impossible; nothing has changed then.
    pub fn adopt(&mut self, tokens: &[u32]) -> Result<usize> {
        self.check(tokens)?;
        self.reuse(tokens);
        Ok(self.position())
    }

    /// Drops what sessions have left of the beginning of `tokens`, as far as none has it and nothing else goes on from it: it is not found any more.
    pub fn forget(&self, tokens: &[u32]) {
        self.state.erase(tokens);
    }

    /// [`Session::adopt`]: how many of the tokens are the session's own, and how many behind them came with pages of others.
    fn reuse(&mut self, tokens: &[u32]) -> (usize, usize) {
        let common = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let own = self.state.rewind(common);
        let shared = self.state.adopt(tokens);
        // Logits are of the timeline's last token.
        if own + shared != self.tokens.len() || common < self.tokens.len() {
            self.logits = None;
        }
        self.tokens.clear();
        self.tokens.extend_from_slice(&tokens[..own + shared]);
        (own, shared)
    }

    /// Adds `tokens` to the timeline and runs them; `progress` as in [`Session::sync`], counting these tokens only.
    ///
    /// # Errors
    /// As [`Session::sync`]; [`Error::Argument`] for no tokens.
    pub fn extend(
        &mut self,
        tokens: &[u32],
        mut progress: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<()> {
        if tokens.is_empty() {
            return Err(no_tokens());
        }
        let before = self.tokens.len();
        let all = [&self.tokens, tokens].concat();
        self.sync(&all, |done| progress(done.saturating_sub(before)))?;
        Ok(())
    }

    /// The logits of the last token, \[V\].
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty timeline; as [`Session::sync`], when the last tokens have not been run yet.
    pub fn logits(&mut self) -> Result<&[f32]> {
        self.settle(Want::Last)?;
        let logits = match self.logits.take() {
            Some(Output::Rows(logits)) => logits,
            // The tokens were run before somebody asked for all logits.
            _ => self.engine.passes().logits(self.number, self.state.hidden(), 1)?,
        };
        match self.logits.insert(Output::Rows(logits)) {
            Output::Rows(logits) => Ok(logits),
            Output::Nothing | Output::Best(_) => unreachable!("a row was put there"),
        }
    }

    /// Chooses the token behind the last by its logits. It does not become a part of the timeline, and `sampler` follows its own choices only:
    /// [`Sampler::follow`] tells it of others.
    ///
    /// # Errors
    /// As [`Session::logits`].
    pub fn sample(&mut self, sampler: &mut Sampler) -> Result<u32> {
        let Some(n) = sampler.looks_at() else { return Ok(sampler.sample(self.logits()?)) };
        self.settle(Want::Best(n))?;
        match &self.logits {
            Some(Output::Best(best)) if best.len() >= n => Ok(sampler.sample_best(best)),
            _ => Ok(sampler.sample(self.logits()?)),
        }
    }

    /// The last token's hidden state behind the final norm, \[H\]: an embedding of the timeline.
    ///
    /// # Errors
    /// As [`Session::logits`].
    pub fn embedding(&mut self) -> Result<&[f32]> {
        self.settle(Want::Nothing)?;
        Ok(self.state.hidden())
    }

    fn check(&self, tokens: &[u32]) -> Result<()> {
        if tokens.len() > self.capacity() {
            return Err(Error::ContextFull { capacity: self.capacity(), wanted: tokens.len() });
        }
        self.engine.model().check_vocabulary(tokens)
    }

    /// Runs what has not been run of the timeline, which is not empty.
    fn settle(&mut self, want: Want) -> Result<()> {
        if self.tokens.is_empty() {
            return Err(no_tokens());
        }
        if self.tokens.len() > self.capacity() {
            return Err(Error::ContextFull { capacity: self.capacity(), wanted: self.tokens.len() });
        }
        self.run(want, |_| ControlFlow::Continue(())).map(|_| ())
    }

    /// Runs what has not been run of the timeline, and keeps the logits of its last token where they are needed. Returns how many tokens were
    /// not run because another session had come to them first.
    fn run(&mut self, want: Want, mut progress: impl FnMut(usize) -> ControlFlow<()>) -> Result<usize> {
        let _call = self.state.cancel.begin();
        let mut found = 0;
        while self.state.position() < self.tokens.len() {
            let rest = &self.tokens[self.state.position()..];
            let batch = &rest[..rest.len().min(self.engine.model().batch())];
            let want = if batch.len() == rest.len() { want } else { Want::Nothing };
            drop_logits(&mut self.logits, &mut self.state);
            let passes = self.engine.passes();
            let single = batch.len() == 1;
            let (output, pass) = passes.run(self.number, &mut self.state, (batch.to_vec(), 0), want)?;
            self.logits = Some(output);
            if single {
                self.draft.ran(0, &pass);
            }
            self.state.share(&self.tokens);
            let done = self.state.position();
            if progress(done).is_break() && done < self.tokens.len() {
                return Err(Error::Cancelled);
            }
            // Another session may have run the same prompt meanwhile.
            found += self.state.adopt(&self.tokens);
        }
        Ok(found)
    }
}

/// Drops the logits of a token that others come behind; the next ones lie in their memory.
fn drop_logits(logits: &mut Option<Output>, state: &mut State) {
    if let Some(Output::Rows(rows)) = logits.take() {
        state.reuse(rows);
    }
}

impl Drop for Session {
    /// What it has computed may be the beginning of what another session is asked for.
    fn drop(&mut self) {
        if let Some(state) = self.state.at_home() {
            state.leave(&self.tokens);
        }
    }
}
