//! The channels and the clock of the loop: those of the standard library; or, in a build with `--cfg loom`, channels of loom's locks and a clock
//! that stands still (`models.rs`). Locks and threads are the pager's.

#[cfg(not(loom))]
pub use std::sync::mpsc;

pub use crate::pager::sync::{Mutex, lock, thread};
use std::time::Instant;

/// The time.
#[cfg(not(loom))]
pub fn now() -> Instant {
    Instant::now()
}

/// The same time always, so that what the loop does depends on the order of its threads only.
#[cfg(loom)]
pub fn now() -> Instant {
    static BEGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    *BEGIN
}

/// As much of [`std::sync::mpsc`] as the loop uses.
#[cfg(loom)]
pub mod mpsc {
    use std::{collections::VecDeque, time::Duration};

    pub use std::sync::mpsc::{RecvError, RecvTimeoutError, SendError, TryRecvError};

    use crate::pager::sync::{Arc, Condvar, Mutex, lock, thread, wait_while};

    struct Channel<T> {
        line: Mutex<Line<T>>,
        changed: Condvar,
    }

    struct Line<T> {
        waiting: VecDeque<T>,
        /// Whether the sender, and the receiver, are there.
        ends: [bool; 2],
    }

    pub struct Sender<T>(Arc<Channel<T>>);
    pub struct Receiver<T>(Arc<Channel<T>>);
    pub type SyncSender<T> = Sender<T>;

    pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
        let line = Mutex::new(Line { waiting: VecDeque::new(), ends: [true; 2] });
        let channel = Arc::new(Channel { line, changed: Condvar::new() });
        (Sender(channel.clone()), Receiver(channel))
    }

    /// Nothing that the loop sends ever waits for room.
    pub fn sync_channel<T>(_room: usize) -> (SyncSender<T>, Receiver<T>) {
        channel()
    }

    impl<T> Channel<T> {
        /// Takes an end away, and what nobody can receive any more.
        fn close(&self, end: usize) -> VecDeque<T> {
            let mut line = lock(&self.line);
            line.ends[end] = false;
            let left = if end == 1 { std::mem::take(&mut line.waiting) } else { VecDeque::new() };
            drop(line);
            self.changed.notify_all();
            left
        }
    }

    impl<T> Sender<T> {
        pub fn send(&self, message: T) -> Result<(), SendError<T>> {
            let mut line = lock(&self.0.line);
            if !line.ends[1] {
                return Err(SendError(message));
            }
            line.waiting.push_back(message);
            drop(line);
            self.0.changed.notify_all();
            Ok(())
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.0.close(0);
        }
    }

    impl<T> Receiver<T> {
        pub fn recv(&self) -> Result<T, RecvError> {
            let line = lock(&self.0.line);
            let nothing = |line: &mut Line<T>| line.waiting.is_empty() && line.ends[0];
            wait_while(&self.0.changed, line, nothing).waiting.pop_front().ok_or(RecvError)
        }

        pub fn try_recv(&self) -> Result<T, TryRecvError> {
            let mut line = lock(&self.0.line);
            let none = if line.ends[0] { TryRecvError::Empty } else { TryRecvError::Disconnected };
            line.waiting.pop_front().ok_or(none)
        }

        /// Any time may have passed while the other threads ran.
        pub fn recv_timeout(&self, _time: Duration) -> Result<T, RecvTimeoutError> {
            thread::yield_now();
            self.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            })
        }
    }

    impl<T> Drop for Receiver<T> {
        fn drop(&mut self) {
            drop(self.0.close(1));
        }
    }
}
