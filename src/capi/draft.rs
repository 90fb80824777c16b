//! What answers are drafted from, and what came of it.

use super::{
    args::{self, Out},
    session::{with, yuan_session},
    status::yuan_status,
};
use crate::session::Hint;

/// Drafts answers from these tokens, too: a text that they will probably quote, or begin with, of 131,072 tokens at most, in place of an earlier one; 0 tokens are none. The
/// session keeps a copy. Answers are the same with drafts and without, token by token. One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_draft_from(
    session: *mut yuan_session,
    tokens: *const u32,
    count: usize,
) -> yuan_status {
    // SAFETY: the contract of the header.
    let tokens = || unsafe { args::array("the tokens", tokens, count) };
    with(session, tokens, |session, tokens| {
        session.draft_from(Hint::new(tokens)?);
        Ok(())
    })
}

/// Writes how many tokens of answers the session has guessed and run so far to `drafted`, and how many of them were the next tokens to `accepted`. One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_drafted(
    session: *const yuan_session,
    drafted: *mut u64,
    accepted: *mut u64,
) -> yuan_status {
    let outs = || {
        // SAFETY: the contract of the header.
        let drafted = unsafe { Out::new("the place of the drafts", drafted) }?;
        // SAFETY: as above.
        let accepted = unsafe { Out::new("the place of the accepted drafts", accepted) }?;
        Ok((drafted, accepted))
    };
    with(session, outs, |session, (drafted, accepted)| {
        let done = session.drafted();
        drafted.write(done.tokens);
        accepted.write(done.accepted);
        Ok(())
    })
}
