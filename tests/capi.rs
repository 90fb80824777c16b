//! The C surface, called as a C program calls it: what it promises about handles, threads, buffers, callbacks and errors.
#![allow(clippy::undocumented_unsafe_blocks)] // One for all: a pointer is what the call asks for, or wrong in a way that can be known.

mod common;

use std::{
    ffi::{CStr, CString, c_char, c_void},
    ptr::{null, null_mut},
    sync::{Mutex, OnceLock},
};

use yuan::{
    capi::*,
    config::ModelConfig,
    convert::Conversion,
    limits::{MOST_CONTEXT, most_threads},
    quantize::{Options, Plan, synth},
};
use yuan_status::*;

/// A random model, made once, and the folder that it lies in.
fn model() -> CString {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = common::folder();
        write_model(&folder.path().join("m.gguf"), synth::tiny());
        folder
    });
    c(folder.path().join("m.gguf").to_str().unwrap())
}

fn write_model(path: &std::path::Path, config: ModelConfig) {
    let vocab = common::letters(config.vocab);
    let plan = Plan::new(config, &Options::default()).unwrap();
    Conversion::synth(plan, 5, &vocab).unwrap().write(path, &|_| true).unwrap();
}

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

fn message() -> String {
    unsafe { CStr::from_ptr(yuan_last_error()) }.to_str().unwrap().to_owned()
}

#[track_caller]
fn ok(status: yuan_status) {
    assert_eq!(status, YUAN_OK, "{}", message());
}

/// The call fails with this status, and its message says `part`.
#[track_caller]
fn fails(status: yuan_status, expected: yuan_status, part: &str) {
    assert_eq!(status, expected);
    assert!(message().contains(part), "no {part:?} in {:?}", message());
}

fn engine() -> *mut yuan_engine {
    let mut engine = null_mut();
    ok(unsafe { yuan_engine_open(model().as_ptr(), null(), &raw mut engine) });
    engine
}

fn session(engine: *const yuan_engine) -> *mut yuan_session {
    let mut session = null_mut();
    ok(unsafe { yuan_session_new(engine, null(), &raw mut session) });
    session
}

fn sampler(temperature: f32, seed: u64) -> *mut yuan_sampler {
    let mut sampler = null_mut();
    ok(unsafe { yuan_sampler_new(&raw mut sampler) });
    ok(yuan_sampler_set_temperature(sampler, temperature));
    ok(yuan_sampler_set_seed(sampler, seed));
    ok(yuan_sampler_set_ignore_eod(sampler, 1));
    sampler
}

fn eval(session: *mut yuan_session, tokens: &[u32]) -> yuan_status {
    unsafe { yuan_session_eval(session, tokens.as_ptr(), tokens.len(), None, null_mut()) }
}

fn tokens(session: *mut yuan_session) -> Vec<u32> {
    let mut count = 0;
    ok(unsafe { yuan_session_tokens(session, null_mut(), 0, &raw mut count) });
    let mut tokens = vec![0; count];
    ok(unsafe { yuan_session_tokens(session, tokens.as_mut_ptr(), count, &raw mut count) });
    tokens
}

fn logits(session: *mut yuan_session) -> Vec<u32> {
    let (mut logits, mut count) = (vec![0f32; 512], 0);
    ok(unsafe { yuan_session_logits(session, logits.as_mut_ptr(), 512, &raw mut count) });
    assert_eq!(count, 512);
    logits.into_iter().map(f32::to_bits).collect()
}

/// What a call of `generate` says of itself.
#[derive(Default)]
struct Heard {
    tokens: Vec<u32>,
    text: Vec<u8>,
    /// Called in between.
    then: Option<Box<dyn FnMut(usize) -> i32>>,
}

unsafe extern "C" fn hear(token: u32, text: *const c_char, length: usize, heard: *mut c_void) -> i32 {
    let heard = unsafe { &mut *heard.cast::<Heard>() };
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length + 1) };
    assert_eq!(bytes[length], 0);
    heard.text.extend(&bytes[..length]);
    heard.tokens.push(token);
    let count = heard.tokens.len();
    heard.then.as_mut().map_or(0, |then| then(count))
}

fn generate(
    session: *mut yuan_session,
    sampler: *mut yuan_sampler,
    most: usize,
    heard: &mut Heard,
) -> yuan_finish {
    let mut finish = yuan_finish::YUAN_FINISH_STOP;
    let heard = (&raw mut *heard).cast();
    ok(unsafe { yuan_session_generate(session, sampler, most, Some(hear), heard, &raw mut finish) });
    finish
}

#[test]
fn handles_that_are_null_freed_or_of_another_kind_are_errors() {
    let (engine, sampler) = (engine(), sampler(0.0, 0));
    let session = session(engine);
    fails(eval(null_mut(), &[1]), YUAN_ERROR_HANDLE, "is null");
    fails(eval(engine.cast(), &[1]), YUAN_ERROR_HANDLE, "is no live session");
    fails(yuan_engine_free(session.cast()), YUAN_ERROR_HANDLE, "is no live engine");
    fails(eval(session.wrapping_byte_add(1), &[1]), YUAN_ERROR_HANDLE, "is no live session");
    ok(yuan_engine_free(engine));
    fails(yuan_engine_free(engine), YUAN_ERROR_HANDLE, "it was freed");
    ok(eval(session, &[1, 2]));
    ok(yuan_session_free(session));
    fails(eval(session, &[1]), YUAN_ERROR_HANDLE, "it was freed");
    fails(yuan_session_cancel(session), YUAN_ERROR_HANDLE, "it was freed");
    ok(yuan_sampler_free(sampler));
    ok(yuan_sampler_free(null_mut()));
    ok(yuan_session_free(null_mut()));
}

#[cfg(feature = "grammar")]
#[test]
fn an_answer_has_the_form_of_its_session_until_that_is_taken_away() {
    let (engine, sampler) = (engine(), sampler(1.0, 3));
    let session = session(engine);
    let answer = |session| {
        ok(unsafe { yuan_session_sync(session, [1u32, 2, 3].as_ptr(), 3, None, null_mut()) });
        let mut heard = Heard::default();
        let finish = generate(session, sampler, 60, &mut heard);
        (String::from_utf8(heard.text).unwrap(), finish)
    };
    let schema = c(r#"{"type": "array", "items": {"enum": ["春", 7]}, "minItems": 2, "maxItems": 2}"#);
    ok(unsafe { yuan_session_set_json_schema(session, schema.as_ptr()) });
    let (text, finish) = answer(session);
    assert_eq!(finish, yuan_finish::YUAN_FINISH_STOP);
    assert_eq!(serde_json::from_str::<Vec<serde_json::Value>>(&text).unwrap().len(), 2, "{text}");
    fails(
        unsafe { yuan_session_set_json_schema(session, c(r#"{"type": "x"}"#).as_ptr()) },
        YUAN_ERROR_ARGUMENT,
        "JSON schema",
    );
    fails(
        unsafe { yuan_session_set_grammar(session, c("root ::= \"a\"").as_ptr()) },
        YUAN_ERROR_ARGUMENT,
        "GBNF",
    );
    assert_eq!(answer(session).1, finish, "what was set stays");
    ok(unsafe { yuan_session_set_regex(session, c("[0-9]{3}").as_ptr()) });
    assert_eq!(answer(session).0.len(), 3);
    ok(unsafe { yuan_session_set_grammar(session, c("start: \"yes\"").as_ptr()) });
    assert_eq!(answer(session).0, "yes");
    ok(unsafe { yuan_session_set_grammar(session, null()) });
    assert_eq!(answer(session).1, yuan_finish::YUAN_FINISH_LENGTH);
    fails(unsafe { yuan_session_set_regex(null_mut(), null()) }, YUAN_ERROR_HANDLE, "is null");
    ok(yuan_session_free(session));
    ok(yuan_sampler_free(sampler));
    ok(yuan_engine_free(engine));
}

#[test]
fn arguments_that_cannot_be_are_errors() {
    let engine = engine();
    let session = session(engine);
    let ids = [1u32, 2, 3];
    let eval =
        |start: *const u32, count| unsafe { yuan_session_eval(session, start, count, None, null_mut()) };
    fails(eval(null(), 2), YUAN_ERROR_ARGUMENT, "the tokens is null");
    fails(eval(ids.as_ptr().wrapping_byte_add(2), 2), YUAN_ERROR_ARGUMENT, "not aligned to 4 bytes");
    fails(eval(ids.as_ptr(), usize::MAX), YUAN_ERROR_ARGUMENT, "cannot be");
    fails(eval(ids.as_ptr(), -3isize as usize), YUAN_ERROR_ARGUMENT, "cannot be");
    fails(eval(ids.as_ptr(), 0), YUAN_ERROR_ARGUMENT, "no tokens");
    fails(eval([512].as_ptr(), 1), YUAN_ERROR_ARGUMENT, "outside the vocabulary");
    fails(eval(vec![1; 1025].as_ptr(), 1025), YUAN_ERROR_CONTEXT_FULL, "1024");
    assert!(tokens(session).is_empty(), "nothing of it was run");

    let mut count = 0;
    let text = |text: &[u8]| unsafe {
        yuan_tokenize(engine, text.as_ptr().cast(), text.len(), 1, null_mut(), 0, &raw mut count)
    };
    let mut text = text;
    fails(text(b"ab\xFFc"), YUAN_ERROR_ARGUMENT, "no UTF-8 from byte 2 on");
    ok(text(b"a\0b"));
    fails(
        unsafe { yuan_tokenize(engine, c"a".as_ptr(), 1, 1, null_mut(), 0, null_mut()) },
        YUAN_ERROR_ARGUMENT,
        "the place of the length is null",
    );
    fails(unsafe { yuan_session_new(engine, null(), null_mut()) }, YUAN_ERROR_ARGUMENT, "is null");
    fails(unsafe { yuan_engine_open(null(), null(), null_mut()) }, YUAN_ERROR_ARGUMENT, "the path is null");

    let (mut options, mut engine_options) = (null_mut(), null_mut());
    ok(unsafe { yuan_session_options_new(&raw mut options) });
    ok(unsafe { yuan_engine_options_new(&raw mut engine_options) });
    fails(
        unsafe { yuan_session_options_set_kv_type(options, c"q3".as_ptr()) },
        YUAN_ERROR_ARGUMENT,
        "choose f16, q8_0, q4_0 or f32",
    );
    ok(unsafe { yuan_session_options_set_kv_type(options, c"q8_0:q4_0".as_ptr()) });
    for context in [usize::MAX, 1 << 50, MOST_CONTEXT + 1] {
        let set = [yuan_session_options_set_context(options, context), unsafe {
            yuan_engine_options_set_sessions(engine_options, context, c"f16".as_ptr())
        }];
        set.into_iter().for_each(|status| fails(status, YUAN_ERROR_ARGUMENT, "too large: 16777216 are"));
    }
    for threads in [most_threads() + 1, 100_000, usize::MAX] {
        let set = [
            yuan_engine_options_set_threads(engine_options, threads),
            yuan_engine_options_set_threads_batch(engine_options, threads),
        ];
        set.into_iter().for_each(|status| fails(status, YUAN_ERROR_ARGUMENT, "this machine takes"));
    }
    fails(
        yuan_engine_options_set_batch_tokens(engine_options, 65_537),
        YUAN_ERROR_ARGUMENT,
        "65536 are possible",
    );
    ok(yuan_engine_options_set_batch_tokens(engine_options, 64));
    ok(yuan_engine_options_free(engine_options));
    ok(yuan_session_options_free(options));
    ok(yuan_session_free(session));
    ok(yuan_engine_free(engine));
}

#[test]
fn files_that_are_no_models_are_errors_of_their_kind() {
    let folder = common::folder();
    let path = |name: &str| c(folder.path().join(name).to_str().unwrap());
    let mut engine = null_mut();
    let mut open = |path: &CString| unsafe { yuan_engine_open(path.as_ptr(), null(), &raw mut engine) };
    fails(open(&path("no.gguf")), YUAN_ERROR_FILE, "no.gguf");
    std::fs::write(folder.path().join("text.gguf"), "no model at all").unwrap();
    fails(open(&path("text.gguf")), YUAN_ERROR_BAD_FILE, "text.gguf");
    fails(open(&path("")), YUAN_ERROR_ARGUMENT, "give a .gguf file");
    fails(open(&c("")), YUAN_ERROR_ARGUMENT, "the path is empty");
    assert!(engine.is_null());
}

#[test]
fn buffers_say_what_they_need() {
    let engine = engine();
    let (text, mut count) = ("a b 春", 0);
    let mut ids = [u32::MAX; 40];
    let mut tokenize = |capacity| unsafe {
        let start = ids.as_mut_ptr();
        let status =
            yuan_tokenize(engine, text.as_ptr().cast(), text.len(), 1, start, capacity, &raw mut count);
        (status, count, ids)
    };
    let (status, needed, untouched) = tokenize(0);
    assert!(status == YUAN_OK && needed > 3 && untouched == [u32::MAX; 40]);
    let (status, again, untouched) = tokenize(needed - 1);
    assert!(status == YUAN_ERROR_BUFFER_TOO_SMALL && again == needed && untouched == [u32::MAX; 40]);
    let (status, _, filled) = tokenize(needed);
    assert!(status == YUAN_OK && filled[..needed].iter().all(|&id| id < 512) && filled[needed] == u32::MAX);

    let mut chars = [1 as c_char; 40];
    let start = chars.as_mut_ptr();
    let mut bytes = 0;
    ok(unsafe { yuan_detokenize(engine, filled.as_ptr(), needed, start, 40, &raw mut bytes) });
    assert_eq!(bytes, text.len() + 1, "the NUL counts");
    assert_eq!(unsafe { CStr::from_ptr(chars.as_ptr()) }.to_str().unwrap(), text);
    ok(yuan_engine_free(engine));
}

/// Each on a thread of its own, beside the others: the tokens that it gives alone.
#[test]
fn sessions_on_several_threads_give_what_they_give_alone() {
    let engine = engine();
    let whole = engine.addr();
    let answer = move |i: u32| {
        let session = session(std::ptr::without_provenance_mut(whole));
        let sampler = sampler(0.8, u64::from(i));
        ok(eval(session, &vec![5 + i; 20 + 40 * i as usize]));
        let mut heard = Heard::default();
        assert_eq!(generate(session, sampler, 10, &mut heard), yuan_finish::YUAN_FINISH_LENGTH);
        let mut next = 0;
        ok(unsafe { yuan_session_sample(session, sampler, &raw mut next) });
        ok(eval(session, &[next]));
        let all = tokens(session);
        ok(yuan_sampler_free(sampler));
        ok(yuan_session_free(session));
        all
    };
    let alone: Vec<_> = (0..4).map(answer).collect();
    let threads: Vec<_> = (0..4).map(|i| std::thread::spawn(move || answer(i))).collect();
    let together: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(together, alone);
    ok(yuan_engine_free(engine));
}

#[test]
fn a_session_in_use_is_busy_and_may_be_cancelled_or_freed() {
    let (engine, sampler) = (engine(), sampler(0.8, 3));
    let session = session(engine);
    ok(eval(session, &[5, 6, 7]));
    let (address, chooser) = (session.addr(), sampler.addr());
    let handle = move || std::ptr::without_provenance_mut::<yuan_session>(address);
    let elsewhere = move |work: fn(*mut yuan_session) -> yuan_status| {
        std::thread::spawn(move || work(std::ptr::without_provenance_mut(address))).join().unwrap()
    };
    let mut heard = Heard {
        then: Some(Box::new(move |count| {
            match count {
                1 => {
                    // From the callback itself, and from another thread.
                    assert_eq!(eval(handle(), &[1]), YUAN_ERROR_BUSY);
                    assert_eq!(elsewhere(|session| eval(session, &[1])), YUAN_ERROR_BUSY);
                    let sampler = std::ptr::without_provenance_mut(chooser);
                    assert_eq!(yuan_sampler_set_seed(sampler, 1), YUAN_ERROR_BUSY);
                }
                4 => assert_eq!(elsewhere(|session| yuan_session_cancel(session)), YUAN_OK),
                _ => assert!(count < 5, "cancelled"),
            }
            0
        })),
        ..Heard::default()
    };
    assert_eq!(generate(session, sampler, 100, &mut heard), yuan_finish::YUAN_FINISH_CANCELLED);
    assert_eq!(tokens(session), [&[5, 6, 7], &heard.tokens[..4]].concat());

    heard.then = Some(Box::new(move |_| {
        assert_eq!(elsewhere(|session| yuan_session_free(session)), YUAN_OK);
        0
    }));
    assert_eq!(generate(session, sampler, 100, &mut heard), yuan_finish::YUAN_FINISH_CANCELLED);
    fails(eval(session, &[1]), YUAN_ERROR_HANDLE, "it was freed");
    ok(yuan_sampler_free(sampler));
    ok(yuan_engine_free(engine));
}

#[test]
fn progress_can_stop_a_prompt_and_the_rest_goes_on() {
    unsafe extern "C" fn stop(done: u64, total: u64, heard: *mut c_void) -> i32 {
        unsafe { &mut *heard.cast::<Vec<(u64, u64)>>() }.push((done, total));
        1
    }
    let engine = engine();
    let (stopped, whole) = (session(engine), session(engine));
    let prompt: Vec<u32> = (0..700).map(|i| i * 7 % 500).collect();
    let mut heard: Vec<(u64, u64)> = Vec::new();
    let user_data = (&raw mut heard).cast();
    let status = unsafe { yuan_session_eval(stopped, prompt.as_ptr(), 700, Some(stop), user_data) };
    fails(status, YUAN_ERROR_CANCELLED, "stopped on request");
    let held = tokens(stopped).len();
    assert!(held < 700 && heard == [(held as u64, 700)], "{held} {heard:?}");
    ok(eval(stopped, &prompt[held..]));
    ok(eval(whole, &prompt));
    assert!(logits(stopped) == logits(whole));

    // Back, somewhere else, and here again: the same bits.
    ok(yuan_session_rewind(stopped, 333));
    ok(eval(stopped, &[1, 2, 3]));
    ok(unsafe { yuan_session_sync(stopped, prompt.as_ptr(), 700, None, null_mut()) });
    assert!(logits(stopped) == logits(whole));
    fails(yuan_session_rewind(stopped, 701), YUAN_ERROR_ARGUMENT, "700");
    [stopped, whole].into_iter().for_each(|session| ok(yuan_session_free(session)));
    ok(yuan_engine_free(engine));
}

#[test]
fn a_saved_session_goes_on_as_if_nothing_had_happened() {
    let folder = common::folder();
    let file = c(folder.path().join("saved").to_str().unwrap());
    let (one, chooser) = (engine(), sampler(1.0, 11));
    let session = session(one);
    ok(eval(session, &[9, 8, 7]));
    generate(session, chooser, 10, &mut Heard::default());
    ok(unsafe { yuan_session_save(session, chooser, file.as_ptr()) });
    let mut expected = Heard::default();
    generate(session, chooser, 20, &mut expected);

    let (other, fresh, mut restored) = (engine(), sampler(0.0, 0), null_mut());
    ok(unsafe { yuan_session_restore(other, file.as_ptr(), null(), fresh, &raw mut restored) });
    let mut found = Heard::default();
    ok(yuan_sampler_set_ignore_eod(fresh, 1));
    generate(restored, fresh, 20, &mut found);
    assert_eq!(found.tokens, expected.tokens);
    assert_eq!(tokens(restored), tokens(session));
    let nowhere = c(folder.path().join("no/saved").to_str().unwrap());
    fails(unsafe { yuan_session_save(session, null(), nowhere.as_ptr()) }, YUAN_ERROR_FILE, "no");
    [session, restored].into_iter().for_each(|session| ok(yuan_session_free(session)));
    [chooser, fresh].into_iter().for_each(|sampler| ok(yuan_sampler_free(sampler)));
    [one, other].into_iter().for_each(|engine| ok(yuan_engine_free(engine)));
}

#[test]
fn eight_sessions_on_one_engine_say_the_same_at_once_as_one_after_the_other() {
    let engine = engine().addr();
    let answer = |seed: u32| {
        let session = session(std::ptr::without_provenance(engine));
        let sampler = sampler(0.9, seed.into());
        let prompt: Vec<u32> = (0..40 + 30 * seed).map(|i| (i * 31 + seed) % 500).collect();
        ok(eval(session, &prompt));
        let mut heard = Heard::default();
        generate(session, sampler, 40, &mut heard);
        ok(yuan_session_free(session));
        ok(yuan_sampler_free(sampler));
        (heard.tokens, heard.text)
    };
    let one_by_one: Vec<_> = (0..8).map(answer).collect();
    let at_once: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|seed| scope.spawn(move || answer(seed))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(at_once == one_by_one);
    assert!(one_by_one[0] != one_by_one[1]);
    ok(yuan_engine_free(std::ptr::without_provenance_mut(engine)));
}

#[test]
fn the_log_reaches_its_callback() {
    static LINES: Mutex<Vec<(i32, String)>> = Mutex::new(Vec::new());
    unsafe extern "C" fn log(level: i32, line: *const c_char, _: *mut c_void) {
        let line = unsafe { CStr::from_ptr(line) }.to_str().unwrap().to_owned();
        LINES.lock().unwrap().push((level, line));
    }
    fails(unsafe { yuan_log_set(Some(log), 9, null_mut()) }, YUAN_ERROR_ARGUMENT, "choose 1 to 5");
    ok(unsafe { yuan_log_set(Some(log), 3, null_mut()) });
    // A full context that is shifted is told.
    let (engine, sampler, mut options, mut session) = (engine(), sampler(0.7, 1), null_mut(), null_mut());
    ok(unsafe { yuan_session_options_new(&raw mut options) });
    ok(yuan_session_options_set_context(options, 16));
    ok(yuan_session_options_set_context_shift(options, 1, 2));
    ok(unsafe { yuan_session_new(engine, options, &raw mut session) });
    ok(eval(session, &[1, 2, 3]));
    assert_eq!(generate(session, sampler, 30, &mut Heard::default()), yuan_finish::YUAN_FINISH_LENGTH);
    ok(unsafe { yuan_log_set(None, 0, null_mut()) });
    let lines = LINES.lock().unwrap();
    assert!(
        lines.iter().any(|(level, line)| *level == 3 && line.contains("the context is full")),
        "{lines:?}"
    );
    ok(yuan_session_free(session));
    ok(yuan_session_options_free(options));
    ok(yuan_sampler_free(sampler));
    ok(yuan_engine_free(engine));
}

#[test]
fn versions_and_names_are_texts() {
    let text = |text: *const c_char| unsafe { CStr::from_ptr(text) }.to_str().unwrap();
    assert_eq!(text(yuan_version()), env!("CARGO_PKG_VERSION"));
    assert_eq!(yuan_abi_version(), YUAN_ABI_VERSION);
    assert_eq!(text(yuan_status_name(YUAN_ERROR_BUSY as i32)), "YUAN_ERROR_BUSY");
    assert_eq!(text(yuan_status_name(-1)), "unknown");
}
