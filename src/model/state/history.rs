//! What must be known of earlier positions to go back there: a KV cache can be cut anywhere, but the filter's last
//! inputs are overwritten by every token.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{super::filter::FilterState, page::STEP, pool::Lease};
use crate::list::List;

/// Snapshots that were asked for ([`History::mark`]) and are kept; the oldest goes first.
const MARKED: usize = 16;

/// All that a position needs beside the KV cache.
#[derive(Debug)]
pub struct Snapshot {
    /// The filter's last inputs, by layer.
    pub filters: Vec<FilterState>,
    /// The last token's hidden state behind the final norm, [H].
    pub hidden: Vec<f32>,
    /// Its own bytes.
    pub lease: Lease,
}

/// Snapshots of earlier positions, every [`STEP`] of them and where they were asked for. Copies share them. (Of M32 one has 303 KB, a hundredth of
/// the keys and values of so many tokens in f16.)
#[derive(Clone, Debug)]
pub struct History {
    snapshots: BTreeMap<usize, Arc<Snapshot>>,
    marks: VecDeque<usize>,
}

impl History {
    /// Snapshots of so many tokens at most.
    pub const fn most(tokens: usize) -> usize {
        tokens / STEP + MARKED
    }

    /// No snapshots.
    pub fn new() -> Self {
        Self { snapshots: BTreeMap::new(), marks: VecDeque::new() }
    }

    /// How many of the next `tokens` behind `position` are run when a snapshot is due: at every regular position, and at the end.
    pub fn ends(position: usize, tokens: usize) -> List<usize> {
        let first = STEP - position % STEP;
        (first..tokens).step_by(STEP).chain([tokens]).collect()
    }

    /// Regular snapshots that are due when `tokens` behind `position` are run.
    pub fn due(position: usize, tokens: usize) -> usize {
        (position + tokens) / STEP - position / STEP
    }

    /// Whether a snapshot of `position` is kept without being asked for.
    pub fn is_regular(position: usize) -> bool {
        position.is_multiple_of(STEP)
    }

    /// Keeps the snapshot of a regular position.
    pub fn add(&mut self, position: usize, snapshot: Arc<Snapshot>) {
        self.snapshots.insert(position, snapshot);
    }

    /// Keeps the snapshot of any position.
    pub fn mark(&mut self, position: usize, snapshot: Arc<Snapshot>) {
        self.marks.retain(|&p| p != position);
        self.marks.push_back(position);
        self.snapshots.insert(position, snapshot);
        if self.marks.len() > MARKED
            && let Some(oldest) = self.marks.pop_front()
            && !Self::is_regular(oldest)
        {
            self.snapshots.remove(&oldest);
        }
    }

    /// The snapshot of a position.
    pub fn at(&self, position: usize) -> Option<&Arc<Snapshot>> {
        self.snapshots.get(&position)
    }

    /// The latest snapshot at or before `position`.
    pub fn at_or_before(&self, position: usize) -> Option<(usize, &Arc<Snapshot>)> {
        self.snapshots.range(..=position).next_back().map(|(p, s)| (*p, s))
    }

    /// Forgets everything behind `position`.
    pub fn truncate(&mut self, position: usize) {
        self.snapshots.retain(|&p, _| p <= position);
        self.marks.retain(|&p| p <= position);
    }

    /// All snapshots with their positions, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (usize, &Arc<Snapshot>)> {
        self.snapshots.iter().map(|(p, s)| (*p, s))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::pool::Pool, *};

    fn snapshot(n: usize) -> Arc<Snapshot> {
        let lease = Pool::new(0, 1).take(0).unwrap();
        Arc::new(Snapshot { filters: Vec::new(), hidden: vec![n as f32], lease })
    }

    /// Runs tokens as a state does.
    fn run(history: &mut History, position: &mut usize, tokens: usize) {
        let ends = History::ends(*position, tokens);
        assert_eq!(ends.last(), Some(&tokens));
        let regular: Vec<_> =
            ends.into_iter().map(|end| *position + end).filter(|&end| History::is_regular(end)).collect();
        assert_eq!(regular.len(), History::due(*position, tokens));
        regular.into_iter().for_each(|end| history.add(end, snapshot(end)));
        *position += tokens;
    }

    /// However long it was and wherever it was cut, no position is farther than 63 behind a snapshot.
    #[test]
    fn the_way_back_is_short_whatever_came_before() {
        let (mut history, mut position) = (History::new(), 0);
        for (i, tokens) in [1, 100, 512, 7].into_iter().cycle().take(120).enumerate() {
            run(&mut history, &mut position, tokens);
            if tokens == 7 {
                history.mark(position, snapshot(position));
            }
            if i % 50 == 49 {
                position = position / 3 / 64 * 64;
                history.truncate(position);
            }
            assert!(history.iter().len() <= History::most(position), "{i}");
            assert!(history.iter().all(|(p, s)| s.hidden == [p as f32]));
            for p in 0..=position {
                assert!(
                    p - history.at_or_before(p).map_or(0, |(found, _)| found) < STEP,
                    "{p} of {position}"
                );
            }
        }
        assert!(position > 5000);
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
