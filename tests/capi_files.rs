//! Files that fail under a running engine: an error, and the host lives.
#![allow(clippy::undocumented_unsafe_blocks)] // One for all: a pointer is what the call asks for, or wrong in a way that can be known.

mod common;

use std::{
    ffi::{CStr, CString},
    fs::{self, OpenOptions},
    path::Path,
    ptr::{null, null_mut},
};

use yuan::{
    capi::{yuan_status::*, *},
    pager::budget::Limit,
};

use common::paging::{container, keeping, tokens};

fn message() -> String {
    unsafe { CStr::from_ptr(yuan_last_error()) }.to_str().unwrap().to_owned()
}

#[track_caller]
fn ok(status: yuan_status) {
    assert_eq!(status, YUAN_OK, "{}", message());
}

/// An engine with room for two experts, and a session on it.
fn streamed(path: &Path) -> (*mut yuan_engine, *mut yuan_session) {
    let container = yuan::container::Container::open(path).unwrap();
    let Some(Limit::Bytes(memory)) = keeping(&container, 2).paging.memory else { unreachable!() };
    let (memory, path) =
        (CString::new(memory.to_string()).unwrap(), CString::new(path.to_str().unwrap()).unwrap());
    let (mut options, mut engine, mut session) = (null_mut(), null_mut(), null_mut());
    unsafe {
        ok(yuan_engine_options_new(&raw mut options));
        ok(yuan_engine_options_set_threads(options, 2));
        ok(yuan_engine_options_set_paging(options, c"streamed".as_ptr()));
        ok(yuan_engine_options_set_memory(options, memory.as_ptr()));
        ok(yuan_engine_open(path.as_ptr(), options, &raw mut engine));
        ok(yuan_engine_options_free(options));
        ok(yuan_session_new(engine, null(), &raw mut session));
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

/// Streamed, everything that is not an expert is in the engine's own memory. So a file that is cut is an error of the reads, and
/// when it is whole again the session goes on as if nothing had happened.
#[test]
fn a_streamed_model_that_is_truncated_is_an_error_and_no_signal() {
    let folder = common::folder();
    let path = container(&folder).path().to_owned();
    let whole = fs::read(&path).unwrap();
    let tokens = tokens(60);
    let (engine, session) = streamed(&path);
    ok(eval(session, &tokens));
    let expected = logits(session);
    ok(yuan_session_free(session));
    ok(yuan_engine_free(engine));

    for length in [0, 4096, whole.len() / 2, whole.len() - 1] {
        let (engine, session) = streamed(&path);
        ok(eval(session, &tokens[..20]));
        OpenOptions::new().write(true).open(&path).unwrap().set_len(length as u64).unwrap();
        let status = tokens[20..].iter().map(|&token| eval(session, &[token])).find(|&s| s != YUAN_OK);
        // One byte less may be one that no token reads.
        if length < whole.len() - 1 {
            let status = status.expect("the experts of forty tokens are not all in two slots");
            assert!(status == YUAN_ERROR_FILE || status == YUAN_ERROR_BAD_FILE, "{status:?}: {}", message());
            assert!(message().contains("m.gguf"), "{}", message());
        }
        // The file as it was, in place.
        fs::write(&path, &whole).unwrap();
        ok(unsafe { yuan_session_sync(session, tokens.as_ptr(), tokens.len(), None, null_mut()) });
        assert!(logits(session) == expected, "cut to {length} bytes and mended");
        ok(yuan_session_free(session));
        ok(yuan_engine_free(engine));
    }
}
