//! Progress of what is fetched.

use indicatif::ProgressBar;
use yuan_hub::download::Watch;

use crate::console::stopped;

/// A bar that hears of bytes; Ctrl-C stops what it watches.
pub struct Bar<'a> {
    bar: ProgressBar,
    go_on: &'a (dyn Fn() -> bool + Sync),
}

impl Bar<'static> {
    pub fn new(bar: ProgressBar) -> Self {
        Self::until(bar, &|| true)
    }

    /// For what is soon there.
    pub fn none() -> Self {
        Self::new(ProgressBar::hidden())
    }
}

impl<'a> Bar<'a> {
    /// As long as `go_on` says so.
    pub fn until(bar: ProgressBar, go_on: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self { bar, go_on }
    }

    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Watch for Bar<'_> {
    fn came(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn went(&self, bytes: u64) {
        self.bar.dec(bytes);
    }

    fn go_on(&self) -> bool {
        !stopped() && (self.go_on)()
    }
}
