//! Memory of experts: what a slot holds, which of its tiles are there, and waiting for those that are not.

use std::{
    io,
    ops::Range,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU8, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Instant,
};

use memmap2::MmapMut;

use super::source::PAGE;
use crate::{
    container::Bytes,
    error::{Error, Result},
};

/// A lock that a panic elsewhere does not spoil: what it guards is whole at every step.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One allocation that is cut into slots of an expert each.
pub struct Arena {
    /// Kept for its pages; they are reached through `base` only.
    _memory: MmapMut,
    base: *mut u8,
    slot_bytes: usize,
    free: Mutex<Free>,
    changed: Condvar,
}

/// The slots that nobody holds.
struct Free {
    slots: Vec<usize>,
    /// Grows with every change that someone may wait for.
    events: u64,
}

// SAFETY: `base` points into `_memory`, which lives as long as the arena and is not moved. Its bytes are reached through
// `Slot` only, which says who may.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// `slots` of `slot_bytes` each. Pages cost memory when they are first written.
    ///
    /// # Errors
    /// [`Error::Memory`] when the system does not give so much.
    pub fn new(slots: usize, slot_bytes: usize) -> Result<Arc<Self>> {
        let slot_bytes = slot_bytes.next_multiple_of(PAGE);
        let bytes = slots.checked_mul(slot_bytes).filter(|&b| b > 0);
        let map = bytes.map(MmapMut::map_anon);
        let Some(Ok(mut memory)) = map else {
            return Err(Error::Memory(format!(
                "the system has no memory for {slots} experts of {slot_bytes} bytes; lower --memory"
            )));
        };
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        let base = memory.as_mut_ptr();
        let free = Free { slots: (0..slots).rev().collect(), events: 0 };
        Ok(Arc::new(Self {
            _memory: memory,
            base,
            slot_bytes,
            free: Mutex::new(free),
            changed: Condvar::new(),
        }))
    }

    /// A free slot, if there is one.
    pub fn take(&self) -> Option<usize> {
        lock(&self.free).slots.pop()
    }

    /// The number of changes so far; to be asked for before one looks at what one waits for.
    pub fn events(&self) -> u64 {
        lock(&self.free).events
    }

    /// Waits until there were more changes than `seen`.
    pub fn wait_beyond(&self, seen: u64) {
        let free = lock(&self.free);
        drop(self.changed.wait_while(free, |free| free.events == seen));
    }

    /// A change that others may wait for.
    pub fn announce(&self) {
        lock(&self.free).events += 1;
        self.changed.notify_all();
    }

    fn give_back(&self, slot: usize) {
        lock(&self.free).slots.push(slot);
        self.announce();
    }
}

/// Where those who wait for a tile sleep.
#[derive(Default)]
pub struct Arrivals {
    lock: Mutex<()>,
    arrived: Condvar,
    /// Bytes of tiles that have arrived.
    pub bytes: AtomicU64,
    /// Nanoseconds that compute threads have waited, added up.
    pub waited: AtomicU64,
}

/// Where the bytes of an expert are, or will be.
enum Memory {
    Arena { arena: Arc<Arena>, slot: usize },
    Bytes(Bytes),
}

/// An expert in memory, tile by tile. Who holds it may read the tiles that have arrived; when nobody does, its place is free again.
///
/// A tile goes from absent over coming to there or failed, and never back: what has to be brought in again gets a new slot.
pub struct Slot {
    memory: Memory,
    /// Where the expert begins in the file.
    pub offset: u64,
    tile_bytes: usize,
    tiles: Box<[AtomicU8]>,
    cancelled: AtomicBool,
    failure: Mutex<Option<Arc<io::Error>>>,
    arrivals: Arc<Arrivals>,
}

/// States of a tile, in the order in which it takes them. It ends in one of the last two.
const ABSENT: u8 = 0;
const COMING: u8 = 1;
const THERE: u8 = 2;
const FAILED: u8 = 3;

impl Slot {
    /// An empty place in the arena, for `tiles` tiles.
    pub fn in_arena(
        arena: &Arc<Arena>,
        slot: usize,
        offset: u64,
        tile_bytes: usize,
        tiles: usize,
        arrivals: &Arc<Arrivals>,
    ) -> Self {
        assert!(tiles * tile_bytes <= arena.slot_bytes);
        let memory = Memory::Arena { arena: arena.clone(), slot };
        Self::new(memory, offset, tile_bytes, tiles, ABSENT, arrivals)
    }

    /// An expert that lies in `bytes`; where they are mapped, `there` says whether its pages are left to the system.
    pub fn of_bytes(bytes: Bytes, tile_bytes: usize, there: bool, arrivals: &Arc<Arrivals>) -> Self {
        let (tiles, offset) = (bytes.len() / tile_bytes.max(1), bytes.file_offset().unwrap_or(0));
        let state = if there { THERE } else { ABSENT };
        Self::new(Memory::Bytes(bytes), offset, tile_bytes, tiles, state, arrivals)
    }

    fn new(
        memory: Memory,
        offset: u64,
        tile_bytes: usize,
        tiles: usize,
        state: u8,
        arrivals: &Arc<Arrivals>,
    ) -> Self {
        Self {
            memory,
            offset,
            tile_bytes,
            tiles: (0..tiles).map(|_| AtomicU8::new(state)).collect(),
            cancelled: AtomicBool::new(false),
            failure: Mutex::new(None),
            arrivals: arrivals.clone(),
        }
    }

    /// Number of tiles.
    pub fn tiles(&self) -> usize {
        self.tiles.len()
    }

    /// Whether every tile is there.
    pub fn is_whole(&self) -> bool {
        self.tiles.iter().all(|t| t.load(Acquire) == THERE)
    }

    /// Whether a tile could not be read.
    pub fn has_failed(&self) -> bool {
        self.tiles.iter().any(|t| t.load(Acquire) == FAILED)
    }

    /// Tile `t`, when it has arrived: waits for it.
    ///
    /// # Errors
    /// Why it could not be read.
    pub fn tile(&self, t: usize) -> std::result::Result<&[u8], Arc<io::Error>> {
        if self.end(t) == FAILED {
            let unknown = || Arc::new(io::Error::other("the read failed"));
            return Err(lock(&self.failure).clone().unwrap_or_else(unknown));
        }
        let range = self.range(t);
        Ok(match &self.memory {
            Memory::Bytes(bytes) => &bytes[range],
            // SAFETY: the range is within the slot (checked in `in_arena`), and the slot is ours until this `Slot` is dropped, which
            // the borrow of `self` prevents. The tile is THERE, so `fill` has written it and will not touch it again;
            // the acquiring load above makes the writing visible.
            Memory::Arena { arena, slot } => unsafe {
                let start = arena.base.add(slot * arena.slot_bytes + range.start);
                std::slice::from_raw_parts(start, range.len())
            },
        })
    }

    /// The state in which tile `t` ends: waits for it.
    fn end(&self, t: usize) -> u8 {
        let state = || self.tiles[t].load(Acquire);
        if state() == ABSENT && matches!(self.memory, Memory::Bytes(_)) {
            // Sooner done than waited for.
            self.fill(t, |_, _| Ok(()));
        }
        if state() < THERE {
            let start = Instant::now();
            let mut guard = lock(&self.arrivals.lock);
            while state() < THERE {
                guard = self.arrivals.arrived.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            drop(guard);
            self.arrivals.waited.fetch_add(start.elapsed().as_nanos() as u64, Relaxed);
        }
        state()
    }

    /// Brings tile `t` in by `read`, unless somebody has or the slot is given up. For mapped bytes `read` is not called.
    pub fn fill(&self, t: usize, read: impl FnOnce(&mut [u8], u64) -> io::Result<()>) {
        if self.tiles[t].compare_exchange(ABSENT, COMING, Acquire, Relaxed).is_err() {
            return;
        }
        let range = self.range(t);
        let offset = self.offset + range.start as u64;
        let done = match &self.memory {
            _ if self.cancelled.load(Relaxed) => Err(io::Error::other("the read was cancelled")),
            Memory::Bytes(bytes) => bytes.populate(range.clone()),
            Memory::Arena { arena, slot } => {
                // SAFETY: the range is within the slot, which is ours. The exchange above was won by this call alone, so nobody
                // else writes the tile, and `tile` gives it to nobody before it is THERE.
                let tile = unsafe {
                    let start = arena.base.add(slot * arena.slot_bytes + range.start);
                    std::slice::from_raw_parts_mut(start, range.len())
                };
                read(tile, offset)
            }
        };
        let state = if done.is_ok() { THERE } else { FAILED };
        match done {
            Ok(()) => {
                self.arrivals.bytes.fetch_add(range.len() as u64, Relaxed);
            }
            Err(e) => {
                lock(&self.failure).get_or_insert(Arc::new(e));
            }
        }
        self.tiles[t].store(state, Release);
        // Whoever has seen the old state holds the lock until it sleeps.
        drop(lock(&self.arrivals.lock));
        self.arrivals.arrived.notify_all();
    }

    /// Nobody will want the tiles that are not on their way yet.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    fn range(&self, t: usize) -> Range<usize> {
        t * self.tile_bytes..(t + 1) * self.tile_bytes
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Memory::Arena { arena, slot } = &self.memory {
            arena.give_back(*slot);
        }
    }
}
