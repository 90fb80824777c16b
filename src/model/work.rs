//! What a model has run so far, and how long that took.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{
    machine::system::ProcessUse,
    pager::sync::{Mutex, lock},
};

/// Times of single tokens that are kept: the last ones.
const TIMES: usize = 1024;

/// Tokens, and the time of their calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Tokens that were run.
    pub tokens: usize,
    /// How long the calls took, also waiting for each other, added up.
    pub time: Duration,
}

/// What a model has run since it was opened.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// Calls with several tokens of a sequence.
    pub prefill: Calls,
    /// Calls with one token of each sequence, drafts aside, and the drafts that were taken up.
    pub decode: Calls,
    /// How long the last calls with one token of each sequence took, with what was drafted in them; up to 1024 of them.
    pub times: VecDeque<Duration>,
}

/// Where calls are written down.
#[derive(Debug)]
pub(super) struct Log {
    work: Mutex<Work>,
    /// What the process had used when the model was opened.
    pub opened: ProcessUse,
}

impl Log {
    pub fn new() -> Self {
        let work = Work { times: VecDeque::with_capacity(TIMES), ..Work::default() };
        Self { work: Mutex::new(work), opened: ProcessUse::now() }
    }

    /// A call of so many tokens of so many sequences, drafts aside, that began at `start` has succeeded.
    pub fn add(&self, tokens: usize, sequences: usize, start: Instant) {
        let (time, one_each) = (start.elapsed(), tokens == sequences);
        let mut work = lock(&self.work);
        let calls = if one_each { &mut work.decode } else { &mut work.prefill };
        calls.tokens += tokens;
        calls.time += time;
        if one_each {
            if work.times.len() == TIMES {
                work.times.pop_front();
            }
            work.times.push_back(time);
        }
    }

    /// A draft has become a token.
    pub fn take_up(&self) {
        lock(&self.work).decode.tokens += 1;
    }

    pub fn work(&self) -> Work {
        lock(&self.work).clone()
    }
}
