//! The threads of sequences, started as they are needed.
//!
//! tokio has threads for such work, too. Where the system refuses one more, it leaves the work to the others, and counts among them those that read requests, which never end: the work, and
//! whoever waits for it, would wait for ever.

use std::{
    any::Any,
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::anyhow;
use tokio::runtime::{Builder, Handle, Runtime};

/// How long a thread waits for more to do.
const PATIENCE: Duration = Duration::from_secs(10);

type Work = Box<dyn FnOnce() + Send>;

/// Threads, and what they are to do.
#[derive(Clone, Default)]
pub struct Crew(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Work>,
    threads: usize,
    /// Those of them that wait.
    idle: usize,
    over: bool,
}

impl std::fmt::Debug for Crew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Crew").field("threads", &self.0.lock().threads).finish_non_exhaustive()
    }
}

impl Crew {
    /// Does `work` on a thread of its own, or, where the system has none, on the first that has nothing else to do. Called from a task of tokio's.
    ///
    /// # Errors
    /// The system has no thread, and there is none that could do it later.
    pub fn run(&self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.idle <= state.queue.len() {
            let (shared, handle) = (self.0.clone(), Handle::current());
            let serve = move || {
                let _context = handle.enter();
                shared.serve();
            };
            match thread::Builder::new().name("yuan-sequence".into()).spawn(serve) {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => return Err(error),
                Err(error) => tracing::warn!("a sequence waits for another one's thread: {error}"),
            }
        }
        state.queue.push_back(Box::new(work));
        self.0.changed.notify_one();
        Ok(())
    }

    /// Has the threads end, and waits for them, but not for longer than this.
    pub fn end(&self, patience: Duration) {
        let mut state = self.0.lock();
        state.over = true;
        self.0.changed.notify_all();
        drop(self.0.changed.wait_timeout_while(state, patience, |state| state.threads > 0));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what there is to do, until nothing has come for a while.
    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some(work) = state.queue.pop_front() {
                drop(state);
                // Whoever waits for it notices that it has let go of all that it had.
                let _ = catch_unwind(AssertUnwindSafe(work));
                state = self.lock();
                continue;
            }
            if state.over {
                break;
            }
            state.idle += 1;
            let waited = self.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            state.idle -= 1;
            if waited.1.timed_out() && state.queue.is_empty() {
                break;
            }
        }
        state.threads -= 1;
        self.changed.notify_all();
    }
}

/// tokio with one thread, which reads requests and writes answers. With several it hangs where the second of them cannot be started, since it then waits for the end of the first; where the first
/// one cannot be started it panics, which becomes an error here.
///
/// # Errors
/// The system refuses.
pub fn runtime() -> anyhow::Result<Runtime> {
    let said = take_hook();
    set_hook(Box::new(|_| {}));
    let built = catch_unwind(|| {
        let mut builder = Builder::new_multi_thread();
        // A few beside, for names of hosts.
        builder.worker_threads(1).max_blocking_threads(4).thread_name("yuan-serve").enable_all().build()
    });
    set_hook(said);
    let why = |panic: Box<dyn Any + Send>| {
        let said = panic.downcast_ref::<String>().map_or("the system refuses", |said| said);
        anyhow!("cannot start the server's threads: {said}")
    };
    built.map_err(why)?.map_err(|error| anyhow!("cannot start the server: {error}"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn what_panics_takes_no_thread_along_and_the_end_is_waited_for() {
        let runtime = runtime().unwrap();
        let _context = runtime.enter();
        let crew = Crew::default();
        let (sender, done) = channel();
        for number in 0..100 {
            let sender = sender.clone();
            crew.run(move || {
                assert!(number % 10 != 0, "one of ten goes wrong");
                sender.send(number).unwrap();
            })
            .unwrap();
        }
        drop(sender);
        let mut done: Vec<_> = done.iter().collect();
        done.sort_unstable();
        assert_eq!(done, (0..100).filter(|number| number % 10 != 0).collect::<Vec<_>>());
        crew.end(Duration::from_secs(100));
        assert_eq!(crew.0.lock().threads, 0);
    }
}
