//! The threads that bring tiles in, in the order in which they were asked for.

use std::{
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};

use super::{
    slot::Slot,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
        lock,
        thread::{self, JoinHandle},
        wait_while,
    },
};
use crate::{
    error::{Error, Result},
    machine::source::Source,
};

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
pub struct Reads {
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
            let thread = thread::Builder::new().name(format!("yuan-read-{i}"));
            let started = thread.spawn(move || shared.serve());
            pool.threads.push(
                started.map_err(|e| Error::Argument(format!("cannot start a thread for reading: {e}")))?,
            );
        }
        Ok(pool)
    }

    /// Asks for all tiles of `slot`, behind all that was asked for before.
    pub fn ask(&self, slot: &Arc<Slot>) {
        if let Some(source) = &self.shared.source {
            source.expect(slot.offset, slot.bytes());
        }
        lock(&self.shared.queue).jobs.extend((0..slot.tiles()).map(|t| (slot.clone(), t)));
        self.shared.work.notify_all();
    }

    /// Asks for all tiles of `slot` once nothing else is asked for.
    pub fn guess(&self, slot: &Arc<Slot>) {
        lock(&self.shared.queue).guesses.extend((0..slot.tiles()).map(|t| (slot.clone(), t)));
        self.shared.work.notify_all();
    }

    /// What was done so far.
    pub fn reads(&self) -> Reads {
        let drive = lock(&self.shared.drive);
        let running = drive.since.map_or(Duration::ZERO, |since| since.elapsed());
        Reads { retries: self.shared.retries.load(Relaxed), busy: drive.busy + running }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.queue).stop = true;
        self.shared.work.notify_all();
        if let Some(source) = &self.shared.source {
            source.close();
        }
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
        let idle = |queue: &mut Queue| queue.jobs.is_empty() && queue.guesses.is_empty() && !queue.stop;
        let mut queue = wait_while(&self.work, lock(&self.queue), idle);
        if queue.stop {
            return None;
        }
        let asked = queue.jobs.pop_front();
        asked.or_else(|| queue.guesses.pop_front())
    }

    /// A whole read, tried twice where the system has refused it.
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
            if problem.get_ref().is_some_and(|e| e.is::<Error>()) {
                return Err(problem);
            }
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::pager::slot::Arena;

    const TILE: usize = 64;

    /// Tells of every read, and waits until it hears what becomes of it: so many bytes, or a panic.
    struct Told {
        begins: Sender<u64>,
        fate: Mutex<Receiver<Option<usize>>>,
    }

    impl Source for Told {
        fn read_at(&self, _: &mut [u8], offset: u64) -> io::Result<usize> {
            self.begins.send(offset).unwrap();
            match lock(&self.fate).recv() {
                Ok(Some(bytes)) => Ok(bytes),
                Ok(None) => std::panic::resume_unwind(Box::new("without a message on the screen")),
                Err(_) => Err(io::Error::other("the test has ended")),
            }
        }
    }

    /// A pool of one thread, and the two ends of its source.
    fn pool() -> (Pool, Receiver<u64>, Sender<Option<usize>>) {
        let (begins, begun) = channel();
        let (decide, fate) = channel();
        let pool = Pool::new(1, Some(Box::new(Told { begins, fate: Mutex::new(fate) }))).unwrap();
        (pool, begun, decide)
    }

    /// Slots of one tile at these offsets.
    fn slots<const N: usize>(offsets: [u64; N]) -> [Arc<Slot>; N] {
        let arena = Arena::new(N, TILE).unwrap();
        let slot = |offset| Slot::in_arena(&arena, arena.take().unwrap(), offset, TILE, 1, &Arc::default());
        offsets.map(|offset| Arc::new(slot(offset)))
    }

    #[test]
    fn guesses_are_read_when_nothing_else_is_asked_for() {
        let (pool, begun, decide) = pool();
        let [first, guess, second] = slots([1, 2, 3]);
        pool.ask(&first);
        assert_eq!(begun.recv(), Ok(1));
        // The thread is busy while the others are asked for.
        pool.guess(&guess);
        pool.ask(&second);
        for offset in [3, 2] {
            decide.send(Some(TILE)).unwrap();
            assert_eq!(begun.recv(), Ok(offset));
        }
        decide.send(Some(TILE)).unwrap();
        assert!([first, second, guess].iter().all(|slot| slot.tile(0).is_ok()));
    }

    #[test]
    fn a_short_read_is_tried_again_and_the_second_is_a_failure() {
        let (pool, begun, decide) = pool();
        let slots = slots([1, 2]);
        slots.iter().for_each(|slot| pool.ask(slot));
        for bytes in [Some(5), Some(TILE), Some(0), Some(9)] {
            decide.send(bytes).unwrap();
        }
        assert!(slots[0].tile(0).is_ok());
        assert_eq!(slots[1].tile(0).unwrap_err().to_string(), "9 bytes came in place of 64 at byte 2");
        assert_eq!(begun.try_iter().collect::<Vec<_>>(), [1, 1, 2, 2]);
        assert_eq!(pool.reads().retries, 2);
    }

    #[test]
    fn a_thread_whose_read_panics_goes_on_with_the_next() {
        let (pool, _begun, decide) = pool();
        let slots = slots([1, 2]);
        slots.iter().for_each(|slot| pool.ask(slot));
        for bytes in [None, Some(TILE)] {
            decide.send(bytes).unwrap();
        }
        assert!(slots[0].tile(0).is_err() && slots[1].tile(0).is_ok());
    }

    #[test]
    fn a_pool_that_is_dropped_reads_no_more() {
        let (pool, begun, decide) = pool();
        let slots = slots([1, 2]);
        slots.iter().for_each(|slot| pool.ask(slot));
        assert_eq!(begun.recv(), Ok(1));
        let shared = pool.shared.clone();
        std::thread::scope(|scope| {
            scope.spawn(|| drop(pool));
            while !lock(&shared.queue).stop {
                thread::yield_now();
            }
            decide.send(Some(TILE)).unwrap();
        });
        assert!(slots[0].is_whole() && !slots[1].is_whole() && !slots[1].has_failed());
        assert!(begun.try_recv().is_err());
    }
}
