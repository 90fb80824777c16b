//! Engines that stream: files that fail under them are an error, and the host lives.
#![allow(clippy::undocumented_unsafe_blocks)] // One for all: a pointer is what the call asks for, or wrong in a way that can be known.

mod common;

use std::{
    ffi::{CStr, CString, c_void},
    fs::{self, OpenOptions},
    path::Path,
    ptr::{null, null_mut},
    sync::mpsc,
};

use yuan::{
    capi::{yuan_status::*, *},
    machine::{budget::Limit, system::ProcessUse},
};

use common::paging::{container, keeping, tokens};

fn message() -> String {
    unsafe { CStr::from_ptr(yuan_last_error()) }.to_str().unwrap().to_owned()
}

#[track_caller]
fn ok(status: yuan_status) {
    assert_eq!(status, YUAN_OK, "{}", message());
}

/// An engine, with room for two experts where it streams, and a session on it.
fn open(path: &Path, paging: &CStr) -> (*mut yuan_engine, *mut yuan_session) {
    let container = yuan::container::Container::open(path).unwrap();
    let Some(Limit::Bytes(memory)) = keeping(&container, 2).paging.memory else { unreachable!() };
    let (memory, path) =
        (CString::new(memory.to_string()).unwrap(), CString::new(path.to_str().unwrap()).unwrap());
    let (mut options, mut engine, mut session) = (null_mut(), null_mut(), null_mut());
    unsafe {
        ok(yuan_engine_options_new(&raw mut options));
        ok(yuan_engine_options_set_threads(options, 2));
        ok(yuan_engine_options_set_paging(options, paging.as_ptr()));
        if paging == c"streamed" {
            ok(yuan_engine_options_set_memory(options, memory.as_ptr()));
        }
        ok(yuan_engine_open(path.as_ptr(), options, &raw mut engine));
        ok(yuan_engine_options_free(options));
        let mut roomy = null_mut();
        ok(yuan_session_options_new(&raw mut roomy));
        ok(yuan_session_options_set_context(roomy, 4096));
        ok(yuan_session_new(engine, roomy, &raw mut session));
        ok(yuan_session_options_free(roomy));
    }
    (engine, session)
}

fn eval(session: *mut yuan_session, tokens: &[u32]) -> yuan_status {
    unsafe { yuan_session_eval(session, tokens.as_ptr(), tokens.len(), None, null_mut()) }
}

fn logits(session: *mut yuan_session) -> Vec<u32> {
    let (mut logits, mut count) = (vec![0f32; 512], 0);
    ok(unsafe { yuan_session_logits(session, logits.as_mut_ptr(), 512, &raw mut count) });
    logits.into_iter().map(f32::to_bits).collect()
}

fn statistics(engine: *const yuan_engine) -> serde_json::Value {
    let (mut text, mut needed) = (vec![0u8; 4096], 0);
    ok(unsafe { yuan_engine_statistics(engine, text.as_mut_ptr().cast(), text.len(), &raw mut needed) });
    serde_json::from_slice(&text[..needed - 1]).unwrap()
}

/// As many numbers as `yuan generate --stats` has, which fit each other and what was run.
#[test]
fn statistics_count_what_was_run() {
    let folder = common::folder();
    let (engine, session) = open(container(&folder).path(), c"streamed");
    assert_eq!(
        (&statistics(engine)["tokens"], &statistics(engine)["token_ms"]["p50"]),
        (&0.into(), &0.0.into())
    );
    let tokens = tokens(50);
    ok(eval(session, &tokens[..20]));
    tokens[20..].iter().for_each(|&token| ok(eval(session, &[token])));
    let all = statistics(engine);
    let number =
        |of: &serde_json::Value, key: &str| of[key].as_f64().unwrap_or_else(|| panic!("{key} of {all}"));
    let (prefill, decode) = (&all["prefill"], &all["decode"]);
    assert_eq!(
        [number(&all, "tokens"), number(prefill, "tokens"), number(decode, "tokens")],
        [50.0, 20.0, 30.0]
    );
    for key in ["expert_hits", "expert_misses"] {
        assert_eq!(number(&all, key), number(prefill, key) + number(decode, key));
    }
    let (hits, misses) = (number(decode, "expert_hits"), number(decode, "expert_misses"));
    assert_eq!(hits + misses, 30.0 * 3.0 * number(&describe(engine), "experts_used"));
    assert_eq!(number(decode, "hit_rate"), hits / (hits + misses));
    assert_eq!(number(&all, "bytes_read"), number(&all, "expert_misses") * number(&all, "expert_bytes"));
    assert_eq!(number(&all, "bytes_read_per_token"), (number(&all, "bytes_read") / 50.0).floor());
    assert!(number(&all, "drive_gb_per_second") > 0.0 && number(&all, "drive_seconds") > 0.0);
    // Some threads waited for what was read, each of them no longer than the calls took.
    let stall = number(&all, "stall_ms");
    assert!(stall > 0.0 && stall <= 1e3 * number(&all, "seconds"), "{all}");
    assert!(all["major_faults"].as_u64().unwrap() <= ProcessUse::now().major_faults);
    assert!(number(&all, "peak_memory") > number(&all, "arena_bytes") && number(&all, "arena_bytes") > 0.0);
    assert!(number(&all["token_ms"], "p50") > 0.0);
    assert!(number(&all["token_ms"], "p95") >= number(&all["token_ms"], "p50"));
    assert_eq!((&all["mode"], &all["experts_resident"]), (&"streamed".into(), &2.into()));
    assert!(number(&all, "budget") > 0.0 && !all["budget_is"].as_str().unwrap().is_empty());
    assert!(number(&all, "seconds") >= number(decode, "seconds") && number(&all, "guesses_right") == 0.0);
    ok(yuan_session_free(session));
    ok(yuan_engine_free(engine));
}

fn describe(engine: *const yuan_engine) -> serde_json::Value {
    let (mut text, mut needed) = (vec![0u8; 4096], 0);
    ok(unsafe { yuan_engine_describe(engine, text.as_mut_ptr().cast(), text.len(), &raw mut needed) });
    serde_json::from_slice(&text[..needed - 1]).unwrap()
}

/// Every call looks at the length of the file first, however experts come into memory. When the file is whole again the session goes on as if nothing had happened.
// Windows lets nobody cut off a file that is mapped.
#[cfg(unix)]
#[test]
fn a_model_that_is_truncated_between_calls_is_an_error_and_no_signal() {
    let folder = common::folder();
    let path = container(&folder).path().to_owned();
    let whole = fs::read(&path).unwrap();
    let tokens = tokens(60);
    let (engine, session) = open(&path, c"plain");
    ok(eval(session, &tokens));
    let expected = logits(session);
    ok(yuan_session_free(session));
    ok(yuan_engine_free(engine));

    for paging in [c"streamed", c"mapped", c"plain"] {
        for length in [0, 4096, whole.len() / 2, whole.len() - 1] {
            let (engine, session) = open(&path, paging);
            ok(eval(session, &tokens[..20]));
            OpenOptions::new().write(true).open(&path).unwrap().set_len(length as u64).unwrap();
            let mut count = 0;
            let status = unsafe { yuan_session_logits(session, null_mut(), 0, &raw mut count) };
            assert_eq!(status, YUAN_ERROR_BAD_FILE);
            assert_eq!(eval(session, &tokens[20..]), YUAN_ERROR_BAD_FILE, "{paging:?}");
            assert!(message().contains("m.gguf"), "{}", message());
            // The file as it was, in place.
            fs::write(&path, &whole).unwrap();
            ok(unsafe { yuan_session_sync(session, tokens.as_ptr(), tokens.len(), None, null_mut()) });
            assert!(logits(session) == expected, "{paging:?}: cut to {length} bytes and mended");
            ok(yuan_session_free(session));
            ok(yuan_engine_free(engine));
        }
    }
}

/// Where a prompt is when its file is cut off.
struct Cut {
    batches: usize,
    /// How many batches are done when the other thread is told to cut the file off.
    first: usize,
    tell: mpsc::Sender<()>,
    done: mpsc::Receiver<()>,
}

/// Cut off by another thread while the prompt goes on, and before its last batch.
// Windows lets nobody cut off a file that is mapped.
#[cfg(unix)]
#[test]
fn a_model_that_is_truncated_in_the_middle_of_a_call_is_an_error_and_no_signal() {
    let folder = common::folder();
    let path = container(&folder).path().to_owned();
    let whole = fs::read(&path).unwrap();
    let tokens = tokens(4000);
    unsafe extern "C" fn cut(done: u64, all: u64, cut: *mut c_void) -> i32 {
        let cut = unsafe { &mut *cut.cast::<Cut>() };
        cut.batches += 1;
        if cut.batches == cut.first {
            cut.tell.send(()).unwrap();
        }
        // The last batch is to come.
        if done + 512 >= all {
            cut.done.recv().unwrap();
        }
        0
    }
    for (i, paging) in [c"mapped", c"plain", c"mapped", c"plain", c"mapped", c"plain"].into_iter().enumerate()
    {
        let (engine, session) = open(&path, paging);
        let length = [4096, whole.len() / 2][i % 2];
        let ((tell, told), (finish, done)) = (mpsc::channel(), mpsc::channel());
        let cutting = std::thread::spawn({
            let path = path.clone();
            move || {
                told.recv().unwrap();
                OpenOptions::new().write(true).open(&path).unwrap().set_len(length as u64).unwrap();
                finish.send(()).unwrap();
            }
        });
        let mut state = Cut { batches: 0, first: 1 + i, tell, done };
        let state = (&raw mut state).cast();
        let status = unsafe { yuan_session_eval(session, tokens.as_ptr(), tokens.len(), Some(cut), state) };
        cutting.join().unwrap();
        assert_eq!(status, YUAN_ERROR_BAD_FILE, "{}", message());
        assert!(
            message().contains(&format!("m.gguf: the file: it was {} bytes", whole.len())),
            "{}",
            message()
        );
        let mut held = 0;
        ok(unsafe { yuan_session_tokens(session, null_mut(), 0, &raw mut held) });
        assert!(held >= 512 && held < tokens.len(), "{held}");
        assert_eq!(eval(session, &[1]), YUAN_ERROR_BAD_FILE);
        ok(yuan_session_free(session));
        ok(yuan_engine_free(engine));
        fs::write(&path, &whole).unwrap();
    }
}

/// Sessions that take each other's experts away.
#[test]
fn eight_sessions_on_a_streamed_engine_compute_the_same_at_once_as_alone() {
    let folder = common::folder();
    let (engine, first) = open(container(&folder).path(), c"streamed");
    ok(yuan_session_free(first));
    let engine = engine.addr();
    let run = |seed: u32| {
        let mut session = null_mut();
        ok(unsafe { yuan_session_new(std::ptr::without_provenance(engine), null(), &raw mut session) });
        let tokens: Vec<u32> = (0..30).map(|i| (i * 31 + seed * 77) % 500).collect();
        ok(eval(session, &tokens[..20]));
        tokens[20..].iter().for_each(|&token| ok(eval(session, &[token])));
        let logits = logits(session);
        ok(yuan_session_free(session));
        logits
    };
    let alone: Vec<_> = (0..8).map(run).collect();
    let at_once: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|seed| scope.spawn(move || run(seed))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(at_once == alone);
    ok(yuan_engine_free(std::ptr::without_provenance_mut(engine)));
}
