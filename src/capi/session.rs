//! Sequences: tokens in, logits and embeddings out.

use std::{
    ffi::{c_char, c_void},
    sync::{Arc, Mutex},
};

use super::{
    args::{self, Buffer, Out},
    border::call,
    callback::{Progress, yuan_progress_callback},
    engine::{ENGINES, yuan_engine},
    handles::{Table, exclusive},
    sampler::{SAMPLERS, yuan_sampler},
    session_options::{self, yuan_session_options},
    status::{Failure, yuan_status},
};
use crate::{
    grammar::Constraint,
    session::{Cancel, Session},
};

/// One sequence of tokens on an engine, for one call at a time. A handle: it points to nothing.
pub struct yuan_session(());

/// A session, and what may be used while it is in use.
pub(super) struct Shared {
    pub shift: Option<usize>,
    /// What answers have to be.
    pub constraint: Mutex<Option<Constraint>>,
    pub session: Mutex<Session>,
    cancel: Cancel,
}

pub(super) static SESSIONS: Table<Shared> = Table::new("session");

impl Shared {
    pub fn new(session: Session, shift: Option<usize>) -> Self {
        let cancel = session.cancel_token();
        Self { shift, constraint: Mutex::new(None), cancel, session: Mutex::new(session) }
    }
}

/// Makes an empty session on an engine; `options` may be NULL. Free it with yuan_session_free. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_new(
    engine: *const yuan_engine,
    options: *const yuan_session_options,
    session: *mut *mut yuan_session,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let out = unsafe { Out::new("the place of the session", session) }?;
        let engine = ENGINES.get(engine)?;
        let options = session_options::get(options)?;
        let context = options.context.unwrap_or(engine.model().config().context);
        let mut session = Session::new(Arc::clone(&engine), context, options.kv)?;
        session.set_drafts(options.drafts);
        SESSIONS.add(Shared::new(session, options.shift), out)
    })
}

/// Frees a session; a call that is using it in another thread is cancelled. NULL is nothing to free. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_session_free(session: *mut yuan_session) -> yuan_status {
    call(|| {
        if let Some(session) = SESSIONS.remove(session)? {
            session.cancel.cancel_all();
        }
        Ok(())
    })
}

/// Stops the call that is running tokens on the session: it returns YUAN_ERROR_CANCELLED (yuan_session_generate: YUAN_OK, with a finish that says
/// so), and the session holds the tokens that were run. Where none is running nothing happens: a request that comes too late does not stop the
/// next call. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_session_cancel(session: *const yuan_session) -> yuan_status {
    call(|| {
        SESSIONS.get(session)?.cancel.cancel();
        Ok(())
    })
}

/// How many tokens the session has room for. One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_capacity(
    session: *const yuan_session,
    capacity: *mut usize,
) -> yuan_status {
    // SAFETY: the contract of the header.
    let out = || unsafe { Out::new("the place of the capacity", capacity) };
    with(session, out, |session, out| {
        out.write(session.capacity());
        Ok(())
    })
}

/// Copies the tokens that the session holds, and writes how many they are to `count`. One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_tokens(
    session: *const yuan_session,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> yuan_status {
    // SAFETY: the contract of the header.
    let buffer = || unsafe { Buffer::new(tokens, capacity, count) };
    with(session, buffer, |session, buffer| buffer.fill(session.tokens()))
}

/// Runs `count` tokens behind those that the session holds. `progress` may be NULL. When it is stopped the session holds what was
/// run. One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_eval(
    session: *mut yuan_session,
    tokens: *const u32,
    count: usize,
    progress: yuan_progress_callback,
    user_data: *mut c_void,
) -> yuan_status {
    // SAFETY: the contract of the header.
    let tokens = || unsafe { args::array("the tokens", tokens, count) };
    with(session, tokens, |session, tokens| {
        let progress = Progress { callback: progress, user_data };
        session.extend(tokens, |done| progress.tell(done as u64, tokens.len() as u64))?;
        Ok(())
    })
}

/// Makes the session hold exactly these tokens. What it has in common with them at the beginning is not run again, but for a few
/// tokens before the first difference; the result is the same bit for bit. `progress` may be NULL. One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_sync(
    session: *mut yuan_session,
    tokens: *const u32,
    count: usize,
    progress: yuan_progress_callback,
    user_data: *mut c_void,
) -> yuan_status {
    // SAFETY: the contract of the header.
    let tokens = || unsafe { args::array("the tokens", tokens, count) };
    with(session, tokens, |session, tokens| {
        let progress = Progress { callback: progress, user_data };
        session.sync(tokens, |done| progress.tell(done as u64, tokens.len() as u64))?;
        Ok(())
    })
}

/// Keeps a text of the program with the session, in the files that it is saved to too; UTF-8 of `length` bytes, in place of an earlier one. One call
/// at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_set_note(
    session: *mut yuan_session,
    note: *const c_char,
    length: usize,
) -> yuan_status {
    // SAFETY: the contract of the header.
    let note = || unsafe { args::text("the note", note, length) };
    with(session, note, |session, note| {
        session.note = note.to_owned();
        Ok(())
    })
}

/// Copies the text that was kept with the session, with a NUL behind it, and writes the bytes that it needs to `needed`. One call
/// at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_note(
    session: *const yuan_session,
    note: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> yuan_status {
    // SAFETY: the contract of the header.
    let buffer = || unsafe { Buffer::new(note, capacity, needed) };
    with(session, buffer, |session, buffer| buffer.fill_text(&session.note))
}

/// Keeps the first `position` tokens, which may be 0 and no more than there are. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_session_rewind(session: *mut yuan_session, position: usize) -> yuan_status {
    with(
        session,
        || Ok(()),
        |session, ()| {
            let kept = session.tokens().get(..position).map(<[u32]>::to_vec).ok_or_else(|| {
                let held = session.position();
                Failure::argument(format!("position {position} is behind the {held} tokens of the session"))
            })?;
            session.sync(&kept, |_| std::ops::ControlFlow::Continue(()))?;
            Ok(())
        },
    )
}

/// Copies the logits behind the last token, one for every token of the vocabulary (yuan_engine_vocab_size). One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_logits(
    session: *mut yuan_session,
    logits: *mut f32,
    capacity: usize,
    count: *mut usize,
) -> yuan_status {
    // SAFETY: the contract of the header.
    let buffer = || unsafe { Buffer::new(logits, capacity, count) };
    with(session, buffer, |session, buffer| buffer.fill(session.logits()?))
}

/// Copies the last hidden state of the last token (behind the final norm), yuan_engine_hidden_size numbers: an embedding of all tokens.
/// One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_embedding(
    session: *mut yuan_session,
    embedding: *mut f32,
    capacity: usize,
    count: *mut usize,
) -> yuan_status {
    // SAFETY: the contract of the header.
    let buffer = || unsafe { Buffer::new(embedding, capacity, count) };
    with(session, buffer, |session, buffer| buffer.fill(session.embedding()?))
}

/// Chooses the next token from the logits behind the last. It is not run: yuan_session_eval does that. One call at a time, for the
/// session and for the sampler.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_sample(
    session: *mut yuan_session,
    sampler: *mut yuan_sampler,
    token: *mut u32,
) -> yuan_status {
    // SAFETY: the contract of the header.
    let out = || unsafe { Out::new("the place of the token", token) };
    with(session, out, |session, out| {
        let sampler = SAMPLERS.get(sampler)?;
        let mut chooser = exclusive("sampler", &sampler)?;
        chooser.sampler.follow(session.tokens());
        out.write(session.sample(&mut chooser.sampler)?);
        Ok(())
    })
}

/// A call on a session: its arguments are checked first, then nobody else may use the session.
pub(super) fn with<A>(
    session: *const yuan_session,
    args: impl FnOnce() -> Result<A, Failure>,
    body: impl FnOnce(&mut Session, A) -> Result<(), Failure>,
) -> yuan_status {
    call(|| {
        let args = args()?;
        let shared = SESSIONS.get(session)?;
        body(&mut *exclusive("session", &shared.session)?, args)
    })
}
