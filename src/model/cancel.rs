//! Stopping a call from another thread.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

/// A request to stop. Clones are the same request: one is given to the thread that may want to stop the work.
///
/// A request stops one call: the one that is running, or else the next.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Nobody wants to stop yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the call that is running, or else the next, to stop.
    pub fn cancel(&self) {
        self.0.store(true, Relaxed);
    }

    /// Takes the request back, as before a call that an earlier request must not stop.
    pub fn clear(&self) {
        self.0.store(false, Relaxed);
    }

    /// Whether someone wants to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// Whether someone wanted to stop; the request is then served.
    pub fn take(&self) -> bool {
        self.0.swap(false, Relaxed)
    }
}
