//! The locks, atomics and threads of the pager: those of the standard library; or, in a build with `--cfg loom`, those of loom, which tries
//! the orders in which threads may do things (`models.rs`).

#[cfg(loom)]
pub use loom::{
    sync::{Arc, Condvar, Mutex, MutexGuard, atomic},
    thread,
};
use std::sync::PoisonError;
#[cfg(not(loom))]
pub use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, atomic},
    thread,
};

/// Tries the orders in which the threads of `model` are interrupted at most so many times at a place where they could have gone on.
#[cfg(all(test, loom))]
pub fn explore(interruptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.max_branches = 10_000;
    builder.check(model);
}

/// A lock that a panic elsewhere does not spoil: what it guards is whole at every step.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sleeps as long as `condition` holds; to be woken by the condition variable whenever that may have changed.
pub fn wait_while<'g, T>(
    changed: &Condvar,
    mut guard: MutexGuard<'g, T>,
    mut condition: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'g, T> {
    while condition(&mut guard) {
        guard = changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
    }
    guard
}
