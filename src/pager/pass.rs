//! One call of the model, as the pager sees it.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    thread::ThreadId,
};

use super::{Backing, Pager, Request, slot::lock};
use crate::error::{Error, Result};

/// One call of the model, from its first layer to its last.
pub struct Pass<'p> {
    pub(super) pager: &'p Pager,
    pub(super) _turn: Option<TurnGuard<'p>>,
}

impl<'p> Pass<'p> {
    /// A layer wants the experts `chosen` by its tokens, `used` a token, in the order of the tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] for an expert that there is not.
    pub fn request(&self, layer: usize, chosen: &[usize], used: usize) -> Result<Request<'p>> {
        chosen.iter().try_for_each(|&expert| self.pager.index(layer, expert).map(|_| ()))?;
        Ok(Request::new(self.pager, layer, chosen, used))
    }

    /// A layer will probably want these experts: where they are streamed they are read as long as nothing is asked for. To be called
    /// when the layer before has made its request.
    ///
    /// # Errors
    /// As [`Pass::request`].
    pub fn guess(&self, layer: usize, experts: &[usize]) -> Result<()> {
        let Backing::Streamed(streamed) = &self.pager.backing else { return Ok(()) };
        for &expert in experts {
            self.pager.index(layer, expert)?;
            if !self.pager.guess(streamed, layer, expert) {
                break;
            }
        }
        Ok(())
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Backing::Streamed(streamed) = &self.pager.backing {
            let left = std::mem::take(&mut lock(&streamed.guesses).slots);
            left.iter().for_each(|(_, slot)| slot.cancel());
        }
    }
}

/// Who may use the slots. A guard of a mutex would have to stay on its thread; this one goes where the work goes.
#[derive(Default)]
pub struct Turn {
    holder: Mutex<Option<ThreadId>>,
    given_back: Condvar,
}

pub struct TurnGuard<'t>(&'t Turn);

impl Turn {
    pub fn take(&self) -> Result<TurnGuard<'_>> {
        let me = std::thread::current().id();
        let mut holder = lock(&self.holder);
        if *holder == Some(me) {
            return Err(Error::Argument(
                "a model that streams its experts was called from within a call of its own; run sessions on threads of their own"
                    .into(),
            ));
        }
        while holder.is_some() {
            holder = self.given_back.wait(holder).unwrap_or_else(PoisonError::into_inner);
        }
        *holder = Some(me);
        Ok(TurnGuard(self))
    }
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        *lock(&self.0.holder) = None;
        self.0.given_back.notify_one();
    }
}
