//! Log lines to a callback.

use std::{
    ffi::c_void,
    fmt::{self, Write},
    sync::{OnceLock, PoisonError, RwLock},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::{Interest, set_global_default},
};

use super::{
    border::call,
    callback::{Log, yuan_log_callback},
    status::{Failure, yuan_status, yuan_status::YUAN_ERROR_UNSUPPORTED},
};

/// The callback and the least important level that it hears.
static SINK: RwLock<Option<(Log, i32)>> = RwLock::new(None);

/// Sends log lines up to `level` (1 errors only, 2 warnings too, 3 information, 4 debug, 5 all) to a callback; NULL turns the log
/// off, which it is at first. A thread that is in the old callback at that moment stays in it until it returns. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_log_set(
    callback: yuan_log_callback,
    level: i32,
    user_data: *mut c_void,
) -> yuan_status {
    call(|| {
        if !(1..=5).contains(&level) && callback.is_some() {
            return Err(Failure::argument(format!("there is no log level {level}; choose 1 to 5")));
        }
        static INSTALLED: OnceLock<bool> = OnceLock::new();
        if !INSTALLED.get_or_init(|| set_global_default(ToCallback).is_ok()) {
            let why = "this program has a log of its own, which hears the library already";
            return Err(Failure::new(YUAN_ERROR_UNSUPPORTED, why));
        }
        let sink = callback.map(|callback| (Log { callback, user_data }, level));
        *SINK.write().unwrap_or_else(PoisonError::into_inner) = sink;
        Ok(())
    })
}

fn sink() -> Option<(Log, i32)> {
    *SINK.read().unwrap_or_else(PoisonError::into_inner)
}

fn number(level: &Level) -> i32 {
    match *level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// Hears events; spans are nothing to it.
struct ToCallback;

impl Subscriber for ToCallback {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        sink().is_some_and(|(_, most)| number(metadata.level()) <= most)
    }

    fn event(&self, event: &Event<'_>) {
        let Some((log, _)) = sink() else { return };
        let mut line = Line(String::new());
        event.record(&mut line);
        log.tell(number(event.metadata().level()), &line.0);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// `message field=value field=value`.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
