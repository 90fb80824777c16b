//! The threads that compute: how many, and for what.

use std::{
    hint,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rayon::{ThreadPool, ThreadPoolBuilder, Yield};

use crate::{
    error::{Error, Result},
    limits::{MOST_DRAFTED, check_threads},
};

/// Tokens that pass as one does: the next of an answer and its drafts.
const FEW: usize = 1 + MOST_DRAFTED;

/// Pools of threads. One token is bound by memory, which few threads use up; a batch is bound by arithmetic.
#[derive(Debug)]
pub struct Threads {
    single: ThreadPool,
    /// Where batches have another number of threads.
    batch: Option<ThreadPool>,
}

impl Threads {
    /// `single` threads for one token or a few at a time and `batch` for more. 0 means every physical core that the process may use,
    /// and for `batch` as many as `single`.
    ///
    /// # Errors
    /// [`Error::Argument`] for more threads than [`most_threads`](crate::limits::most_threads), and for threads that cannot be started.
    pub fn new(single: usize, batch: usize) -> Result<Self> {
        let (single, batch) = (check_threads(single)?, check_threads(batch)?);
        let single = if single == 0 { usable_cores() } else { single };
        let pool = |threads: usize| {
            let pool =
                ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("yuan-compute-{i}"));
            pool.build()
                .map_err(|e| Error::Argument(format!("cannot start {threads} threads: {e}; ask for fewer")))
        };
        let batch = if batch == 0 || batch == single { None } else { Some(pool(batch)?) };
        Ok(Self { single: pool(single)?, batch })
    }

    /// Threads of the pool that this thread works in, or else those for one token at a time.
    pub fn count(&self) -> usize {
        if self.inside() { rayon::current_num_threads() } else { self.single.current_num_threads() }
    }

    /// Threads for several tokens at a time.
    pub fn batch_count(&self) -> usize {
        self.batch.as_ref().unwrap_or(&self.single).current_num_threads()
    }

    /// Runs `work` in the pool for this many tokens.
    pub fn enter<R: Send>(&self, tokens: usize, work: impl FnOnce() -> R + Send) -> R {
        let few = tokens <= FEW;
        let pool = self.batch.as_ref().filter(|_| !few).unwrap_or(&self.single);
        pool.install(|| if few { awake(pool, work) } else { work() })
    }

    /// Runs `work` in the pool that this thread works in already, or else in the one for a single token.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        if self.inside() { work() } else { self.single.install(work) }
    }

    /// Whether this thread is one of them.
    pub fn inside(&self) -> bool {
        let in_batch = self.batch.as_ref().and_then(ThreadPool::current_thread_index);
        in_batch.or(self.single.current_thread_index()).is_some()
    }
}

/// How long a thread looks for work before it sleeps, while a few tokens pass.
const PATIENCE: Duration = Duration::from_micros(200);

/// Does `work` while the other threads of `pool`, which this thread is one of, stay awake. A token has dozens of steps of some hundredths of a millisecond
/// each, and a thread that sleeps between two of them takes nearly as long to wake.
fn awake<R>(pool: &ThreadPool, work: impl FnOnce() -> R) -> R {
    struct Ends(Arc<AtomicBool>);
    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    if pool.current_num_threads() == 1 {
        return work();
    }
    let ends = Ends(Arc::default());
    let (ended, caller) = (ends.0.clone(), pool.current_thread_index());
    pool.spawn_broadcast(move |context| {
        if Some(context.index()) != caller {
            look_for_work(&ended);
        }
    });
    work()
}

/// Takes up work of the pool until the pass has `ended`, or there has been none for a while: a thread may begin this while it waits for others, in the
/// middle of a step, which then goes on.
fn look_for_work(ended: &AtomicBool) {
    let mut since = Instant::now();
    while !ended.load(Relaxed) {
        match rayon::yield_now() {
            Some(Yield::Executed) => since = Instant::now(),
            _ if since.elapsed() > PATIENCE => return,
            _ => hint::spin_loop(),
        }
    }
}

/// Physical cores that the process may use: by its affinity, and by the quota of its control group. Two threads of a core share
/// its arithmetic and its caches, so the second only stands in the way.
pub fn usable_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    physical_cores().map_or(allowed, |cores| cores.clamp(1, allowed))
}

/// Physical cores in the affinity mask.
#[cfg(target_os = "linux")]
fn physical_cores() -> Option<usize> {
    let mask = rustix::thread::sched_getaffinity(None).ok()?;
    let cores: std::collections::BTreeSet<String> = (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|&cpu| mask.is_set(cpu))
        .map(|cpu| {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            std::fs::read_to_string(path).unwrap_or_else(|_| cpu.to_string())
        })
        .collect();
    (!cores.is_empty()).then_some(cores.len())
}

/// Physical cores of the machine: other systems have no affinity that is set from outside, or hardly ever.
#[cfg(not(target_os = "linux"))]
fn physical_cores() -> Option<usize> {
    Some(num_cpus::get_physical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_stays_in_the_pool_that_it_entered() {
        let threads = Threads::new(1, 3).unwrap();
        assert_eq!((threads.count(), threads.batch_count()), (1, 3));
        for (tokens, expected) in [(1, 1), (FEW, 1), (FEW + 1, 3), (512, 3)] {
            assert_eq!(threads.enter(tokens, || threads.run(|| threads.count())), expected);
        }
        assert_eq!(threads.run(|| threads.count()), 1);
        assert_eq!(Threads::new(2, 0).unwrap().enter(9, rayon::current_num_threads), 2);
    }

    #[test]
    fn the_usual_number_is_what_the_process_may_use() {
        let allowed = std::thread::available_parallelism().unwrap().get();
        assert!((1..=allowed).contains(&usable_cores()));
        assert_eq!(Threads::new(0, 0).unwrap().count(), usable_cores());
    }

    #[test]
    fn too_many_threads_are_refused_and_not_started() {
        for (single, batch) in [(100_000, 0), (1, usize::MAX), (crate::limits::most_threads() + 1, 1)] {
            let refused = Threads::new(single, batch).unwrap_err().to_string();
            assert!(refused.contains("this machine takes"), "{refused}");
        }
    }
}
