//! A file that is used while it comes: who needs some of its bytes waits for those, and they come first.

use std::{io, ops::Range, time::Duration};

use crate::{coming::Coming, download::Watch};

/// After a failure, until it is tried again without anybody asking.
const PAUSE: Duration = Duration::from_secs(60);

impl Coming {
    /// [`Coming::run`] that fails those who wait and goes on, when somebody asks for bytes again or some time later. It ends when all is there.
    ///
    /// # Errors
    /// The file is another than the hub says; when `watch` says so.
    pub fn run_on(&self, connections: usize, watch: &dyn Watch) -> anyhow::Result<()> {
        loop {
            let done = self.run(connections, watch);
            let mut state = self.lock();
            if !watch.go_on() {
                state.is_over = true;
                self.changed.notify_all();
            }
            match done {
                Err(error) if !state.is_over => tracing::info!("{error:#}"),
                done => {
                    // Whoever takes something back now waits in vain.
                    state.is_over = true;
                    if done.is_ok() {
                        state.failures.1 = "it is what the hub has, and the hub's file is damaged".into();
                    }
                    return done;
                }
            }
            let mut left = PAUSE;
            while watch.go_on() && !std::mem::take(&mut state.is_asked) && !left.is_zero() {
                state = self.wait(state);
                left = left.saturating_sub(crate::coming::LOOK);
            }
        }
    }

    /// Waits for these bytes, as long as `go_on`, which is asked several times a second.
    ///
    /// # Errors
    /// Why they do not come; one of the kind [`io::ErrorKind::Interrupted`] when `go_on` says so.
    pub fn need(&self, range: Range<u64>, go_on: &dyn Fn() -> bool) -> io::Result<()> {
        let blocks = self.blocks(range.clone());
        let before = self.lock().failures.0;
        self.expect(range);
        let mut state = self.lock();
        loop {
            if state.queue.has(blocks.clone()) {
                return Ok(());
            }
            if state.is_over || state.failures.0 != before {
                return Err(io::Error::other(match &*state.failures.1 {
                    "" => "it is not fetched any more",
                    why => why,
                }));
            }
            if !go_on() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            state = self.wait(state);
        }
    }

    /// Somebody will wait for these bytes: they come before others.
    pub fn expect(&self, range: Range<u64>) {
        let blocks = self.blocks(range);
        let mut state = self.lock();
        state.is_asked |= !state.queue.has(blocks.clone());
        state.queue.want(blocks);
        self.changed.notify_all();
    }
}
