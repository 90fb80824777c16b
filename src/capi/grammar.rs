//! What the answers of a session have to be.

use std::{ffi::c_char, sync::PoisonError};

use super::{
    args,
    border::call,
    handles::exclusive,
    session::{SESSIONS, yuan_session},
    status::{Failure, yuan_status},
};
use crate::grammar::Grammar;

/// From now on yuan_session_generate answers with JSON that meets this JSON schema: tokens that do not fit are not chosen, what has to follow is not
/// computed, and the answer ends when it is complete. {"type": "object"} is any object. It takes the place of a grammar or an expression; NULL takes
/// it away. YUAN_ERROR_ARGUMENT when it is no schema, has parts that are not supported, or is met by nothing; what was set before stays then. One
/// call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_set_json_schema(
    session: *mut yuan_session,
    schema: *const c_char,
) -> yuan_status {
    // SAFETY: the contract of the header.
    unsafe { set(session, "the JSON schema", schema, Grammar::json_schema) }
}

/// As yuan_session_set_json_schema: answers are texts of this grammar, in Lark's notation with the rule "start".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_set_grammar(
    session: *mut yuan_session,
    lark: *const c_char,
) -> yuan_status {
    // SAFETY: the contract of the header.
    unsafe { set(session, "the grammar", lark, |text| Ok(Grammar::Lark(text.to_owned()))) }
}

/// As yuan_session_set_json_schema: answers are texts that this regular expression matches as a whole.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_session_set_regex(
    session: *mut yuan_session,
    regex: *const c_char,
) -> yuan_status {
    // SAFETY: the contract of the header.
    unsafe { set(session, "the regular expression", regex, |text| Ok(Grammar::Regex(text.to_owned()))) }
}

/// # Safety
/// As [`args::c_text`], but for null.
unsafe fn set(
    session: *mut yuan_session,
    what: &str,
    text: *const c_char,
    grammar: impl FnOnce(&str) -> crate::Result<Grammar>,
) -> yuan_status {
    call(|| {
        let shared = SESSIONS.get(session)?;
        let constraint = match text.is_null() {
            true => None,
            false => {
                // SAFETY: the contract of this function.
                let grammar = grammar(unsafe { args::c_text(what, text) }?)?;
                let engine = exclusive("session", &shared.session)?.engine().clone();
                Some(engine.constraint(&grammar)?)
            }
        };
        *shared.constraint.lock().unwrap_or_else(PoisonError::into_inner) = constraint;
        Ok::<_, Failure>(())
    })
}
