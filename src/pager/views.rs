//! Experts that lie in the bytes of the container: mapped, or in memory from the start.
//!
//! The system may drop mapped pages at any time, and tells nobody which: it only counts the page faults that waited for a disk. A slot
//! remembers that count, its *generation*. Once the count has moved, an expert that is asked for gets a new slot, and its pages
//! are brought in again; whoever holds the old slot keeps it. So no tile that somebody waits for is ever taken back.

use super::{
    pool::Pool,
    slot::{Arrivals, Slot},
    sync::{Arc, Mutex, lock},
};
use crate::container::Bytes;

/// The experts, by `layer * experts + expert`.
pub struct Views {
    blobs: Vec<Bytes>,
    tile_bytes: usize,
    arrivals: Arc<Arrivals>,
    /// None before an expert is first asked for.
    slots: Mutex<Vec<Option<View>>>,
    bringing_in: Option<BringingIn>,
}

/// What mapped pages are brought in with, before they are touched.
pub struct BringingIn {
    /// The threads that do it.
    pub pool: Pool,
    /// Whether the page cache cannot hold everything: experts that were brought in for a single use leave first.
    pub cool: bool,
    /// Counts the page faults of this process that waited for a disk.
    pub major_faults: fn() -> u64,
}

struct View {
    slot: Arc<Slot>,
    generation: u64,
    /// Whether it comes once nothing else is asked for, since nobody has asked for it.
    guessed: bool,
}

impl View {
    /// Whether a call of this generation can use the slot: all of it is there and was not dropped since, or it is on its way.
    fn serves(&self, generation: u64) -> bool {
        !self.slot.has_failed() && (self.generation >= generation || !self.slot.is_whole())
    }
}

impl Views {
    /// Nothing has been asked for yet. Without `bringing_in` everything counts as there, and is left to the system.
    pub fn new(
        blobs: Vec<Bytes>,
        tile_bytes: usize,
        arrivals: &Arc<Arrivals>,
        bringing_in: Option<BringingIn>,
    ) -> Self {
        let slots = Mutex::new(blobs.iter().map(|_| None).collect());
        Self { blobs, tile_bytes, arrivals: arrivals.clone(), slots, bringing_in }
    }

    /// The generation of a call that begins now.
    pub fn generation(&self) -> u64 {
        self.bringing_in.as_ref().map_or(0, |b| (b.major_faults)())
    }

    /// An expert's slot for a call of this generation, and whether all its tiles are there. Otherwise they are on their way.
    pub fn slot(&self, index: usize, generation: u64) -> (Arc<Slot>, bool) {
        let mut slots = lock(&self.slots);
        if let Some(view) = slots[index].as_mut().filter(|view| view.serves(generation)) {
            let (slot, whole) = (view.slot.clone(), view.slot.is_whole());
            let guessed = std::mem::take(&mut view.guessed);
            drop(slots);
            if let Some(BringingIn { pool, .. }) = self.bringing_in.as_ref().filter(|_| guessed && !whole) {
                pool.ask(&slot);
            }
            return (slot, whole);
        }
        let there = self.bringing_in.is_none();
        let slot = self.new_slot(index, there);
        slots[index] = Some(View { slot: slot.clone(), generation, guessed: false });
        drop(slots);
        if let Some(BringingIn { pool, .. }) = &self.bringing_in {
            pool.ask(&slot);
        }
        (slot, there)
    }

    fn new_slot(&self, index: usize, there: bool) -> Arc<Slot> {
        Arc::new(Slot::of_bytes(self.blobs[index].clone(), self.tile_bytes, there, &self.arrivals))
    }

    /// Enters the pages of all experts that the system has in memory, whenever nothing else is asked for. Otherwise the first token that wants an
    /// expert does so, which takes as long as a quarter of its computation.
    pub fn enter_pages(&self) {
        let Some(BringingIn { pool, cool: false, .. }) = &self.bringing_in else { return };
        let generation = self.generation();
        for index in (0..self.blobs.len()).filter(|&index| self.blobs[index].is_cached()) {
            let mut slots = lock(&self.slots);
            if slots[index].is_none() {
                let slot = self.new_slot(index, false);
                slots[index] = Some(View { slot: slot.clone(), generation, guessed: true });
                drop(slots);
                pool.guess(&slot);
            }
        }
    }

    /// Which experts were brought in, of all; every one where nothing is brought in.
    pub fn in_memory(&self) -> Vec<bool> {
        let slots = lock(&self.slots);
        let whole = |view: &View| view.slot.is_whole();
        slots.iter().map(|view| self.bringing_in.is_none() || view.as_ref().is_some_and(whole)).collect()
    }

    /// The threads that bring pages in, if there are any.
    pub fn pool(&self) -> Option<&Pool> {
        self.bringing_in.as_ref().map(|b| &b.pool)
    }

    /// Whether experts that were brought in for a single use are to leave first.
    pub fn cools(&self) -> bool {
        self.bringing_in.as_ref().is_some_and(|b| b.cool)
    }

    /// Tells the system that a mapped expert is needed least soon.
    pub fn cool(&self, index: usize) {
        self.blobs[index].cool();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn views(blobs: Vec<Bytes>) -> Views {
        let pool = Pool::new(1, None).unwrap();
        let bringing_in = BringingIn { pool, cool: false, major_faults: || 0 };
        Views::new(blobs, 64, &Arc::default(), Some(bringing_in))
    }

    #[test]
    fn pages_that_may_have_been_dropped_are_brought_in_again() {
        let views = views(vec![Bytes::copy(&[7; 128])]);
        let (first, whole) = views.slot(0, 5);
        assert!(!whole);
        assert_eq!((first.tile(0).unwrap(), first.tile(1).unwrap()), (&[7; 64][..], &[7; 64][..]));
        // As long as nothing has happened, and for a call that began before something did.
        for generation in [5, 4] {
            let (again, whole) = views.slot(0, generation);
            assert!(whole && Arc::ptr_eq(&first, &again));
        }
        let (renewed, whole) = views.slot(0, 6);
        assert!(!whole && !Arc::ptr_eq(&first, &renewed));
        assert!(first.is_whole(), "who holds the old slot keeps it");
        assert_eq!(renewed.tile(1).unwrap(), [7; 64]);
    }

    /// Written a moment ago, so the system has it in memory.
    #[test]
    #[cfg(target_os = "linux")]
    fn what_the_system_has_in_memory_is_entered_before_anybody_asks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, [7; 128]).unwrap();
        let views = views(vec![Bytes::map(&path).unwrap(), Bytes::copy(&[7; 128])]);
        views.enter_pages();
        let guess = lock(&views.slots)[0].as_ref().map(|view| view.slot.clone()).expect("a slot");
        assert_eq!((guess.tile(0).unwrap(), guess.tile(1).unwrap()), (&[7; 64][..], &[7; 64][..]));
        assert!(Arc::ptr_eq(&guess, &views.slot(0, 0).0));
        assert!(lock(&views.slots)[1].is_none(), "what is no mapping has no pages to enter");
        views.enter_pages();
        assert!(Arc::ptr_eq(&guess, &views.slot(0, 0).0));
        assert!(!Arc::ptr_eq(&guess, &views.slot(0, 1).0), "the system may have dropped pages since");
    }

    #[test]
    fn what_lies_in_memory_is_there_from_the_start() {
        let views = Views::new(vec![Bytes::copy(&[7; 128])], 64, &Arc::default(), None);
        assert!(views.slot(0, views.generation()).1);
    }

    /// The file was cut off, so its pages cannot be brought in.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_failure_stays_one_for_those_who_asked_and_the_next_call_tries_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, [7; 8192]).unwrap();
        let bytes = Bytes::map(&path).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(0).unwrap();
        let views = views(vec![bytes]);
        let (failed, _) = views.slot(0, 5);
        let reason = failed.tile(0).unwrap_err();
        file.set_len(8192).unwrap();
        let (again, whole) = views.slot(0, 5);
        assert!(!whole && !Arc::ptr_eq(&failed, &again));
        assert_eq!(again.tile(0).unwrap(), [0; 64]);
        assert_eq!(failed.tile(0).unwrap_err().to_string(), reason.to_string());
        assert!(reason.raw_os_error().is_some(), "the system's reason, and not another: {reason:?}");
    }
}
