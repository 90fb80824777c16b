//! Calls that wait for each other before they enter a thread pool.

use super::sync::{
    Condvar, Mutex, lock,
    thread::{self, ThreadId},
    wait_while,
};
use crate::error::{Error, Result};

/// Who may use what only one call at a time can: first come, first served. A guard of a mutex would have to stay on its thread; this one
/// goes where the work goes.
#[derive(Debug, Default)]
pub struct Turn {
    line: Mutex<Line>,
    moved: Condvar,
}

/// Those who wait have numbers, in the order in which they came.
#[derive(Debug, Default)]
struct Line {
    /// The number of whoever comes next.
    next: u64,
    /// The number whose turn it is.
    served: u64,
    holder: Option<ThreadId>,
}

/// Until it is dropped, it is this call's turn.
pub struct TurnGuard<'t>(&'t Turn);

impl Turn {
    /// Waits for the turn.
    ///
    /// # Errors
    /// [`Error::Argument`] when this thread has it already.
    pub fn take(&self) -> Result<TurnGuard<'_>> {
        let me = thread::current().id();
        let mut line = lock(&self.line);
        if line.holder == Some(me) {
            return Err(Error::Argument(
                "a model was called from within a call of its own; run sessions on threads of their own"
                    .into(),
            ));
        }
        let mine = line.next;
        line.next += 1;
        let mut line = wait_while(&self.moved, line, |line| line.served != mine);
        line.holder = Some(me);
        Ok(TurnGuard(self))
    }
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        let mut line = lock(&self.0.line);
        line.holder = None;
        line.served += 1;
        drop(line);
        self.0.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Waits until so many calls have come.
    fn until(turn: &Turn, came: u64) {
        while lock(&turn.line).next < came {
            thread::yield_now();
        }
    }

    #[test]
    fn who_came_first_is_served_first() {
        let (turn, served) = (Turn::default(), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            let held = turn.take().unwrap();
            for i in 0..8 {
                let (turn, served) = (&turn, &served);
                scope.spawn(move || {
                    let _turn = turn.take().unwrap();
                    served.lock().unwrap().push(i);
                });
                until(turn, i + 2);
            }
            assert!(served.lock().unwrap().is_empty());
            drop(held);
        });
        assert_eq!(served.into_inner().unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_call_within_a_call_is_an_error() {
        let turn = Turn::default();
        let held = turn.take().unwrap();
        assert!(turn.take().is_err());
        drop(held);
        assert!(turn.take().is_ok());
    }
}
