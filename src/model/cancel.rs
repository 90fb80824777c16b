//! Stopping a call from another thread.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

/// A way to stop the calls of one session or state. Clones stop the same calls: one is given to the thread that may want to stop the work.
///
/// Every call has a number, and a request stops the call that runs when it is made. A request that comes too late, when that call has ended,
/// does not stop the next one.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Calls>);

#[derive(Debug, Default)]
struct Calls {
    /// Twice the number of the newest call, and one more while it runs.
    newest: AtomicU64,
    /// Calls up to this number are to stop.
    stopped: AtomicU64,
}

/// A call that runs until this is dropped.
#[derive(Debug)]
pub struct Running(Option<Arc<Calls>>);

impl Cancel {
    /// No call runs yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a call. Calls inside it belong to it, and stop with it.
    pub fn begin(&self) -> Running {
        let begun = |word: u64| word.is_multiple_of(2).then_some(word + 3);
        let outermost = self.0.newest.fetch_update(SeqCst, SeqCst, begun).is_ok();
        Running(outermost.then(|| self.0.clone()))
    }

    /// Asks the call that is running to stop. Where none is, nothing happens.
    pub fn cancel(&self) {
        let word = self.0.newest.load(SeqCst);
        if !word.is_multiple_of(2) {
            self.0.stopped.fetch_max(word / 2, SeqCst);
        }
    }

    /// Asks the call that is running and all later ones to stop.
    pub fn cancel_all(&self) {
        self.0.stopped.store(u64::MAX, SeqCst);
    }

    /// Whether the call that is running is to stop.
    pub fn is_cancelled(&self) -> bool {
        let word = self.0.newest.load(SeqCst);
        !word.is_multiple_of(2) && self.0.stopped.load(SeqCst) >= word / 2
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(calls) = &self.0 {
            calls.newest.fetch_sub(1, SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_stops_the_call_that_runs_and_no_other() {
        let cancel = Cancel::new();
        cancel.cancel();
        let first = cancel.begin();
        assert!(!cancel.is_cancelled(), "nothing ran when it came");
        cancel.clone().cancel();
        assert!(cancel.is_cancelled());
        // A call inside belongs to the call.
        drop(cancel.begin());
        assert!(cancel.is_cancelled());
        drop(first);
        assert!(!cancel.is_cancelled());
        let second = cancel.begin();
        assert!(!cancel.is_cancelled(), "it came for the first");
        drop(second);
        cancel.cancel_all();
        let _third = cancel.begin();
        assert!(cancel.is_cancelled());
    }
}
