//! Which shards of a checkpoint are here: one thread fetches what a conversion asks for, and the next one while that is converted.

use std::{
    collections::BTreeSet,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use yuan::Error;

use crate::console::stopped;

/// How long Ctrl-C may go unnoticed.
const NOTICE: Duration = Duration::from_millis(100);

/// Shards by their places in the order in which they are needed.
pub struct Shards {
    state: Mutex<State>,
    changed: Condvar,
    /// How many are fetched before they are asked for.
    ahead: usize,
}

struct State {
    there: Vec<bool>,
    /// Nothing needs them any more.
    gone: Vec<bool>,
    asked: BTreeSet<usize>,
    failed: Option<anyhow::Error>,
    over: bool,
}

impl State {
    /// What is to be fetched now.
    fn next(&self, ahead: usize) -> Option<usize> {
        let furthest = *self.asked.last()?;
        let missing = |place: &usize| !self.there[*place] && !self.gone[*place];
        let soon = (furthest + 1..self.there.len()).take(ahead);
        self.asked.iter().copied().chain(soon).find(missing)
    }

    fn is_whole(&self) -> bool {
        self.there.iter().all(|there| *there)
    }
}

impl Shards {
    /// So many shards, of which none is here. All of them are fetched, where they are to be kept.
    pub fn new(count: usize, keep: bool) -> Self {
        let state = State {
            there: vec![false; count],
            gone: vec![false; count],
            asked: BTreeSet::new(),
            failed: None,
            over: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), ahead: if keep { count } else { 1 } }
    }

    /// Fetches, by `bring`, until nothing is wanted any more, or one does not come.
    pub fn fetch(&self, bring: impl Fn(usize) -> anyhow::Result<()>) {
        loop {
            let mut state = self.lock();
            let place = loop {
                match state.next(self.ahead) {
                    _ if state.over => return,
                    Some(place) => break place,
                    None => state = self.wait_a_moment(state),
                }
            };
            drop(state);
            let brought = bring(place);
            let mut state = self.lock();
            match brought {
                Ok(()) => state.there[place] = true,
                Err(error) => {
                    state.failed = Some(error);
                    state.over = true;
                }
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Waits for a shard.
    ///
    /// # Errors
    /// [`Error::Cancelled`]: it does not come, and [`Shards::end`] says why; or Ctrl-C.
    pub fn wait(&self, place: usize) -> yuan::Result<()> {
        let mut state = self.lock();
        if state.asked.insert(place) {
            self.changed.notify_all();
        }
        while !state.there[place] {
            if state.over || stopped() {
                return Err(Error::Cancelled);
            }
            state = self.wait_a_moment(state);
        }
        Ok(())
    }

    /// Nothing needs this one any more. Says whether it had been fetched.
    pub fn drop(&self, place: usize) -> bool {
        let mut state = self.lock();
        state.gone[place] = true;
        state.there[place]
    }

    /// Whether fetching has come to an end.
    pub fn is_over(&self) -> bool {
        self.lock().over
    }

    /// Waits until all of them are there.
    pub fn wait_for_all(&self) {
        let mut state = self.lock();
        // With one, all are asked for.
        state.asked.insert(0);
        while !state.is_whole() && !state.over && !stopped() {
            state = self.wait_a_moment(state);
        }
    }

    /// Nothing is wanted any more. Returns why a shard has not come, if one has not.
    pub fn end(&self) -> Option<anyhow::Error> {
        let mut state = self.lock();
        state.over = true;
        self.changed.notify_all();
        state.failed.take()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_a_moment<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait_timeout(state, NOTICE).unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, thread};

    use super::Shards;

    #[test]
    fn one_is_fetched_ahead_and_what_is_done_with_is_not() {
        let (shards, fetched) = (Shards::new(6, false), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            scope.spawn(|| {
                shards.fetch(|place| {
                    fetched.lock().unwrap().push(place);
                    Ok(())
                });
            });
            assert!(!shards.drop(0), "an earlier run has had it");
            shards.wait(2).unwrap();
            shards.wait(3).unwrap();
            assert!(shards.drop(2));
            // Out of order.
            shards.wait(1).unwrap();
            shards.wait(4).unwrap();
            assert!(shards.end().is_none());
        });
        let fetched = fetched.into_inner().unwrap();
        assert_eq!(fetched[..2], [2, 3]);
        assert!([1, 4].iter().all(|place| fetched.contains(place)) && !fetched.contains(&0));
    }

    #[test]
    fn a_shard_that_does_not_come_ends_every_wait() {
        let shards = Shards::new(3, false);
        thread::scope(|scope| {
            scope.spawn(|| shards.fetch(|place| if place == 1 { anyhow::bail!("no") } else { Ok(()) }));
            shards.wait(0).unwrap();
            assert!(shards.wait(1).is_err() && shards.wait(2).is_err());
        });
        assert!(shards.is_over());
        assert_eq!(shards.end().unwrap().to_string(), "no");
    }

    #[test]
    fn all_come_where_they_are_kept() {
        let shards = Shards::new(4, true);
        thread::scope(|scope| {
            scope.spawn(|| shards.fetch(|_| Ok(())));
            shards.wait_for_all();
            shards.end();
        });
        assert!((0..4).all(|place| shards.wait(place).is_ok()));
    }
}
