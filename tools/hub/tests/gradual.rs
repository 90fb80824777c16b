//! A file that is used while it comes: what somebody needs comes first, and every wait ends.

mod common;

use std::{
    fs, io,
    ops::Range,
    path::Path,
    sync::{
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::channel,
    },
    thread,
    time::{Duration, Instant},
};

use common::{Fault, HELD, SIZE, Server, contents};
use yuan_hub::{Coming, download::Watch};

const CONNECTIONS: usize = 3;

/// Goes on until it is set.
struct Until(AtomicBool);

impl Until {
    fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    fn stop(&self) {
        self.0.store(true, Relaxed);
    }
}

impl Watch for Until {
    fn came(&self, _: u64) {}

    fn went(&self, _: u64) {}

    fn go_on(&self) -> bool {
        !self.0.load(Relaxed)
    }
}

fn begin(server: &Server, folder: &Path) -> Coming {
    let mut hub = server.hub();
    let remote = hub.files().unwrap().pop().unwrap();
    Coming::begin(&hub, &remote, &folder.join("x")).unwrap()
}

/// What is in the file at this range; it may have its name meanwhile.
fn read(folder: &Path, range: &Range<u64>) -> Vec<u8> {
    let bytes = fs::read(folder.join("x.part")).or_else(|_| fs::read(folder.join("x"))).unwrap();
    bytes[range.start as usize..range.end as usize].to_vec()
}

#[test]
fn whatever_the_server_does_who_needs_bytes_gets_them() {
    let bytes = contents();
    for fault in [Fault::None, Fault::Cuts, Fault::Stalls, Fault::Busy, Fault::Leads, Fault::Whole] {
        let server = Server::new(fault);
        let folder = tempfile::tempdir().unwrap();
        let (coming, until) = (begin(&server, folder.path()), Until::new());
        thread::scope(|scope| {
            let run = scope.spawn(|| coming.run_on(CONNECTIONS, &until));
            for seed in 0..3u64 {
                let (coming, folder, bytes) = (&coming, folder.path(), &bytes);
                scope.spawn(move || {
                    for n in 0..6 {
                        let random = (seed * 6 + n).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                        let start = (random >> 20) % SIZE as u64;
                        let range = start..(start + (random >> 50) * 200).min(SIZE as u64);
                        coming.need(range.clone(), &|| true).unwrap();
                        let wanted = &bytes[range.start as usize..range.end as usize];
                        assert!(read(folder, &range) == wanted, "{fault:?}: {range:?}");
                    }
                });
            }
            run.join().unwrap().unwrap();
        });
        assert_eq!(coming.there(), SIZE as u64);
        assert!(fs::read(folder.path().join("x")).unwrap() == bytes, "{fault:?}");
        // Wine removes a file when nobody has it open any more.
        drop(coming);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{fault:?}: nothing lies beside it");
    }
}

/// All connections but one hang in what nobody has asked for.
#[test]
fn what_is_needed_does_not_wait_for_the_rest() {
    let server = Server::new(Fault::Holds);
    let folder = tempfile::tempdir().unwrap();
    let (coming, until) = (begin(&server, folder.path()), Until::new());
    let tail = HELD as u64 + 5..SIZE as u64;
    thread::scope(|scope| {
        let run = scope.spawn(|| coming.run_on(CONNECTIONS, &until));
        coming.need(tail.clone(), &|| true).unwrap();
        assert_eq!(coming.there(), (SIZE - HELD) as u64);
        until.stop();
        let stopped = run.join().unwrap().unwrap_err();
        assert!(stopped.to_string().contains("run the same again"), "{stopped:#}");
    });
    assert!(read(folder.path(), &tail) == contents()[HELD + 5..]);
    // What is over is over for everybody.
    assert!(coming.need(0..5, &|| true).is_err());
    coming.need(tail.clone(), &|| false).unwrap();
    drop(coming);
    // Another run has what this one had.
    let sent = server.sent();
    let (coming, until) = (begin(&server, folder.path()), Until::new());
    coming.need(tail, &|| true).unwrap();
    assert_eq!((coming.there(), server.sent()), ((SIZE - HELD) as u64, sent));
    until.stop();
    assert!(coming.run_on(CONNECTIONS, &until).is_err());
}

#[test]
fn what_does_not_come_is_an_error_of_those_who_wait_and_is_tried_again() {
    for (fault, why) in
        [(Fault::Closed, "HF_TOKEN"), (Fault::Shorter, "another than"), (Fault::Holds, "tried 6 times")]
    {
        let server = Server::new(fault);
        let folder = tempfile::tempdir().unwrap();
        let (coming, until) = (begin(&server, folder.path()), Until::new());
        thread::scope(|scope| {
            let run = scope.spawn(|| coming.run_on(CONNECTIONS, &until));
            for _ in 0..2 {
                let before = server.requests();
                let error = coming.need(100..200, &|| true).unwrap_err();
                assert!(error.to_string().contains(why), "{fault:?}: {error}");
                assert!(server.requests() > before, "{fault:?}");
            }
            // Who does not want to wait any more need not.
            let (told, tells) = channel();
            let waits = scope.spawn({
                let coming = &coming;
                move || coming.need(100..200, &|| told.send(()).is_err())
            });
            drop(tells);
            let error = waits.join().unwrap();
            assert!(error.is_err(), "{fault:?}");
            let began = Instant::now();
            until.stop();
            assert!(run.join().unwrap().is_err());
            assert!(began.elapsed() < Duration::from_secs(4), "{fault:?}: {:?}", began.elapsed());
        });
        assert!(!folder.path().join("x").exists());
    }
}

#[test]
fn what_is_wrong_is_taken_back_and_comes_again() {
    let bytes = contents();
    let server = Server::new(Fault::LiesOnce);
    let folder = tempfile::tempdir().unwrap();
    let (coming, until) = (begin(&server, folder.path()), Until::new());
    // So that nobody else asks for it.
    coming.expect(0..10);
    thread::scope(|scope| {
        let run = scope.spawn(|| coming.run_on(CONNECTIONS, &until));
        coming.need(0..10, &|| true).unwrap();
        assert_ne!(read(folder.path(), &(0..10)), bytes[..10]);
        let gone = coming.reject(0..10);
        assert!(gone.start == 0 && gone.end >= 10);
        until.stop();
        assert!(run.join().unwrap().is_err());
    });
    drop(coming);
    // A later run knows.
    let (coming, until) = (begin(&server, folder.path()), Until::new());
    thread::scope(|scope| {
        let run = scope.spawn(|| coming.run_on(CONNECTIONS, &until));
        coming.need(0..10, &|| true).unwrap();
        assert_eq!(read(folder.path(), &(0..10)), bytes[..10]);
        run.join().unwrap().unwrap();
    });
    assert!(fs::read(folder.path().join("x")).unwrap() == bytes);
    // It is what the hub has, and nobody brings anything else.
    coming.reject(0..10);
    let error = coming.need(0..10, &|| true).unwrap_err();
    assert!(error.kind() != io::ErrorKind::Interrupted && error.to_string().contains("damaged"), "{error}");
}
