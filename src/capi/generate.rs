//! Whole answers.

use std::{
    ffi::c_void,
    ops::ControlFlow::{self, Continue},
    sync::PoisonError,
};

use super::{
    args::Out,
    border::call,
    callback::{Scores, Tokens, yuan_score_callback, yuan_token_callback},
    handles::exclusive,
    sampler::{SAMPLERS, yuan_sampler},
    session::{SESSIONS, yuan_session},
    status::yuan_status,
};
use crate::session::{Finish, Limits, Score, Token};

/// Why an answer ended.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum yuan_finish {
    /// With the model's end token or another stop token, which is not shown.
    YUAN_FINISH_STOP = 0,
    /// With a stop text, which is not shown.
    YUAN_FINISH_STOP_TEXT = 1,
    /// As many tokens as were asked for.
    YUAN_FINISH_LENGTH = 2,
    /// A callback or yuan_session_cancel ended it.
    YUAN_FINISH_CANCELLED = 3,
}

/// Chooses up to `most` tokens (SIZE_MAX for no limit) behind those that the session holds, adds them to it, and shows each to `on_token`, which may be
/// NULL, as may `finish`. YUAN_ERROR_CONTEXT_FULL when there is no room for the answer; the session keeps what was shown. One call
/// at a time, for the session and for the sampler.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_generate(
    session: *mut yuan_session,
    sampler: *mut yuan_sampler,
    most: usize,
    on_token: yuan_token_callback,
    user_data: *mut c_void,
    finish: *mut yuan_finish,
) -> yuan_status {
    let tokens = Tokens { callback: on_token, user_data };
    let mut last = 0;
    // SAFETY: the contract of the header.
    unsafe {
        answer(session, sampler, most, None, finish, |token, text| {
            last = token.map_or(last, |token| token.id);
            tokens.tell(last, text)
        })
    }
}

/// As yuan_session_generate, and tells `on_score`, which may be NULL, of each token how likely it was, with the `top` likeliest in its place, before `on_token` hears of
/// it. Both get `user_data`; another value than 0 of either ends the answer. One call at a time, for the session and for the sampler.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)] // Those of yuan_session_generate and of yuan_session_score.
pub unsafe extern "C" fn yuan_session_generate_scored(
    session: *mut yuan_session,
    sampler: *mut yuan_sampler,
    most: usize,
    top: usize,
    on_token: yuan_token_callback,
    on_score: yuan_score_callback,
    user_data: *mut c_void,
    finish: *mut yuan_finish,
) -> yuan_status {
    let tokens = Tokens { callback: on_token, user_data };
    let scores = Scores { callback: on_score, user_data };
    let mut last = 0;
    // SAFETY: the contract of the header.
    unsafe {
        answer(session, sampler, most, Some(top), finish, |token, text| {
            let mut flow = Continue(());
            if let Some(Score { token, logprob, best }) = token.and_then(|token| token.score) {
                last = token;
                let (best, logprobs): (Vec<u32>, Vec<f32>) = best.into_iter().unzip();
                flow = scores.tell(token, logprob, &best, &logprobs);
            }
            // A token that is in the session is heard of in any case.
            let heard = tokens.tell(last, text);
            if flow.is_break() { flow } else { heard }
        })
    }
}

/// An answer; `show` hears what belongs to it.
///
/// # Safety
/// `finish`, where it is neither null nor misaligned, is valid for writes until the call returns.
unsafe fn answer(
    session: *mut yuan_session,
    sampler: *mut yuan_sampler,
    most: usize,
    top: Option<usize>,
    finish: *mut yuan_finish,
    mut show: impl FnMut(Option<Token>, &str) -> ControlFlow<()>,
) -> yuan_status {
    call(|| {
        let out = match finish.is_null() {
            true => None,
            // SAFETY: the contract of this function.
            false => Some(unsafe { Out::new("the place of the finish", finish) }?),
        };
        let (shared, sampler) = (SESSIONS.get(session)?, SAMPLERS.get(sampler)?);
        let mut session = exclusive("session", &shared.session)?;
        let mut chooser = exclusive("sampler", &sampler)?;
        let constraint = shared.constraint.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let limits = Limits { most, shift: shared.shift, constraint, ..chooser.limits.clone() };
        let ended =
            session.generate_scored(&mut chooser.sampler, &limits, top, |token, text| match token {
                // A stop token is no part of the answer.
                Some(token) if token.ends => Continue(()),
                token => show(token, text),
            })?;
        if let Some(out) = out {
            out.write(match ended {
                Finish::Stop => yuan_finish::YUAN_FINISH_STOP,
                Finish::StopText(_) => yuan_finish::YUAN_FINISH_STOP_TEXT,
                Finish::Length => yuan_finish::YUAN_FINISH_LENGTH,
                Finish::Cancelled => yuan_finish::YUAN_FINISH_CANCELLED,
            });
        }
        Ok(())
    })
}
