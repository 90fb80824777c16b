//! What is tried again, and when.

use std::{thread, time::Duration};

/// Failures in a row before it is given up.
const PATIENCE: u32 = 6;
/// The longest time that a server may ask to wait.
const LONGEST: Duration = Duration::from_secs(120);

/// Why something did not come.
#[derive(Debug)]
pub enum Failure {
    /// It may come later: a connection that broke, a server that is busy. After this time, if the server has named one.
    Later(String, Option<Duration>),
    /// It will not: there is no such file, or nobody may have it.
    Never(anyhow::Error),
}

/// Counts failures in a row, and waits between them.
#[derive(Debug)]
pub struct Patience {
    left: u32,
    wait: Duration,
    first: Duration,
}

impl Patience {
    /// That waits so long after the first failure, and twice as long after each.
    pub fn new(first: Duration) -> Self {
        Self { left: PATIENCE, wait: first, first }
    }

    /// Something has come.
    pub fn renew(&mut self) {
        (self.left, self.wait) = (PATIENCE, self.first);
    }

    /// Waits after a failure, as long as `go_on`.
    ///
    /// # Errors
    /// It will not come, or has failed too often.
    pub fn after(&mut self, failure: Failure, go_on: impl Fn() -> bool) -> anyhow::Result<()> {
        let (why, asked) = match failure {
            Failure::Never(error) => return Err(error),
            Failure::Later(why, asked) => (why, asked),
        };
        self.left -= 1;
        anyhow::ensure!(
            self.left > 0,
            "{why}; it was tried {PATIENCE} times. What has come is kept: run the same again to go on"
        );
        tracing::info!("{why}; trying again");
        let mut wait = asked.unwrap_or(self.wait).min(LONGEST);
        self.wait *= 2;
        while wait > Duration::ZERO && go_on() {
            let step = wait.min(Duration::from_millis(100));
            thread::sleep(step);
            wait -= step;
        }
        Ok(())
    }
}
