//! Sessions in files.

use std::{ffi::c_char, sync::Arc};

use super::{
    args::{self, Out},
    border::call,
    engine::{ENGINES, yuan_engine},
    handles::exclusive,
    sampler::{SAMPLERS, yuan_sampler},
    session::{SESSIONS, Shared, yuan_session},
    session_options::{self, yuan_session_options},
    status::yuan_status,
};
use crate::session::Session;

/// Writes a session to a file, and where the random choices of a sampler stand, which may be NULL. A file of that name is replaced when the
/// new one is whole. One call at a time, for the session and for the sampler.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_save(
    session: *const yuan_session,
    sampler: *const yuan_sampler,
    path: *const c_char,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let path = unsafe { args::path(path) }?;
        let shared = SESSIONS.get(session)?;
        let session = exclusive("session", &shared.session)?;
        if sampler.is_null() {
            return Ok(session.save(&path, None)?);
        }
        let sampler = SAMPLERS.get(sampler)?;
        let chooser = exclusive("sampler", &sampler)?;
        Ok(session.save(&path, Some(&chooser.sampler))?)
    })
}

/// Makes a session of a file: it goes on with the bits that it would have had without the pause. The file must be of the same model, opened with
/// the same rotary convention and arithmetic. `options` may be NULL: then the room for tokens is what it was; the type of the
/// key-value cache is always the file's. `sampler` may be NULL; where the file has a sampler it becomes that one. Free the session with
/// yuan_session_free. Any thread; one call at a time for the sampler.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_restore(
    engine: *const yuan_engine,
    path: *const c_char,
    options: *const yuan_session_options,
    sampler: *mut yuan_sampler,
    session: *mut *mut yuan_session,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let (path, out) = unsafe { (args::path(path)?, Out::new("the place of the session", session)?) };
        let engine = ENGINES.get(engine)?;
        let options = session_options::get(options)?;
        let sampler = if sampler.is_null() { None } else { Some(SAMPLERS.get(sampler)?) };
        let mut chooser = sampler.as_deref().map(|sampler| exclusive("sampler", sampler)).transpose()?;
        let mut restored = Session::restore(Arc::clone(&engine), &path, options.context)?;
        if let (Some(chooser), Some(sampler)) = (&mut chooser, restored.sampler) {
            chooser.sampler = sampler;
        }
        engine.warm(&restored.hot);
        restored.session.set_drafts(options.drafts);
        SESSIONS.add(Shared::new(restored.session, options.shift), out)
    })
}
