//! How to make a session.

use std::{ffi::c_char, sync::Mutex};

use super::{
    args::{self, Out},
    border::call,
    engine::named,
    handles::{Table, exclusive},
    status::{Failure, yuan_status},
};
use crate::{limits::check_context, model::KvType, session::Drafts};

/// How to make a session. A handle: it points to nothing.
pub struct yuan_session_options(());

/// The options of one session.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {
    /// Room for tokens, where it was said.
    pub context: Option<usize>,
    pub kv: KvType,
    /// Tokens to keep when the context is full and shifted.
    pub shift: Option<usize>,
    /// Whether answers are drafted.
    pub drafts: Drafts,
}

static OPTIONS: Table<Mutex<Options>> = Table::new("session_options");

/// The options behind a handle, the default for null.
pub(super) fn get(options: *const yuan_session_options) -> Result<Options, Failure> {
    if options.is_null() {
        return Ok(Options::default());
    }
    let options = OPTIONS.get(options)?;
    Ok(*exclusive("session options", &options)?)
}

/// Makes options: the context that the model was made for, a key-value cache in f16. Free them with
/// yuan_session_options_free; a session keeps nothing of them. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_options_new(options: *mut *mut yuan_session_options) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let out = unsafe { Out::new("the place of the options", options) }?;
        OPTIONS.add(Mutex::new(Options::default()), out)
    })
}

/// Frees options. NULL is nothing to free. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_session_options_free(options: *mut yuan_session_options) -> yuan_status {
    call(|| OPTIONS.remove(options).map(drop))
}

/// Room for this many tokens, prompt and answer, 2^24 at most; 0 for what the model was made for. Memory is used as the session fills. One call
/// at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_session_options_set_context(
    options: *mut yuan_session_options,
    tokens: usize,
) -> yuan_status {
    set(options, |options| {
        options.context = (check_context(tokens)? != 0).then_some(tokens);
        Ok(())
    })
}

/// The type of the key-value cache: "f16", "q8_0", "q4_0" or "f32", or two of them for keys and values, as in "q8_0:q4_0". One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_options_set_kv_type(
    options: *mut yuan_session_options,
    kv_type: *const c_char,
) -> yuan_status {
    set(options, |options| {
        // SAFETY: the contract of the header.
        let name = unsafe { args::c_text("the type of the cache", kv_type) }?;
        options.kv = named(name, KvType::from_name, KvType::CHOICES)?;
        Ok(())
    })
}

/// What happens when an answer fills the context: by default, and with `on` 0, an error. With 1 the first `keep` tokens are kept, the older
/// half of the others is dropped, and the rest is run again. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_session_options_set_context_shift(
    options: *mut yuan_session_options,
    on: i32,
    keep: usize,
) -> yuan_status {
    set(options, |options| {
        options.shift = (on != 0).then_some(keep);
        Ok(())
    })
}

/// Whether the next tokens of answers are guessed from what was said before, and up to 3 of them checked in the pass of a token: "auto", which is what happens where nothing is
/// said, as far as that is faster; "off"; or "1", "2" or "3" wherever there is a guess. Answers are the same. One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_options_set_draft(
    options: *mut yuan_session_options,
    draft: *const c_char,
) -> yuan_status {
    set(options, |options| {
        // SAFETY: the contract of the header.
        let name = unsafe { args::c_text("the drafts", draft) }?;
        options.drafts = name.parse()?;
        Ok(())
    })
}

fn set(
    options: *mut yuan_session_options,
    change: impl FnOnce(&mut Options) -> Result<(), Failure>,
) -> yuan_status {
    call(|| {
        let options = OPTIONS.get(options)?;
        change(&mut *exclusive("session options", &options)?)
    })
}
