//! The C surface: how likely given tokens are.
#![allow(clippy::undocumented_unsafe_blocks)] // One for all: a pointer is what the call asks for.

mod common;

use std::{
    ffi::{CStr, CString, c_void},
    ptr::{null, null_mut},
};

use common::sessions::{bits, fresh, tokens};
use yuan::{
    capi::{yuan_status::*, *},
    model::KvType,
    quantize::{Options, synth},
    session::{Engine, Score},
};

fn message() -> String {
    unsafe { CStr::from_ptr(yuan_last_error()) }.to_str().unwrap().to_owned()
}

#[track_caller]
fn ok(status: yuan_status) {
    assert_eq!(status, YUAN_OK, "{}", message());
}

/// What a callback has heard, and of how many scores it wants to hear.
struct Heard(Vec<Score>, usize);

unsafe extern "C" fn hear(
    token: u32,
    logprob: f32,
    best: *const u32,
    logprobs: *const f32,
    count: usize,
    heard: *mut c_void,
) -> i32 {
    let Heard(scores, most) = unsafe { &mut *heard.cast::<Heard>() };
    let best = (0..count).map(|i| unsafe { (*best.add(i), *logprobs.add(i)) }).collect();
    scores.push(Score { token, logprob, best });
    i32::from(scores.len() == *most)
}

#[test]
fn scores_are_told_with_the_best_in_each_place() {
    let folder = common::folder();
    let path = folder.path().join("m.gguf");
    let container = common::synth(synth::tiny(), &Options::default(), 5, &path);
    let twin = Engine::new(container, &common::sessions::two_threads()).unwrap();
    let path = CString::new(path.to_str().unwrap()).unwrap();
    let (mut engine, mut session) = (null_mut(), null_mut());
    ok(unsafe { yuan_engine_open(path.as_ptr(), null(), &raw mut engine) });
    ok(unsafe { yuan_session_new(engine, null(), &raw mut session) });
    let all = tokens(100, 7);
    let score = |count: usize, from: usize, top: usize, heard: &mut Heard| unsafe {
        let heard = (&raw mut *heard).cast();
        yuan_session_score(session, all.as_ptr(), count, from, top, Some(hear), heard)
    };
    let mut heard = Heard(Vec::new(), 0);
    ok(unsafe { yuan_session_return_to(session, [95].as_ptr(), 1) });
    ok(score(100, 95, 3, &mut heard));
    // By the logits of what is before each.
    let wanted = (95..100).map(|i| {
        let mut session = fresh(&twin, &all[..i], KvType::F16);
        Score::of(session.logits().unwrap(), all[i], 3)
    });
    assert!(heard.0 == wanted.collect::<Vec<_>>());
    // The session holds all tokens.
    let (mut logits, mut count) = (vec![0f32; 512], 0);
    ok(unsafe { yuan_session_logits(session, logits.as_mut_ptr(), 512, &raw mut count) });
    assert_eq!(bits(&logits), bits(fresh(&twin, &all, KvType::F16).logits().unwrap()));

    let mut six = Heard(Vec::new(), 6);
    assert_eq!(score(100, 90, 0, &mut six), YUAN_ERROR_CANCELLED);
    assert!(six.0.len() == 6 && six.0.iter().all(|score| score.best.is_empty()));
    for from in [0, 101] {
        assert_eq!(score(100, from, 0, &mut six), YUAN_ERROR_ARGUMENT);
        assert!(message().contains(&format!("place {from}")), "{}", message());
    }
    ok(unsafe { yuan_session_score(session, all.as_ptr(), 50, 1, 0, None, null_mut()) });
    ok(unsafe { yuan_session_tokens(session, null_mut(), 0, &raw mut count) });
    assert_eq!(count, 50);
    ok(yuan_session_free(session));
    ok(yuan_engine_free(engine));
}

#[test]
fn tokens_of_an_answer_are_scored_as_they_are_chosen() {
    let folder = common::folder();
    let path = folder.path().join("m.gguf");
    drop(common::synth(synth::tiny(), &Options::default(), 5, &path));
    let path = CString::new(path.to_str().unwrap()).unwrap();
    let (mut engine, mut session, mut sampler) = (null_mut(), null_mut(), null_mut());
    ok(unsafe { yuan_engine_open(path.as_ptr(), null(), &raw mut engine) });
    ok(unsafe { yuan_session_new(engine, null(), &raw mut session) });
    ok(unsafe { yuan_sampler_new(&raw mut sampler) });
    ok(yuan_sampler_set_ignore_eod(sampler, 1));
    let prompt = tokens(30, 7);
    let answer = |most: usize, heard: &mut Heard| unsafe {
        ok(yuan_session_sync(session, prompt.as_ptr(), prompt.len(), None, null_mut()));
        let (heard, mut finish) = ((&raw mut *heard).cast(), yuan_finish::YUAN_FINISH_STOP);
        ok(yuan_session_generate_scored(session, sampler, most, 3, None, Some(hear), heard, &raw mut finish));
        finish
    };
    let mut chosen = Heard(Vec::new(), 0);
    assert_eq!(answer(12, &mut chosen), yuan_finish::YUAN_FINISH_LENGTH);
    // They are what the session holds now, with the scores that it gives to them as a list.
    let (mut held, mut count) = (vec![0; 42], 0);
    ok(unsafe { yuan_session_tokens(session, held.as_mut_ptr(), 42, &raw mut count) });
    assert!(count == 42 && held[30..].iter().eq(chosen.0.iter().map(|score| &score.token)));
    let mut listed = Heard(Vec::new(), 0);
    let heard = (&raw mut listed).cast();
    ok(unsafe { yuan_session_score(session, held.as_ptr(), 42, 30, 3, Some(hear), heard) });
    assert!(listed.0 == chosen.0);
    // Whoever hears of them can end the answer, which has the last of them.
    let mut five = Heard(Vec::new(), 5);
    assert_eq!(answer(12, &mut five), yuan_finish::YUAN_FINISH_CANCELLED);
    ok(unsafe { yuan_session_tokens(session, null_mut(), 0, &raw mut count) });
    assert!(count == 35 && five.0 == chosen.0[..5]);
    ok(yuan_sampler_free(sampler));
    ok(yuan_session_free(session));
    ok(yuan_engine_free(engine));
}
