//! The border: every exported function runs its body in [`call`], where panics stop and errors become a status.

use std::{
    any::Any,
    cell::Cell,
    ffi::c_char,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
    thread,
};

use super::status::{Failure, remember, yuan_status};

/// The version of this interface. A program compares it with what yuan_abi_version() says.
pub const YUAN_ABI_VERSION: u32 = 6;

/// The version of the interface that the library was built with: `YUAN_ABI_VERSION` of its header. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_abi_version() -> u32 {
    YUAN_ABI_VERSION
}

/// The version of the library, as "0.1.0". The text is static. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

thread_local! {
    /// How many calls this thread is in: a callback may call in again.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Counts this thread in, and out again however the body ends.
struct Inside;

impl Inside {
    fn enter() -> Self {
        let _ = DEPTH.try_with(|depth| depth.set(depth.get() + 1));
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = DEPTH.try_with(|depth| depth.set(depth.get() - 1));
    }
}

/// Runs the body of an exported function. A panic becomes `YUAN_ERROR_INTERNAL`; what it left half done is behind locks that are
/// poisoned now, which later calls report.
pub(super) fn call(body: impl FnOnce() -> Result<(), Failure>) -> yuan_status {
    quiet_panics();
    let inside = Inside::enter();
    let result = catch_unwind(AssertUnwindSafe(body));
    drop(inside);
    let failure = match result {
        Ok(Ok(())) => return yuan_status::YUAN_OK,
        Ok(Err(failure)) => failure,
        Err(panic) => {
            let message = format!("a mistake in the library: {}; please report it", said(&*panic));
            // What a panic carries may panic again when it is dropped.
            std::mem::forget(panic);
            Failure::new(yuan_status::YUAN_ERROR_INTERNAL, message)
        }
    };
    remember(&failure.message);
    failure.status
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

/// Panics in calls and in the library's own threads go to the log: stderr belongs to the program. Others are none of ours.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let inside = DEPTH.try_with(|depth| depth.get() > 0).unwrap_or(false);
            let ours = thread::current().name().is_some_and(|name| name.starts_with("yuan-"));
            if inside || ours { tracing::error!("{info}") } else { previous(info) }
        }));
    });
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;
    use crate::capi::yuan_last_error;

    #[test]
    fn a_panic_becomes_a_status_and_a_message() {
        assert_eq!(call(|| panic!("two and two are {}", 5)), yuan_status::YUAN_ERROR_INTERNAL);
        // SAFETY: the library's own text, which stands until the next call fails.
        let message = unsafe { CStr::from_ptr(yuan_last_error()) }.to_str().unwrap();
        assert_eq!(message, "a mistake in the library: two and two are 5; please report it");
        assert_eq!(DEPTH.get(), 0);
    }
}
