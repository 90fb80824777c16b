//! Sequences: tokens in, logits and text out.

use std::{
    ffi::c_void,
    ops::ControlFlow,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use super::{
    args::{self, Buffer, Out},
    border::call,
    callback::{Progress, yuan_progress_callback},
    engine::{ENGINES, Engine, yuan_engine},
    handles::{Table, exclusive},
    sampler::{SAMPLERS, yuan_sampler},
    session_options::{self, yuan_session_options},
    status::{Failure, yuan_status},
};
use crate::session::Session;

/// One sequence of tokens on an engine, for one call at a time. A handle: it points to nothing.
pub struct yuan_session(());

/// A session, and what may be used while it is in use.
pub(super) struct Shared {
    pub engine: Arc<Engine>,
    cancelled: AtomicBool,
    inner: Mutex<Inner>,
}

/// What one call at a time uses.
pub(super) struct Inner {
    pub session: Session,
    /// Of the last token; empty before the first.
    pub logits: Vec<f32>,
}

pub(super) static SESSIONS: Table<Shared> = Table::new("session");

impl Shared {
    /// The session for this call alone. Requests to cancel an earlier call are over.
    pub fn begin(&self) -> Result<MutexGuard<'_, Inner>, Failure> {
        let inner = exclusive("session", &self.inner)?;
        self.cancelled.store(false, Relaxed);
        Ok(inner)
    }

    /// What a callback said, unless the call was cancelled.
    pub fn flow(&self, said: ControlFlow<()>) -> ControlFlow<()> {
        if self.cancelled.load(Relaxed) { ControlFlow::Break(()) } else { said }
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
        let options = session_options::get(options, &engine)?;
        let session = Session::new(engine.model.clone(), options.context, options.kv)?;
        let inner = Mutex::new(Inner { session, logits: Vec::new() });
        SESSIONS.add(Shared { engine, cancelled: AtomicBool::new(false), inner }, out)
    })
}

/// Frees a session; a call that is using it in another thread is cancelled. NULL is nothing to free. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_session_free(session: *mut yuan_session) -> yuan_status {
    call(|| {
        if let Some(session) = SESSIONS.remove(session)? {
            session.cancelled.store(true, Relaxed);
        }
        Ok(())
    })
}

/// Stops the call that is using the session: it returns YUAN_ERROR_CANCELLED (yuan_session_generate: YUAN_OK, with a finish that
/// says so) after the tokens that are in work. Does nothing when no call is using it. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_session_cancel(session: *const yuan_session) -> yuan_status {
    call(|| {
        SESSIONS.get(session)?.cancelled.store(true, Relaxed);
        Ok(())
    })
}

/// How many tokens the session holds, and, where `context` is not NULL, how many it has room for. One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_position(
    session: *const yuan_session,
    position: *mut usize,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let out = unsafe { Out::new("the place of the position", position) }?;
        out.write(SESSIONS.get(session)?.begin()?.session.position());
        Ok(())
    })
}

/// Runs `count` tokens behind those that the session holds; the logits are then those of the last. `progress` may be NULL.
/// When it fails the session stands where it stopped: yuan_session_position says where. One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_eval(
    session: *mut yuan_session,
    tokens: *const u32,
    count: usize,
    progress: yuan_progress_callback,
    user_data: *mut c_void,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let tokens = unsafe { args::array("the tokens", tokens, count) }?;
        let shared = SESSIONS.get(session)?;
        let mut inner = shared.begin()?;
        let progress = Progress { callback: progress, user_data };
        let tell = |done| shared.flow(progress.tell(done, count));
        inner.logits = inner.session.extend(tokens, tell)?;
        Ok(())
    })
}

/// Copies the logits of the last token, one for every token of the vocabulary. `capacity` and `count` are as with every buffer. One
/// call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_logits(
    session: *const yuan_session,
    logits: *mut f32,
    capacity: usize,
    count: *mut usize,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let buffer = unsafe { Buffer::new(logits, capacity, count) }?;
        buffer.fill(SESSIONS.get(session)?.begin()?.logits()?)
    })
}

/// Chooses the next token from the logits of the last. It is not run: yuan_session_eval does that. One call at a time, for the
/// session and for the sampler.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_sample(
    session: *mut yuan_session,
    sampler: *mut yuan_sampler,
    token: *mut u32,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let out = unsafe { Out::new("the place of the token", token) }?;
        let (shared, sampler) = (SESSIONS.get(session)?, SAMPLERS.get(sampler)?);
        let (inner, mut chooser) = (shared.begin()?, exclusive("sampler", &sampler)?);
        out.write(chooser.sampler.sample(inner.logits()?));
        Ok(())
    })
}

impl Inner {
    pub fn logits(&self) -> Result<&[f32], Failure> {
        if self.logits.is_empty() {
            return Err(Failure::argument(
                "the session has no logits yet; run tokens with yuan_session_eval",
            ));
        }
        Ok(&self.logits)
    }
}
