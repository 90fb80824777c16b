//! What the programs say: results on standard output, all else on standard error. Neither ends in a panic when nobody can hear it.

use std::{
    fmt,
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use anyhow::Context;

/// Whether standard output stands in the midst of a line.
static MID_LINE: AtomicBool = AtomicBool::new(false);

/// A line on standard output. An error where it cannot be written.
#[macro_export]
macro_rules! say {
    () => { $crate::say::print(&"\n") };
    ($($text:tt)*) => { $crate::say::print(&format_args!("{}\n", format_args!($($text)*))) };
}

/// A line on standard error. Where it cannot be written there is nobody to complain to.
#[macro_export]
macro_rules! tell {
    ($($text:tt)*) => { $crate::say::tell(&format_args!($($text)*)) };
}

/// Writes to standard output at once, as it is.
///
/// # Errors
/// That of the system: standard output is closed, or its disk is full.
pub fn print(text: &dyn fmt::Display) -> anyhow::Result<()> {
    let text = text.to_string();
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")?;
    if let Some(last) = text.as_bytes().last() {
        MID_LINE.store(*last != b'\n', Relaxed);
    }
    Ok(())
}

/// Ends the line of standard output, where one is unfinished.
///
/// # Errors
/// As [`print()`].
pub fn end_line() -> anyhow::Result<()> {
    if MID_LINE.load(Relaxed) { print(&"\n") } else { Ok(()) }
}

/// What [`tell!`](crate::tell) does.
pub fn tell(text: &dyn fmt::Display) {
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}
