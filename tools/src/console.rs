//! The terminal: logs on stderr, progress bars, Ctrl-C, sizes.

use std::{
    fmt::Write,
    io::IsTerminal,
    ops::ControlFlow,
    process::ExitCode,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};
use yuan::model::{Cancel, Running};

use crate::{say::end_line, tell};

/// Exit status after Ctrl-C, as shells have it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// What a server writes of its requests.
const SERVER: &str = "yuan_serve=info";

static STOP: AtomicBool = AtomicBool::new(false);

/// Whether Ctrl-C was pressed. The first press asks to stop, the second kills.
pub fn stopped() -> bool {
    STOP.load(Relaxed)
}

/// Goes on until Ctrl-C was pressed.
pub fn unless_stopped() -> ControlFlow<()> {
    if stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// What Ctrl-C cancels beside.
static CANCEL: Mutex<Option<Cancel>> = Mutex::new(None);

/// What Ctrl-C tells beside.
static TOLD: Mutex<Option<Box<dyn Fn() + Send>>> = Mutex::new(None);

/// Has Ctrl-C, or SIGTERM, call `tell` from a thread of its own; at once, where it was pressed already.
pub fn on_stop(tell: impl Fn() + Send + 'static) {
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if stopped() {
        tell();
    }
    *told = Some(Box::new(tell));
}

/// Whether Ctrl-C has nothing to stop but the program.
static IDLE: AtomicBool = AtomicBool::new(false);

/// Runs `wait`, during which Ctrl-C ends the program at once: it waits for the user and has nothing else to stop.
pub fn idle<R>(wait: impl FnOnce() -> R) -> R {
    IDLE.store(true, Relaxed);
    let result = wait();
    IDLE.store(false, Relaxed);
    result
}

/// Forgets that Ctrl-C was pressed: it has stopped what it was meant for, and the program goes on.
pub fn take_stop() -> bool {
    STOP.swap(false, Relaxed)
}

/// While the result lives, all that runs is one call of a session or state, which Ctrl-C stops, also in the midst of a token.
pub fn cancel_on_stop(cancel: Cancel) -> impl Drop {
    struct Guard {
        _running: Running,
    }
    impl Drop for Guard {
        fn drop(&mut self) {
            *CANCEL.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
    let guard = Guard { _running: cancel.begin() };
    *CANCEL.lock().unwrap_or_else(PoisonError::into_inner) = Some(cancel.clone());
    // Pressed already, while there was nothing to cancel.
    if stopped() {
        cancel.cancel();
    }
    guard
}

/// How what a server does is written to stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Log {
    /// A line for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// Runs a tool's `main`: logs to stderr (`RUST_LOG` chooses), catches Ctrl-C, prints an error with its causes.
pub fn run(main: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    run_with(None, main)
}

/// [`run`] that also writes what a server does, if `log` says how.
pub fn run_with(log: Option<Log>, main: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    let mut filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).from_env_lossy();
    if log.is_some() && std::env::var_os(EnvFilter::DEFAULT_ENV).is_none() {
        filter = filter.add_directive(SERVER.parse().expect("a directive"));
    }
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).log_internal_errors(false);
    let lines = lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).with_env_filter(filter);
    match log {
        None => lines.without_time().init(),
        Some(Log::Text) => lines.init(),
        Some(Log::Json) => lines.json().flatten_event(true).with_span_list(false).init(),
    }
    static ONCE: OnceLock<Result<(), ctrlc::Error>> = OnceLock::new();
    let heard = ONCE.get_or_init(|| {
        let handler = || {
            if STOP.swap(true, Relaxed) || IDLE.load(Relaxed) {
                std::process::exit(INTERRUPTED.into());
            }
            if let Some(cancel) = &*CANCEL.lock().unwrap_or_else(PoisonError::into_inner) {
                cancel.cancel();
            }
            if let Some(tell) = &*TOLD.lock().unwrap_or_else(PoisonError::into_inner) {
                tell();
            }
        };
        ctrlc::set_handler(handler)
    });
    if let Err(error) = heard {
        // It may have taken the signals by then, so that nothing would stop the program.
        tell!("error: nobody would hear Ctrl-C: {error}; the system may have no more threads");
        return ExitCode::FAILURE;
    }
    match main() {
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Ok(()) if stopped() => ExitCode::from(INTERRUPTED),
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // The message does not stand behind half a line; where not even its end can be written, the error says so already.
            let _ = end_line();
            tell!("error: {}", explain(&e));
            if stopped() { ExitCode::from(INTERRUPTED) } else { ExitCode::FAILURE }
        }
    }
}

/// An error with its causes, each said once: the library's messages name the system's reason already.
pub fn explain(error: &anyhow::Error) -> String {
    error.chain().skip(1).map(ToString::to_string).fold(error.to_string(), |said, cause| {
        if said.contains(&cause) { said } else { format!("{said}: {cause}") }
    })
}

/// Whoever read our output has had enough (`yuan … | head`): no error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |e: &(dyn std::error::Error + 'static)| e.downcast_ref::<std::io::Error>().map(|e| e.kind());
    error.chain().any(|e| kind(e) == Some(std::io::ErrorKind::BrokenPipe))
}

/// A bar over `total` bytes with rate and time left, on stderr; nothing when that is no terminal.
pub fn byte_bar(total: u64, what: &'static str) -> ProgressBar {
    bar(total, what, "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left")
}

/// A bar over `total` tokens.
pub fn token_bar(total: u64, what: &'static str) -> ProgressBar {
    bar(total, what, "{msg} [{bar:30}] {pos}/{len} tokens {rate} tok/s, {eta} left")
}

/// A bar over `total` repetitions.
pub fn count_bar(total: u64, what: &'static str) -> ProgressBar {
    bar(total, what, "{msg} [{bar:30}] {pos}/{len}, {eta} left")
}

/// A sign on stderr that something is being done, while it lives; nothing when that is no terminal.
pub fn busy(what: impl Into<std::borrow::Cow<'static, str>>) -> impl Drop {
    struct Busy(ProgressBar);
    impl Drop for Busy {
        fn drop(&mut self) {
            self.0.finish_and_clear();
        }
    }
    let style = ProgressStyle::with_template("{spinner} {msg}").expect("a sound template");
    let sign = ProgressBar::new_spinner().with_style(style).with_message(what);
    keep_moving(&sign);
    Busy(sign)
}

fn bar(total: u64, what: &'static str, template: &str) -> ProgressBar {
    let rate = |state: &ProgressState, out: &mut dyn Write| {
        // The bar stays as it is where this cannot be written.
        let _ = write!(out, "{:.1}", state.per_sec());
    };
    let style = ProgressStyle::with_template(template).expect("the templates above are sound");
    let style = style.with_key("rate", rate);
    let bar = ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_message(what);
    keep_moving(&bar);
    bar
}

/// Draws a bar again from time to time, as long as it is there. indicatif's own way panics where there is no thread to be had; a bar does without.
fn keep_moving(bar: &ProgressBar) {
    if bar.is_hidden() {
        return;
    }
    let bar = bar.downgrade();
    let draw = move || {
        while let Some(bar) = bar.upgrade().filter(|bar| !bar.is_finished()) {
            bar.tick();
            drop(bar);
            thread::sleep(Duration::from_millis(200));
        }
    };
    if let Err(error) = thread::Builder::new().name("yuan-bar".into()).spawn(draw) {
        tracing::debug!("the bar stands still between two steps: {error}");
    }
}

/// `1234567` as `1.23 MB`.
pub fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(1000), "1.00 kB");
        assert_eq!(size(28_311_552), "28.31 MB");
        assert_eq!(size(u64::MAX), "18446.74 PB");
    }
}
