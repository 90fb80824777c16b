//! Whole answers.

use std::ffi::c_void;

use super::{
    args::Out,
    border::call,
    callback::{Tokens, yuan_token_callback},
    handles::exclusive,
    sampler::{SAMPLERS, yuan_sampler},
    session::{SESSIONS, yuan_session},
    status::yuan_status,
};
use crate::session::Finish;

/// Why an answer ended.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum yuan_finish {
    /// With the model's end token, which is not shown, or another stop of the sampler.
    YUAN_FINISH_STOP = 0,
    /// As many tokens as were asked for.
    YUAN_FINISH_LENGTH = 1,
    /// A callback or yuan_session_cancel ended it.
    YUAN_FINISH_CANCELLED = 2,
}

/// Chooses up to `most` tokens after those that the session holds, and shows each to `on_token`. `finish` may be NULL. One call at
/// a time, for the session and for the sampler.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_generate(
    session: *mut yuan_session,
    sampler: *mut yuan_sampler,
    most: usize,
    on_token: yuan_token_callback,
    user_data: *mut c_void,
    finish: *mut yuan_finish,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let out = match finish.is_null() {
            true => None,
            // SAFETY: the contract of the header.
            false => Some(unsafe { Out::new("the place of the finish", finish) }?),
        };
        let (shared, sampler) = (SESSIONS.get(session)?, SAMPLERS.get(sampler)?);
        let (mut inner, mut chooser) = (shared.begin()?, exclusive("sampler", &sampler)?);
        let tokens = Tokens { callback: on_token, user_data };
        let tokenizer = &shared.engine.tokenizer;
        let stops: Vec<u32> = tokenizer.eod().into_iter().collect();
        let mut stream = tokenizer.stream();
        let mut last = 0;
        let logits = inner.logits()?.to_vec();
        let ended = inner.session.generate(logits, most, &stops, &mut chooser.sampler, |token| {
            last = token;
            shared.flow(tokens.tell(token, &stream.push(token)))
        })?;
        let rest = stream.finish();
        if !rest.is_empty() {
            let _ = tokens.tell(last, &rest);
        }
        if let Some(out) = out {
            out.write(match ended {
                Finish::Stop => yuan_finish::YUAN_FINISH_STOP,
                Finish::Length => yuan_finish::YUAN_FINISH_LENGTH,
                Finish::Cancelled => yuan_finish::YUAN_FINISH_CANCELLED,
            });
        }
        Ok(())
    })
}
