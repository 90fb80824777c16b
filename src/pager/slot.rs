//! Memory of experts: what a slot holds, which of its tiles are there, and waiting for those that are not.

use std::{
    io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use memmap2::MmapMut;

use super::sync::{
    Arc, Condvar, Mutex,
    atomic::{
        AtomicBool, AtomicU8, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    lock, wait_while,
};
use crate::{
    container::Bytes,
    error::{Error, Result},
    machine::source::PAGE,
};

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
        drop(wait_while(&self.changed, lock(&self.free), |free| free.events == seen));
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

    /// Bytes of all tiles.
    pub fn bytes(&self) -> u64 {
        (self.tiles.len() * self.tile_bytes) as u64
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
            drop(wait_while(&self.arrivals.arrived, lock(&self.arrivals.lock), |_| state() < THERE));
            self.arrivals.waited.fetch_add(start.elapsed().as_nanos() as u64, Relaxed);
        }
        state()
    }

    /// Brings tile `t` in by `read`, unless somebody has or the slot is given up. For mapped bytes `read` is not called. A panic of `read`
    /// is a failure of the tile.
    pub fn fill(&self, t: usize, read: impl FnOnce(&mut [u8], u64) -> io::Result<()>) {
        if self.tiles[t].compare_exchange(ABSENT, COMING, Acquire, Relaxed).is_err() {
            return;
        }
        // What a panic leaves half written nobody sees: the tile has failed.
        let done = catch_unwind(AssertUnwindSafe(|| self.bring_in(self.range(t), read)));
        let done = done.unwrap_or_else(|_| Err(io::Error::other("the thread that read it panicked")));
        let state = if done.is_ok() { THERE } else { FAILED };
        match done {
            Ok(()) => {
                self.arrivals.bytes.fetch_add(self.tile_bytes as u64, Relaxed);
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

    /// For [`Slot::fill`], which has made the tile in this range COMING.
    fn bring_in(
        &self,
        range: Range<usize>,
        read: impl FnOnce(&mut [u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        match &self.memory {
            _ if self.cancelled.load(Relaxed) => Err(io::Error::other("the read was cancelled")),
            Memory::Bytes(bytes) => bytes.populate(range),
            Memory::Arena { arena, slot } => {
                // SAFETY: the range is within the slot, which is ours. One call of `fill` alone has made the tile COMING, so nobody
                // else writes it, and `tile` gives it to nobody before it is THERE.
                let tile = unsafe {
                    let start = arena.base.add(slot * arena.slot_bytes + range.start);
                    std::slice::from_raw_parts_mut(start, range.len())
                };
                read(tile, self.offset + range.start as u64)
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const TILE: usize = 64;

    fn slot(arena: &Arc<Arena>, arrivals: &Arc<Arrivals>) -> Slot {
        Slot::in_arena(arena, arena.take().expect("a free place"), 1000, TILE, 3, arrivals)
    }

    fn one() -> (Arc<Arrivals>, Slot) {
        let arrivals = Arc::default();
        let slot = slot(&Arena::new(1, 3 * TILE).unwrap(), &arrivals);
        (arrivals, slot)
    }

    /// Writes the offset into the tile.
    fn read(tile: &mut [u8], offset: u64) -> io::Result<()> {
        tile.fill((offset / TILE as u64) as u8);
        Ok(())
    }

    #[test]
    fn tiles_come_in_any_order_each_to_its_place() {
        let (arrivals, slot) = one();
        assert_eq!(slot.tiles(), 3);
        for t in [2, 0, 1] {
            assert!(!slot.is_whole());
            slot.fill(t, read);
        }
        assert!(slot.is_whole() && !slot.has_failed());
        for t in 0..3 {
            assert_eq!(slot.tile(t).unwrap(), [((1000 + t * TILE) / TILE) as u8; TILE]);
        }
        assert_eq!(arrivals.bytes.load(Relaxed), 3 * TILE as u64);
    }

    #[test]
    fn a_tile_is_read_once() {
        let (arrivals, slot) = one();
        slot.fill(0, read);
        slot.fill(0, |_, _| panic!("it is there"));
        assert_eq!(arrivals.bytes.load(Relaxed), TILE as u64);
    }

    #[test]
    fn who_waits_for_a_tile_gets_it_when_it_comes() {
        let (_, slot) = one();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| slot.tile(1).unwrap().to_vec());
            slot.fill(0, read);
            slot.fill(1, read);
            assert_eq!(waiting.join().unwrap(), [16; TILE]);
        });
    }

    #[test]
    fn a_tile_that_fails_says_why_to_everybody_and_the_others_are_there() {
        let (arrivals, slot) = one();
        slot.fill(0, read);
        slot.fill(1, |_, _| Err(io::Error::other("the drive is broken")));
        slot.fill(1, read);
        assert!(slot.has_failed() && !slot.is_whole());
        for _ in 0..2 {
            assert_eq!(slot.tile(1).unwrap_err().to_string(), "the drive is broken");
        }
        assert_eq!(slot.tile(0).unwrap(), [15; TILE]);
        assert_eq!(arrivals.bytes.load(Relaxed), TILE as u64);
    }

    #[test]
    fn a_read_that_panics_has_failed() {
        let (_, slot) = one();
        slot.fill(0, |tile, _| {
            tile[0] = 1;
            std::panic::resume_unwind(Box::new("without a message on the screen"))
        });
        assert_eq!(slot.tile(0).unwrap_err().to_string(), "the thread that read it panicked");
    }

    #[test]
    fn a_slot_that_is_given_up_reads_nothing() {
        let (_, slot) = one();
        slot.fill(0, read);
        slot.cancel();
        slot.fill(1, |_, _| panic!("nobody wants it"));
        assert_eq!(slot.tile(1).unwrap_err().to_string(), "the read was cancelled");
        assert_eq!(slot.tile(0).unwrap(), [15; TILE]);
    }

    #[test]
    fn a_place_is_free_again_when_nobody_holds_its_slot() {
        let arena = Arena::new(2, 3 * TILE).unwrap();
        let slots = [0, 1].map(|_| Arc::new(slot(&arena, &Arc::default())));
        slots.iter().zip([1, 2]).for_each(|(slot, n)| {
            slot.fill(0, |tile, _| {
                tile.fill(n);
                Ok(())
            });
        });
        // Places do not overlap.
        assert_eq!([0, 1].map(|i| slots[i].tile(0).unwrap()[TILE - 1]), [1, 2]);
        assert!(arena.take().is_none());
        let seen = arena.events();
        let [first, second] = slots;
        let held = first.clone();
        drop(first);
        assert!(arena.take().is_none() && arena.events() == seen);
        drop((held, second));
        arena.wait_beyond(seen);
        assert!(arena.take().is_some() && arena.take().is_some());
    }

    #[test]
    fn bytes_that_are_mapped_are_brought_in_by_whoever_wants_them() {
        let arrivals = Arc::default();
        let slot = Slot::of_bytes(Bytes::copy(&[7; 2 * TILE]), TILE, false, &arrivals);
        assert!(!slot.is_whole());
        assert_eq!((slot.tile(0).unwrap(), slot.tile(1).unwrap()), (&[7; TILE][..], &[7; TILE][..]));
        assert!(slot.is_whole());
        assert_eq!(arrivals.bytes.load(Relaxed), 2 * TILE as u64);
    }
}
