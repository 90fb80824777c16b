//! The memory of all sequences of a model, keys, values and snapshots: counted against one budget, as it fills.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use super::shelf::Shelf;
use crate::error::Error;

/// What the sequences of a model may take together.
#[derive(Debug)]
pub struct Pool {
    ledger: Arc<Ledger>,
    /// Of the model: a page of a sequence is a page of each.
    layers: usize,
    /// Pages that sequences share, and those that dropped ones have left.
    pub(in crate::model) shelf: Shelf,
}

/// How the memory of sequences is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// Bytes that may be used.
    pub budget: u64,
    /// Bytes that are used: pages as far as they are filled, and snapshots.
    pub bytes: u64,
    /// Pages of 512 positions, those that are not full among them.
    pub pages: usize,
    /// Pages that several sequences have in common.
    pub shared: usize,
    /// Pages of earlier sequences that nobody holds now.
    pub kept: usize,
    /// Sequences that there are.
    pub sequences: usize,
}

/// The counters, which all that is counted refers to.
#[derive(Debug)]
struct Ledger {
    budget: u64,
    bytes: AtomicU64,
    pages: AtomicUsize,
    sequences: AtomicUsize,
}

impl Pool {
    /// A pool of `budget` bytes for a model of so many layers.
    pub(in crate::model) fn new(budget: u64, layers: usize) -> Arc<Self> {
        let ledger = Ledger {
            budget,
            bytes: AtomicU64::new(0),
            pages: AtomicUsize::new(0),
            sequences: AtomicUsize::new(0),
        };
        Arc::new(Self { ledger: Arc::new(ledger), layers: layers.max(1), shelf: Shelf::default() })
    }

    /// How much is used now.
    pub fn usage(&self) -> PoolUse {
        let ledger = &self.ledger;
        let (shared, kept) = self.shelf.count();
        PoolUse {
            budget: ledger.budget,
            bytes: ledger.bytes.load(Relaxed),
            pages: ledger.pages.load(Relaxed) / self.layers,
            shared,
            kept,
            sequences: ledger.sequences.load(Relaxed),
        }
    }

    /// `bytes` of the budget, if they are there; pages that nobody holds go where they are needed.
    pub(in crate::model) fn take(&self, bytes: u64) -> Option<Lease> {
        let add = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.ledger.budget);
        while self.ledger.bytes.fetch_update(Relaxed, Relaxed, add).is_err() {
            if bytes > self.ledger.budget || !self.shelf.drop_oldest() {
                return None;
            }
        }
        Some(Lease { ledger: self.ledger.clone(), bytes })
    }

    /// Why there are not `wanted` bytes for a sequence that would hold `tokens`, and has `own` bytes.
    pub(in crate::model) fn is_full(&self, wanted: u64, tokens: usize, own: u64) -> Error {
        let PoolUse { budget, bytes, sequences, .. } = self.usage();
        Error::Memory(format!(
            "there is no memory for the keys and values of {tokens} tokens: {wanted} bytes more are needed, and of {budget} bytes {bytes} are \
             used by {sequences} sequences, {own} of them by this one; close others, or open the model with more --memory, a larger \
             --context, which all have in common, or --kv q8_0 or q4_0"
        ))
    }
}

/// Bytes of the budget, which go back when this is dropped.
#[derive(Debug)]
pub struct Lease {
    ledger: Arc<Ledger>,
    bytes: u64,
}

impl Lease {
    /// How many they are.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A part of them.
    ///
    /// # Panics
    /// When they are not so many.
    pub fn split(&mut self, bytes: u64) -> Self {
        self.bytes = self.bytes.checked_sub(bytes).expect("what is needed is taken before");
        Self { ledger: self.ledger.clone(), bytes }
    }

    /// Both together.
    pub fn join(&mut self, mut other: Self) {
        debug_assert!(Arc::ptr_eq(&self.ledger, &other.ledger), "of one pool");
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Counts a page of one layer, as long as the result is there.
    pub fn page(&self) -> Counted {
        self.ledger.pages.fetch_add(1, Relaxed);
        Counted(self.ledger.clone())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.ledger.bytes.fetch_sub(self.bytes, Relaxed);
    }
}

/// A page that is counted.
#[derive(Debug)]
pub struct Counted(Arc<Ledger>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.pages.fetch_sub(1, Relaxed);
    }
}

/// A sequence that is counted, and the pool that it takes from.
#[derive(Debug)]
pub(in crate::model) struct Member(Arc<Pool>);

impl Member {
    pub fn of(pool: Arc<Pool>) -> Self {
        pool.ledger.sequences.fetch_add(1, Relaxed);
        Self(pool)
    }
}

impl std::ops::Deref for Member {
    type Target = Arc<Pool>;

    fn deref(&self) -> &Arc<Pool> {
        &self.0
    }
}

impl Clone for Member {
    fn clone(&self) -> Self {
        Self::of(self.0.clone())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.0.ledger.sequences.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_goes_back_and_no_more_is_given_than_there_is() {
        let pool = Pool::new(100, 2);
        let mut first = pool.take(60).unwrap();
        assert!(pool.take(41).is_none() && pool.take(u64::MAX).is_none());
        let part = first.split(20);
        let mut second = pool.take(40).unwrap();
        drop(first);
        assert_eq!((part.bytes(), pool.usage().bytes), (20, 60));
        let pages = [part.page(), second.page()];
        second.join(part);
        assert_eq!((second.bytes(), pool.usage().bytes, pool.usage().pages), (60, 60, 1));
        drop((second, pages));
        let member = Member::of(pool.clone());
        let others = [member.clone(), member.clone()];
        assert_eq!(
            pool.usage(),
            PoolUse { budget: 100, bytes: 0, pages: 0, shared: 0, kept: 0, sequences: 3 }
        );
        drop((member, others));
        assert_eq!(pool.usage().sequences, 0);
    }
}
