//! How likely given tokens are.

use std::ffi::c_void;

use super::{
    args,
    callback::{Scores, yuan_score_callback},
    session::{with, yuan_session},
    status::yuan_status,
};
use crate::session::Score;

/// Makes the session hold exactly these tokens, as yuan_session_sync, and tells `on_score`, which may be NULL, of each token from the place `from` on how
/// likely it was behind those before it, with the `top` likeliest in its place. `from` is 1 or more, since the first token has nothing before it, and
/// `count` at most. What lists have in common at their beginning is not run again, in this session or in another. One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_score(
    session: *mut yuan_session,
    tokens: *const u32,
    count: usize,
    from: usize,
    top: usize,
    on_score: yuan_score_callback,
    user_data: *mut c_void,
) -> yuan_status {
    // SAFETY: the contract of the header.
    let tokens = || unsafe { args::array("the tokens", tokens, count) };
    with(session, tokens, |session, tokens| {
        let scores = Scores { callback: on_score, user_data };
        session.score(tokens, from, top, |Score { token, logprob, best }| {
            let (best, logprobs): (Vec<u32>, Vec<f32>) = best.into_iter().unzip();
            scores.tell(token, logprob, &best, &logprobs)
        })?;
        Ok(())
    })
}

/// Keeps what it takes to go back to these places, 15 at most, as yuan_session_sync and yuan_session_score pass them: of another list that is the
/// same up to there nothing is run again before it, or for scores one token. Without it a few tokens more are. It holds until it is said anew. One call at a
/// time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_return_to(
    session: *mut yuan_session,
    places: *const usize,
    count: usize,
) -> yuan_status {
    // SAFETY: the contract of the header.
    let places = || unsafe { args::array("the places", places, count) };
    with(session, places, |session, places| {
        session.return_to(places);
        Ok(())
    })
}
