//! Models of the pager's threads. Loom runs each again and again, with its threads in every order that needs no more than a few
//! interruptions, and fails it where they wait for each other for ever. `.ci/run models` builds and runs them.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
};

use loom::{cell::UnsafeCell, thread};

use super::{
    Arena, Eviction, Pager, Policy, Request, Settings, Shape, Slot,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        explore,
    },
};
use crate::{
    container::Bytes,
    error::{Error, Result},
    machine::source::{PAGE, Source},
};

/// Does one thing in a thread beside another.
fn beside<R>(there: impl FnOnce() + Send, here: impl FnOnce() -> R) -> R {
    let there: Box<dyn FnOnce() + Send + '_> = Box::new(there);
    // SAFETY: the thread is joined before this returns, and so before what it borrows is gone.
    let there: Box<dyn FnOnce() + Send> = unsafe { std::mem::transmute(there) };
    let thread = thread::spawn(there);
    let done = catch_unwind(AssertUnwindSafe(here));
    thread.join().expect("the other thread ends");
    done.unwrap_or_else(|panic| resume_unwind(panic))
}

/// What becomes of a read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Comes,
    Fails,
    Panics,
}

impl Fate {
    fn read(self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Comes => buffer.fill(7),
            Self::Fails => return Err(io::Error::other("the drive is broken")),
            // Without a message on the screen.
            Self::Panics => resume_unwind(Box::new(())),
        }
        Ok(buffer.len())
    }

    /// Whether the tile, or what came in its place, is what is to be expected.
    fn check(self, tile: std::result::Result<&[u8], String>) {
        match (self, tile) {
            (Self::Comes, Ok(tile)) => assert!(tile.iter().all(|&b| b == 7)),
            (Self::Fails, Err(why)) => assert!(why.contains("the drive is broken"), "{why}"),
            (Self::Panics, Err(why)) => assert!(why.contains("panicked"), "{why}"),
            (_, tile) => panic!("{tile:?}"),
        }
    }
}

fn slot(arena: &Arc<Arena>) -> Slot {
    let place = arena.take().expect("a free place");
    Slot::in_arena(arena, place, 0, PAGE, 1, &Arc::default())
}

/// Two threads bring the same tile in, and a third waits for it: it is brought in once, and whoever has waited sees all of it.
#[test]
fn a_tile_is_brought_in_once_and_every_wait_for_it_ends() {
    for fate in [Fate::Comes, Fate::Fails, Fate::Panics] {
        explore(3, move || {
            let slot = Arc::new(slot(&Arena::new(1, PAGE).expect("memory")));
            let (bytes, reads) = (Arc::new(UnsafeCell::new(0)), Arc::new(AtomicUsize::new(0)));
            let bring_in = || {
                let (slot, bytes, reads) = (slot.clone(), bytes.clone(), reads.clone());
                move || {
                    slot.fill(0, |buffer, _| {
                        reads.fetch_add(1, Relaxed);
                        // Stands for the bytes, of which loom knows nothing: reading it at the same time would be an error.
                        bytes.with_mut(|_| ());
                        fate.read(buffer).map(|_| ())
                    });
                }
            };
            let threads = [thread::spawn(bring_in()), thread::spawn(bring_in())];
            let tile = slot.tile(0);
            if tile.is_ok() {
                bytes.with(|_| ());
            }
            fate.check(tile.map_err(|e| e.to_string()));
            threads.into_iter().for_each(|t| t.join().expect("both end"));
            assert_eq!(reads.load(Relaxed), 1);
        });
    }
}

/// A slot is given up while a thread reads and another waits: it gets the tile, or hears that the read was cancelled.
#[test]
fn a_wait_for_a_slot_that_is_given_up_ends() {
    explore(3, || {
        let slot = Arc::new(slot(&Arena::new(1, PAGE).expect("memory")));
        let (reader, other) = (slot.clone(), slot.clone());
        let reader = thread::spawn(move || reader.fill(0, |b, _| Fate::Comes.read(b).map(|_| ())));
        let other = thread::spawn(move || other.cancel());
        match slot.tile(0) {
            Ok(tile) => Fate::Comes.check(Ok(tile)),
            Err(why) => assert!(why.to_string().contains("cancelled"), "{why:?}"),
        }
        reader.join().expect("it ends");
        other.join().expect("it ends");
    });
}

/// Nobody sleeps beside a free place: it is given back before, while or after somebody looks for it.
#[test]
fn a_place_that_is_given_back_is_found() {
    explore(3, || {
        let arena = Arena::new(1, PAGE).expect("memory");
        let held = slot(&arena);
        let take_and_give_back = |arena: Arc<Arena>| {
            let place = loop {
                let seen = arena.events();
                if let Some(place) = arena.take() {
                    break place;
                }
                arena.wait_beyond(seen);
            };
            drop(Slot::in_arena(&arena, place, 0, PAGE, 1, &Arc::default()));
        };
        let waiting = arena.clone();
        let waiting = thread::spawn(move || take_and_give_back(waiting));
        drop(held);
        take_and_give_back(arena);
        waiting.join().expect("it ends");
    });
}

/// A source that reads as it is told.
struct Drive(Fate);

impl Source for Drive {
    fn read_at(&self, buffer: &mut [u8], _: u64) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

/// Two experts of one tile, of which so many are kept, and a place beside those.
fn streamed(fate: Fate, kept: usize) -> Pager {
    let shape = Shape { experts: 2, tiles: 1, tile_bytes: PAGE };
    let (policy, offsets) = (Policy::new(Eviction::Lfu, 1, 2, kept), vec![0, PAGE as u64]);
    Pager::streamed(Box::new(Drive(fate)), offsets, shape, policy, 1, 1, Path::new("drive"))
        .expect("memory and a thread")
}

/// A thread of the computation, as `in_order` has it: takes experts in order until none is left or one fails.
fn compute(request: &Request<'_>, next: &AtomicUsize, fate: Fate) -> Result<()> {
    loop {
        let rank = next.fetch_add(1, Relaxed);
        if rank >= request.order().len() {
            return Ok(());
        }
        let expert = request.expert(rank)?;
        let tile = expert.tile(0);
        fate.check(tile.as_ref().map(|t| &**t).map_err(|e| e.to_string()));
        if let Err(problem) = tile {
            next.store(request.order().len(), Relaxed);
            request.abort();
            return Err(problem);
        }
        request.finish(rank);
    }
}

/// Two threads compute what a third reads, with one place for two experts.
#[test]
fn a_request_ends_whatever_becomes_of_its_reads() {
    for fate in [Fate::Comes, Fate::Fails, Fate::Panics] {
        explore(2, move || {
            let pager = streamed(fate, 0);
            let pass = pager.begin();
            let request = pass.request(0, &[0, 1], 2).expect("experts that there are");
            let next = AtomicUsize::new(0);
            let call = || compute(&request, &next, fate).is_ok();
            let here = beside(|| assert!(fate != Fate::Comes || call()), call);
            assert!(fate != Fate::Comes || here);
        });
    }
}

/// A thread waits for a place that is not given back, and hears that the request is given up.
#[test]
fn a_request_that_is_given_up_lets_everybody_go() {
    explore(3, || {
        let pager = streamed(Fate::Comes, 0);
        let pass = pager.begin();
        let request = pass.request(0, &[0, 1], 2).expect("experts that there are");
        let waiting = || assert!(matches!(request.expert(1), Err(Error::Cancelled)));
        beside(waiting, || request.abort());
    });
}

/// Two passes that begin at once, each of which drives out what the other has left.
#[test]
fn passes_go_on_with_what_others_leave() {
    for fate in [Fate::Comes, Fate::Fails] {
        explore(2, move || {
            let pager = streamed(fate, 1);
            let call = |expert: usize| {
                let pass = pager.begin();
                let request = pass.request(0, &[expert], 1).expect("an expert that there is");
                let ended = compute(&request, &AtomicUsize::new(0), fate);
                assert_eq!(ended.is_ok(), fate == Fate::Comes);
            };
            beside(|| call(0), || call(1));
        });
    }
}

/// A mapped pager of two experts, of which every pass finds that pages may have been dropped, and a thread that brings them in.
fn mapped(bytes: &Bytes) -> Pager {
    fn moving() -> u64 {
        static FAULTS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        FAULTS.fetch_add(1, Relaxed)
    }
    let settings = Settings { readers: 1, major_faults: moving, ..Settings::default() };
    let blobs = [0..PAGE, PAGE..2 * PAGE].map(|range| bytes.slice(range).expect("a page"));
    Pager::mapped(blobs.into(), 2, PAGE, Path::new("file"), &settings, false).expect("a thread")
}

/// A pass does not wait for the expert that it has asked for; another waits for it or for the other one, before, after or while it comes.
#[test]
fn a_mapped_expert_comes_for_everybody_when_pages_are_dropped() {
    let bytes = Bytes::copy(&[7; 2 * PAGE]);
    for other in [0, 1] {
        let bytes = bytes.clone();
        explore(2, move || {
            let pager = mapped(&bytes);
            let ask = || drop(pager.begin().request(0, &[0], 1).expect("an expert that there is"));
            let call = || {
                let pass = pager.begin();
                let request = pass.request(0, &[other], 1).expect("an expert that there is");
                compute(&request, &AtomicUsize::new(0), Fate::Comes).expect("it is there");
            };
            beside(ask, call);
        });
    }
}

/// The same where experts cannot be brought in: everybody hears the system's reason.
#[test]
#[cfg(target_os = "linux")]
fn a_mapped_expert_fails_for_everybody_with_its_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    std::fs::write(&path, [7; 2 * PAGE]).expect("a file");
    let bytes = Bytes::map(&path).expect("a mapping");
    std::fs::File::options().write(true).open(&path).and_then(|f| f.set_len(0)).expect("it is cut off");
    explore(2, move || {
        let pager = mapped(&bytes);
        let call = || {
            let pass = pager.begin();
            let request = pass.request(0, &[0], 1).expect("an expert that there is");
            let expert = request.expert(0).expect("a place");
            let why = expert.tile(0).expect_err("it is gone").to_string();
            assert!(why.contains("os error"), "{why}");
        };
        beside(call, call);
    });
}
