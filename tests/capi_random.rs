//! A hundred thousand random sequences of C calls, from four threads on the same handles: every call comes back with a status that is
//! no mistake of the library, and in the end nothing is left.

#[path = "common/calls.rs"]
mod calls;
mod common;

use yuan::capi::{yuan_live_handles, yuan_status};

use calls::{Caller, Slots};
use common::mutate::Random;

/// Sequences of all threads together, unless the environment variable `YUAN_TEST_SEQUENCES` says how many.
const SEQUENCES: usize = 100_000;
const THREADS: usize = 4;
/// Calls of a sequence, at most.
const CALLS: usize = 8;

#[test]
fn a_hundred_thousand_random_sequences_leave_the_host_alive() {
    // In memory where there is such a folder: saved sessions are flushed to the disk.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| common::folder());
    calls::files(folder.path(), common::letters);

    let asked = std::env::var("YUAN_TEST_SEQUENCES").ok();
    let sequences = asked.map_or(SEQUENCES, |n| n.parse().expect("YUAN_TEST_SEQUENCES is a number"));
    let slots = Slots::default();
    let seen = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS as u64)
            .map(|seed| {
                let (slots, folder) = (&slots, folder.path());
                scope.spawn(move || {
                    let mut random = Random::new(seed);
                    let mut caller = Caller::new(slots, folder, Random::new(seed), Random::new(seed));
                    for _ in 0..sequences / THREADS {
                        for _ in 0..=random.below(CALLS) {
                            caller.call();
                        }
                    }
                    caller.seen
                })
            })
            .collect();
        let all = threads.into_iter().map(|t| t.join().expect("a thread"));
        all.fold([0; 13], |sum, seen| std::array::from_fn(|i| sum[i] + seen[i]))
    });
    eprintln!("calls by status: {seen:?}");
    for (status, count) in seen.iter().enumerate() {
        // Neither a full disk nor mistakes of the library are to be had here.
        // And a few calls do not see everything.
        let rare = [yuan_status::YUAN_ERROR_DISK_FULL, yuan_status::YUAN_ERROR_INTERNAL];
        let may_miss = sequences < SEQUENCES || rare.iter().any(|s| *s as usize == status);
        assert!(may_miss || *count > 0, "status {status} never came");
    }

    slots.free();
    assert_eq!(yuan_live_handles(), 0);
}
