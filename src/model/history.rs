//! What must be known of earlier positions to go back there: a KV cache can be cut anywhere, but the filter's last
//! inputs are overwritten by every token.

use std::collections::{BTreeMap, VecDeque};

use super::filter::FilterState;

/// Tokens between two snapshots of a sequence that is not long.
const EVERY: usize = 64;
/// Snapshots at regular distances that are kept; with more, the distance doubles. (M32: 303 KB each.)
const REGULAR: usize = 128;
/// Snapshots that were asked for ([`History::mark`]) and are kept; the oldest goes first.
const MARKED: usize = 16;

/// All that a position needs beside the KV cache.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The filter's last inputs, by layer.
    pub filters: Vec<FilterState>,
    /// The last token's hidden state behind the final norm, [H].
    pub hidden: Vec<f32>,
}

/// Snapshots of earlier positions, a bounded number of them.
#[derive(Clone, Debug)]
pub struct History {
    every: usize,
    snapshots: BTreeMap<usize, Snapshot>,
    marks: VecDeque<usize>,
}

impl History {
    /// Snapshots that a history holds at most.
    pub const MOST: usize = REGULAR + MARKED;

    /// No snapshots.
    pub fn new() -> Self {
        Self { every: EVERY, snapshots: BTreeMap::new(), marks: VecDeque::new() }
    }

    /// How many of the next `tokens` behind `position` are run when a snapshot is due: at every regular position, and at the end.
    pub fn ends(&self, position: usize, tokens: usize) -> Vec<usize> {
        let first = self.every - position % self.every;
        (first..tokens).step_by(self.every).chain([tokens]).collect()
    }

    /// Whether a snapshot of `position` is kept without being asked for.
    pub fn is_regular(&self, position: usize) -> bool {
        position.is_multiple_of(self.every)
    }

    /// Keeps the snapshot of a regular position.
    pub fn add(&mut self, position: usize, snapshot: Snapshot) {
        self.snapshots.insert(position, snapshot);
        while self.snapshots.len() > REGULAR + self.marks.len() {
            self.every *= 2;
            self.snapshots.retain(|p, _| p.is_multiple_of(self.every) || self.marks.contains(p));
        }
    }

    /// Keeps the snapshot of any position.
    pub fn mark(&mut self, position: usize, snapshot: Snapshot) {
        self.marks.retain(|&p| p != position);
        self.marks.push_back(position);
        self.snapshots.insert(position, snapshot);
        if self.marks.len() > MARKED
            && let Some(oldest) = self.marks.pop_front()
            && !self.is_regular(oldest)
        {
            self.snapshots.remove(&oldest);
        }
    }

    /// The latest snapshot at or before `position`.
    pub fn at_or_before(&self, position: usize) -> Option<(usize, &Snapshot)> {
        self.snapshots.range(..=position).next_back().map(|(p, s)| (*p, s))
    }

    /// Forgets everything behind `position`.
    pub fn truncate(&mut self, position: usize) {
        self.snapshots.retain(|&p, _| p <= position);
        self.marks.retain(|&p| p <= position);
    }

    /// All snapshots with their positions, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (usize, &Snapshot)> {
        self.snapshots.iter().map(|(p, s)| (*p, s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(n: usize) -> Snapshot {
        Snapshot { filters: Vec::new(), hidden: vec![n as f32] }
    }

    #[test]
    fn a_long_history_is_bounded_and_reaches_back_to_its_beginning() {
        let mut history = History::new();
        let mut position = 0;
        for tokens in [1, 100, 512, 7].into_iter().cycle().take(2000) {
            let ends = history.ends(position, tokens);
            assert_eq!(ends.last(), Some(&tokens));
            for end in ends {
                if history.is_regular(position + end) {
                    history.add(position + end, snapshot(position + end));
                }
            }
            position += tokens;
            if tokens == 7 {
                history.mark(position, snapshot(position));
            }
            assert!(history.iter().len() <= History::MOST);
        }
        let longest_gap = history.iter().map(|(p, _)| p).collect::<Vec<_>>();
        let longest_gap = longest_gap.windows(2).map(|w| w[1] - w[0]).max().unwrap();
        assert!(longest_gap <= position.div_ceil(REGULAR / 2), "{longest_gap} of {position}");
        assert!(history.iter().all(|(p, s)| s.hidden == [p as f32]));
    }

    #[test]
    fn positions_behind_a_cut_are_forgotten() {
        let mut history = History::new();
        [64, 128].into_iter().for_each(|p| history.add(p, snapshot(p)));
        history.mark(70, snapshot(70));
        assert_eq!(history.at_or_before(127).map(|(p, _)| p), Some(70));
        history.truncate(69);
        assert_eq!(history.at_or_before(127).map(|(p, _)| p), Some(64));
        assert!(history.at_or_before(63).is_none());
    }
}
