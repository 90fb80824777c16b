//! The threads among which work outside of a model is shared out: rayon's own pool, which conversions and digests use.

use std::{error::Error as _, sync::OnceLock};

use crate::error::{Error, Result};

/// Has the pool start, if it has not. By itself it would start when it is first used, and panic where the system has no more threads.
///
/// # Errors
/// [`Error::Memory`] when its threads cannot be started; from then on it stays so.
pub fn start() -> Result<()> {
    static STARTED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let start = || match rayon::ThreadPoolBuilder::new().build_global() {
        // Without a cause there is a pool already, which somebody else has started.
        Err(error) if error.source().is_some() => Err(error.to_string()),
        _ => Ok(()),
    };
    STARTED.get_or_init(start).clone().map_err(|e| Error::Memory(format!("cannot start threads: {e}")))
}

#[cfg(test)]
mod tests {
    use super::start;

    #[test]
    fn a_pool_that_runs_is_taken_as_it_is() {
        assert_eq!(rayon::join(|| 1, || 2), (1, 2));
        start().unwrap();
        start().unwrap();
    }
}
