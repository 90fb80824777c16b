//! What happens when reads are late, short or fail.

mod common;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use common::paging::{
    Fault, container, faulty, hash, keeping, logits, looking_ahead, options, resident, tokens,
};
use yuan::{
    Error,
    container::Container,
    machine::source::{Source, Throttle},
    model::{KvType, Model, Options, Stage, State, Want},
    pager::Paging,
};

#[test]
fn late_and_shuffled_tiles_change_nothing() {
    let folder = common::folder();
    let container = container(&folder);
    let tokens = tokens(30);
    let wanted = logits(&resident(&container), &tokens, 20);
    for threads in [1, 2] {
        let mut options = Options { threads, ..keeping(&container, 3) };
        options.paging.readers = 8;
        let late = |n: u64, _| Fault::Delay(Duration::from_micros(hash(n) % 700));
        let model = Model::load_with(&container, &options, &|file| faulty(file, late)).unwrap();
        assert!(logits(&model, &tokens, 20) == wanted, "{threads} threads");
        assert!(model.pager().usage().waited > Duration::ZERO);
    }
}

/// The drives of the benchmarks change no bit either.
#[test]
fn a_slower_drive_changes_nothing() {
    let folder = common::folder();
    let container = container(&folder);
    let tokens = tokens(24);
    let wanted = logits(&resident(&container), &tokens, 20);
    for gb in [0.5, 2.0, 5.0] {
        let mut options = keeping(&container, 6);
        options.paging.throttle = Some(gb * 1e9);
        let model = Model::load(&container, &options).unwrap();
        assert!(logits(&model, &tokens, 20) == wanted, "{gb} GB/s");
        let usage = model.pager().usage();
        // A drive may be slower than its rate, and is never faster.
        assert!(
            usage.bytes_read as f64 / usage.drive_time.as_secs_f64() < 1.2 * gb * 1e9,
            "{gb} GB/s: {usage:?}"
        );
    }
    let reads = Throttle::new(Box::new(Memory), 1e9);
    assert_eq!(reads.read_at(&mut [0; 100], 0).unwrap(), 100);
}

/// A source of zeros.
struct Memory;

impl Source for Memory {
    fn read_at(&self, buffer: &mut [u8], _: u64) -> io::Result<usize> {
        buffer.fill(0);
        Ok(buffer.len())
    }
}

/// Breaks off between the layers of a prompt.
#[test]
fn an_interrupted_prompt_leaves_the_state_as_before() {
    let folder = common::folder();
    let container = container(&folder);
    let model = Model::load(&container, &keeping(&container, 4)).unwrap();
    let mut state = State::new(model.config(), 40, KvType::F16).unwrap();
    let cancel = state.cancel.clone();
    let mut probe = |stage, layer, _: &[f32]| {
        if (stage, layer) == (Stage::Hidden, 1) {
            cancel.cancel();
        }
    };
    let running = cancel.begin();
    let stopped = model.forward_probed(&tokens(30), &mut state, Want::All, &mut probe);
    drop(running);
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_eq!(state.position(), 0);
    let again = model.forward_one(&tokens(30), &mut state, Want::All).unwrap();
    let wanted = logits(&resident(&container), &tokens(30), 30);
    assert!(again.into_iter().map(f32::to_bits).eq(wanted));
}

#[test]
fn a_read_that_fails_once_is_tried_again() {
    let folder = common::folder();
    let container = container(&folder);
    let tokens = tokens(30);
    let wanted = logits(&resident(&container), &tokens, 20);
    for kind in [0, 1] {
        let mut options = keeping(&container, 3);
        options.paging.readers = 1;
        let plan = move |n: u64, _| match (n % 5, kind) {
            (0, 0) => Fault::Short,
            (0, _) => Fault::Error(io::ErrorKind::Other),
            _ => Fault::None,
        };
        let model = Model::load_with(&container, &options, &|file| faulty(file, plan)).unwrap();
        assert!(logits(&model, &tokens, 20) == wanted);
        assert!(model.pager().usage().retries > 10);
    }
}

/// A drive that is broken for a while: the call fails, the state is as before it, and the same call succeeds later.
#[test]
fn a_read_that_fails_twice_fails_the_call_and_nothing_else() {
    let folder = common::folder();
    let container = container(&folder);
    let tokens = tokens(40);
    let wanted = logits(&resident(&container), &tokens, 20);
    for (threads, readers, keep, ahead) in
        [(1, 1, 0, true), (2, 4, 3, false), (2, 2, 9, true), (3, 4, 5, false)]
    {
        for fault in [true, false] {
            let broken = Arc::new(AtomicU64::new(0));
            let plan = {
                let broken = broken.clone();
                // While it is broken, reads of every seventh hash fail.
                move |_, offset| match broken.load(Relaxed) {
                    n if n > 0 && hash(offset + n).is_multiple_of(7) && fault => {
                        Fault::Error(io::ErrorKind::Other)
                    }
                    n if n > 0 && hash(offset + n).is_multiple_of(7) => Fault::Short,
                    _ => Fault::None,
                }
            };
            let paged = if ahead { looking_ahead(&container, keep) } else { keeping(&container, keep) };
            let mut options = Options { threads, ..paged };
            options.paging.readers = readers;
            let model = Model::load_with(&container, &options, &|file| faulty(file, plan.clone())).unwrap();
            let mut state = State::new(model.config(), 40, KvType::F16).unwrap();
            let (mut out, mut failures, mut at) = (Vec::new(), 0, 0);
            while at < tokens.len() {
                let call = &tokens[at..if at == 0 { 20 } else { at + 1 }];
                broken.store(1 + at as u64, Relaxed);
                let first = model.forward_one(call, &mut state, Want::All);
                broken.store(0, Relaxed);
                let logits = first.unwrap_or_else(|problem| {
                    assert!(matches!(problem, Error::Io { .. }), "{problem}");
                    failures += 1;
                    assert_eq!(state.position(), at);
                    model.forward_one(call, &mut state, Want::All).unwrap()
                });
                out.extend(logits.into_iter().map(f32::to_bits));
                at += call.len();
            }
            assert!(failures > 3, "{failures}");
            assert!(out == wanted, "{threads} threads, {readers} readers, keep {keep}");
        }
    }
}

// Windows lets nobody cut off a file that is mapped.
#[cfg(unix)]
#[test]
fn a_file_that_shrinks_is_an_error() {
    let folder = common::folder();
    let container = container(&folder);
    let copy = folder.path().join("short.gguf");
    std::fs::copy(container.path(), &copy).unwrap();
    let shrinking = Container::open(&copy).unwrap();
    let models = [
        Model::load(&shrinking, &options(Paging::Mapped)).unwrap(),
        Model::load(&shrinking, &keeping(&shrinking, 4)).unwrap(),
    ];
    let length = std::fs::metadata(&copy).unwrap().len();
    std::fs::File::options().write(true).open(&copy).unwrap().set_len(length / 2).unwrap();
    for model in models {
        let mut state = State::new(model.config(), 40, KvType::F16).unwrap();
        let problem = model.forward_one(&tokens(40), &mut state, Want::Last).unwrap_err();
        assert!(problem.to_string().contains("short.gguf"), "{problem}");
        assert_eq!(state.position(), 0);
    }
}
