//! Whole answers.

use std::{ffi::c_void, sync::PoisonError};

use super::{
    args::Out,
    border::call,
    callback::{Tokens, yuan_token_callback},
    handles::exclusive,
    sampler::{SAMPLERS, yuan_sampler},
    session::{SESSIONS, yuan_session},
    status::yuan_status,
};
use crate::session::{Finish, Limits};

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
    call(|| {
        let out = match finish.is_null() {
            true => None,
            // SAFETY: the contract of the header.
            false => Some(unsafe { Out::new("the place of the finish", finish) }?),
        };
        let (shared, sampler) = (SESSIONS.get(session)?, SAMPLERS.get(sampler)?);
        let mut session = exclusive("session", &shared.session)?;
        let mut chooser = exclusive("sampler", &sampler)?;
        let constraint = shared.constraint.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let limits = Limits { most, shift: shared.shift, constraint, ..chooser.limits.clone() };
        let tokens = Tokens { callback: on_token, user_data };
        let mut last = 0;
        let ended = session.generate(&mut chooser.sampler, &limits, |token, text| {
            last = token.unwrap_or(last);
            tokens.tell(last, text)
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
