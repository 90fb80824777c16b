//! Calls that wait for each other before they enter a thread pool.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    thread::ThreadId,
};

use super::sync::lock;
use crate::error::{Error, Result};

/// Who may use what only one call at a time can. A guard of a mutex would have to stay on its thread; this one goes where the work goes.
#[derive(Debug, Default)]
pub struct Turn {
    holder: Mutex<Option<ThreadId>>,
    given_back: Condvar,
}

/// Until it is dropped, it is this call's turn.
pub struct TurnGuard<'t>(&'t Turn);

impl Turn {
    /// Waits for the turn.
    ///
    /// # Errors
    /// [`Error::Argument`] when this thread has it already.
    pub fn take(&self) -> Result<TurnGuard<'_>> {
        let me = std::thread::current().id();
        let mut holder = lock(&self.holder);
        if *holder == Some(me) {
            return Err(Error::Argument(
                "a model was called from within a call of its own; run sessions on threads of their own"
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
