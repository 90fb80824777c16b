//! What every call returns, and the message behind it.

use std::{
    cell::RefCell,
    ffi::{CStr, CString, c_char},
};

use crate::error::Error;

/// What a call returns. Values never change their meaning; new ones may come.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum yuan_status {
    /// It worked.
    YUAN_OK = 0,
    /// An argument is null, misaligned, out of range, no UTF-8, or makes no sense.
    YUAN_ERROR_ARGUMENT = 1,
    /// A handle is null, was freed, or is of another kind.
    YUAN_ERROR_HANDLE = 2,
    /// The session or the sampler is in use by another call, in another thread or around a callback.
    YUAN_ERROR_BUSY = 3,
    /// A callback or yuan_session_cancel stopped the call.
    YUAN_ERROR_CANCELLED = 4,
    /// A buffer has no room for the answer; the length that it needs was written.
    YUAN_ERROR_BUFFER_TOO_SMALL = 5,
    /// The context has no room for more tokens.
    YUAN_ERROR_CONTEXT_FULL = 6,
    /// The operating system refused to open, read or write a file.
    YUAN_ERROR_FILE = 7,
    /// A file is damaged, truncated, or not what its name says.
    YUAN_ERROR_BAD_FILE = 8,
    /// A file is sound, but asks for something that is not built.
    YUAN_ERROR_UNSUPPORTED = 9,
    /// The disk has no room for an output.
    YUAN_ERROR_DISK_FULL = 10,
    /// There is not enough memory.
    YUAN_ERROR_MEMORY = 11,
    /// A mistake in the library: please report it with the message. The handles of the call can only be freed.
    YUAN_ERROR_INTERNAL = 12,
    /// A GPU has failed. The call can be made again: it then runs without the GPU.
    YUAN_ERROR_GPU = 13,
}

use yuan_status::*;

/// A call that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub status: yuan_status,
    pub message: String,
}

impl Failure {
    pub fn new(status: yuan_status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub fn argument(message: impl Into<String>) -> Self {
        Self::new(YUAN_ERROR_ARGUMENT, message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                YUAN_ERROR_DISK_FULL
            }
            Error::Io { .. } => YUAN_ERROR_FILE,
            Error::BadFile { .. } | Error::Tensors { .. } | Error::Checksum { .. } => YUAN_ERROR_BAD_FILE,
            Error::Unsupported { .. } => YUAN_ERROR_UNSUPPORTED,
            Error::DiskFull { .. } => YUAN_ERROR_DISK_FULL,
            Error::ContextFull { .. } => YUAN_ERROR_CONTEXT_FULL,
            Error::Memory(_) => YUAN_ERROR_MEMORY,
            Error::Argument(_) => YUAN_ERROR_ARGUMENT,
            Error::Internal(_) => YUAN_ERROR_INTERNAL,
            Error::Cancelled => YUAN_ERROR_CANCELLED,
            Error::Gpu { .. } => YUAN_ERROR_GPU,
        };
        Self::new(status, error.to_string())
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Keeps the message of a failed call for [`yuan_last_error`], without the NULs that it may quote.
pub(super) fn remember(message: &str) {
    let message = CString::new(message.replace('\0', "\\0")).unwrap_or_default();
    // A thread that is ending has no message any more.
    let _ = LAST.try_with(|last| *last.borrow_mut() = message);
}

/// The message of the last call of this thread that failed: what is wrong, where, and what to do about it, in English
/// and UTF-8. Empty when none failed. The text belongs to the library and stands until the next call of this thread
/// fails. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// The name of a status ("YUAN_ERROR_BUSY"), or "unknown". The text is static. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_status_name(status: i32) -> *const c_char {
    let names: [(yuan_status, &CStr); 14] = [
        (YUAN_OK, c"YUAN_OK"),
        (YUAN_ERROR_ARGUMENT, c"YUAN_ERROR_ARGUMENT"),
        (YUAN_ERROR_HANDLE, c"YUAN_ERROR_HANDLE"),
        (YUAN_ERROR_BUSY, c"YUAN_ERROR_BUSY"),
        (YUAN_ERROR_CANCELLED, c"YUAN_ERROR_CANCELLED"),
        (YUAN_ERROR_BUFFER_TOO_SMALL, c"YUAN_ERROR_BUFFER_TOO_SMALL"),
        (YUAN_ERROR_CONTEXT_FULL, c"YUAN_ERROR_CONTEXT_FULL"),
        (YUAN_ERROR_FILE, c"YUAN_ERROR_FILE"),
        (YUAN_ERROR_BAD_FILE, c"YUAN_ERROR_BAD_FILE"),
        (YUAN_ERROR_UNSUPPORTED, c"YUAN_ERROR_UNSUPPORTED"),
        (YUAN_ERROR_DISK_FULL, c"YUAN_ERROR_DISK_FULL"),
        (YUAN_ERROR_MEMORY, c"YUAN_ERROR_MEMORY"),
        (YUAN_ERROR_INTERNAL, c"YUAN_ERROR_INTERNAL"),
        (YUAN_ERROR_GPU, c"YUAN_ERROR_GPU"),
    ];
    names.iter().find(|(s, _)| *s as i32 == status).map_or(c"unknown", |(_, name)| name).as_ptr()
}
