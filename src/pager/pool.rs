//! The threads that bring tiles in, in the order in which they were asked for.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    slot::{Slot, lock},
    source::Source,
};
use crate::error::{Error, Result};

/// Threads that read when the caller does not say: enough to keep an NVMe drive busy with tiles.
const READERS: usize = 4;

/// The number of reading threads that the caller asks for; 0 is the usual number.
pub fn readers(asked: usize) -> usize {
    if asked == 0 { READERS } else { asked }
}

/// Reading threads with their queue. They end when the pool is dropped.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    /// None where slots are mapped and need no reads.
    source: Option<Box<dyn Source>>,
    queue: Mutex<Queue>,
    work: Condvar,
    drive: Mutex<Drive>,
    retries: AtomicU64,
}

/// A tile of an expert.
type Job = (Arc<Slot>, usize);

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Guesses, for when there is nothing else to do.
    guesses: VecDeque<Job>,
    stop: bool,
}

/// For how long at least one read was under way.
#[derive(Default)]
struct Drive {
    reads: usize,
    since: Option<Instant>,
    busy: Duration,
}

/// What a pool has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Reads that were tried again.
    pub retries: u64,
    /// Time in which at least one read was under way.
    pub busy: Duration,
}

impl Pool {
    /// Starts `readers` threads (0: as many as an NVMe drive wants).
    ///
    /// # Errors
    /// [`Error::Argument`] when they cannot be started.
    pub fn new(readers: usize, source: Option<Box<dyn Source>>) -> Result<Self> {
        let shared = Arc::new(Shared {
            source,
            queue: Mutex::default(),
            work: Condvar::new(),
            drive: Mutex::default(),
            retries: AtomicU64::new(0),
        });
        let mut pool = Self { shared, threads: Vec::new() };
        for i in 0..self::readers(readers) {
            let shared = pool.shared.clone();
            let thread = std::thread::Builder::new().name(format!("yuan-read-{i}"));
            let started = thread.spawn(move || shared.serve());
            pool.threads.push(
                started.map_err(|e| Error::Argument(format!("cannot start a thread for reading: {e}")))?,
            );
        }
        Ok(pool)
    }

    /// Asks for all tiles of `slot`, behind all that was asked for before.
    pub fn ask(&self, slot: &Arc<Slot>) {
        lock(&self.shared.queue).jobs.extend((0..slot.tiles()).map(|t| (slot.clone(), t)));
        self.shared.work.notify_all();
    }

    /// Asks for all tiles of `slot` once nothing else is asked for.
    pub fn guess(&self, slot: &Arc<Slot>) {
        lock(&self.shared.queue).guesses.extend((0..slot.tiles()).map(|t| (slot.clone(), t)));
        self.shared.work.notify_all();
    }

    /// What was done so far.
    pub fn work(&self) -> Work {
        let drive = lock(&self.shared.drive);
        let running = drive.since.map_or(Duration::ZERO, |since| since.elapsed());
        Work { retries: self.shared.retries.load(Relaxed), busy: drive.busy + running }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.queue).stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self) {
        while let Some((slot, t)) = self.next() {
            self.drive(1);
            slot.fill(t, |buffer, offset| self.read(buffer, offset));
            self.drive(-1);
        }
    }

    fn next(&self) -> Option<Job> {
        let queue = lock(&self.queue);
        let idle = |queue: &mut Queue| queue.jobs.is_empty() && queue.guesses.is_empty() && !queue.stop;
        let mut queue = self.work.wait_while(queue, idle).unwrap_or_else(PoisonError::into_inner);
        if queue.stop {
            return None;
        }
        let asked = queue.jobs.pop_front();
        asked.or_else(|| queue.guesses.pop_front())
    }

    /// A whole read, tried twice.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let source = self.source.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let mut attempt = || match source.read_at(buffer, offset)? {
            n if n == buffer.len() => Ok(()),
            n => {
                let said = format!("{n} bytes came in place of {} at byte {offset}", buffer.len());
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, said))
            }
        };
        attempt().or_else(|problem| {
            tracing::warn!("a read failed and is tried again: {problem}");
            self.retries.fetch_add(1, Relaxed);
            attempt()
        })
    }

    /// A read begins (1) or ends (-1).
    fn drive(&self, change: isize) {
        let mut drive = lock(&self.drive);
        drive.reads = drive.reads.saturating_add_signed(change);
        match (drive.reads, drive.since) {
            (0, Some(since)) => {
                drive.busy += since.elapsed();
                drive.since = None;
            }
            (1.., None) => drive.since = Some(Instant::now()),
            _ => {}
        }
    }
}
