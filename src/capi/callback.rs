//! What the library calls back.

use std::{
    ffi::{CString, c_char, c_void},
    ops::ControlFlow,
};

/// Hears a log line: its level (1 error, 2 warning, 3 information, 4 debug, 5 trace) and its text, which stands until the
/// callback returns. Called from any thread, also from several at once. It must not call the library.
pub type yuan_log_callback =
    Option<unsafe extern "C" fn(level: i32, message: *const c_char, user_data: *mut c_void)>;

/// Hears how many of `total` tokens are done, or bytes where a model is opened, on the thread that made the call. Another value than 0
/// stops the call, which returns YUAN_ERROR_CANCELLED.
pub type yuan_progress_callback =
    Option<unsafe extern "C" fn(done: u64, total: u64, user_data: *mut c_void) -> i32>;

/// Hears the next piece of an answer, on the thread that made the call: a token, and the text that can be shown now, UTF-8 of `length` bytes
/// with a NUL behind it. The text is empty while a character or a possible stop string is incomplete; what is held back comes
/// with the next token, or at the end with the last token again. It stands until the callback returns. Another value than 0 ends
/// the answer.
pub type yuan_token_callback = Option<
    unsafe extern "C" fn(token: u32, text: *const c_char, length: usize, user_data: *mut c_void) -> i32,
>;

/// Hears how likely a token was in its place, on the thread that made the call: the natural logarithm of its probability, before any setting of a
/// sampler, and the likeliest tokens in its place with theirs, `count` of them, best first. A token has the same number in both. The arrays stand until
/// the callback returns. Another value than 0 stops the call, which returns YUAN_ERROR_CANCELLED.
pub type yuan_score_callback = Option<
    unsafe extern "C" fn(
        token: u32,
        logprob: f32,
        best: *const u32,
        best_logprobs: *const f32,
        count: usize,
        user_data: *mut c_void,
    ) -> i32,
>;

/// A progress callback with its data.
#[derive(Clone, Copy)]
pub(super) struct Progress {
    pub callback: yuan_progress_callback,
    pub user_data: *mut c_void,
}

// SAFETY: it is called by the thread that made a call only. Where options keep it, the documentation of
// `yuan_engine_options_set_progress` asks for data that the threads may use that open engines with them.
unsafe impl Send for Progress {}

impl Progress {
    /// Nobody hears.
    pub const NONE: Self = Self { callback: None, user_data: std::ptr::null_mut() };

    pub fn tell(self, done: u64, total: u64) -> ControlFlow<()> {
        let Some(callback) = self.callback else { return ControlFlow::Continue(()) };
        // SAFETY: the caller gave a function of this type, to be called with its data until the call returns, or as long as the
        // options are there that keep it.
        flow(unsafe { callback(done, total, self.user_data) })
    }
}

/// A token callback with its data.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    pub callback: yuan_token_callback,
    pub user_data: *mut c_void,
}

impl Tokens {
    pub fn tell(self, token: u32, text: &str) -> ControlFlow<()> {
        let Some(callback) = self.callback else { return ControlFlow::Continue(()) };
        let length = text.len();
        // A text may contain a NUL; then its length says more than the NUL behind it.
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        // SAFETY: as in `Progress::tell`; the text outlives the callback.
        flow(unsafe { callback(token, bytes.as_ptr().cast(), length, self.user_data) })
    }
}

/// A score callback with its data.
#[derive(Clone, Copy)]
pub(super) struct Scores {
    pub callback: yuan_score_callback,
    pub user_data: *mut c_void,
}

impl Scores {
    /// `best` and `logprobs` have one length.
    pub fn tell(self, token: u32, logprob: f32, best: &[u32], logprobs: &[f32]) -> ControlFlow<()> {
        let Some(callback) = self.callback else { return ControlFlow::Continue(()) };
        // SAFETY: as in `Progress::tell`; both arrays have `best.len()` elements and outlive the callback.
        flow(unsafe {
            callback(token, logprob, best.as_ptr(), logprobs.as_ptr(), best.len(), self.user_data)
        })
    }
}

/// A log callback with its data.
#[derive(Clone, Copy)]
pub(super) struct Log {
    pub callback: unsafe extern "C" fn(i32, *const c_char, *mut c_void),
    pub user_data: *mut c_void,
}

// SAFETY: the documentation of `yuan_log_callback` asks for a callback and data that may be used from any thread.
unsafe impl Send for Log {}
// SAFETY: as above.
unsafe impl Sync for Log {}

impl Log {
    pub fn tell(self, level: i32, message: &str) {
        let message = CString::new(message.replace('\0', "\\0")).unwrap_or_default();
        // SAFETY: the caller gave a function of this type, to be called with its data; the text outlives the callback.
        unsafe { (self.callback)(level, message.as_ptr(), self.user_data) }
    }
}

fn flow(answer: i32) -> ControlFlow<()> {
    if answer == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}
