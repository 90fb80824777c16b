//! Scores of lists of tokens that were computed, found by the tokens: what two lists have in common at their beginning has the same scores in both.

use std::collections::BTreeMap;

use super::{
    Score,
    sync::{Mutex, lock},
};
use crate::model::KvType;

/// Bytes of all, about.
const ROOM: usize = 8 << 20;

/// The lists that there are.
#[derive(Debug, Default)]
pub struct Scored(Mutex<Lists>);

/// In order, so that of all lists a neighbour has the longest beginning in common with one that is looked for.
#[derive(Debug, Default)]
struct Lists {
    of: BTreeMap<(u32, Vec<u32>), List>,
    bytes: usize,
    /// Counts what was done, and so tells what was used last.
    clock: u64,
}

#[derive(Debug)]
struct List {
    /// Of all tokens but the first.
    scores: Vec<Score>,
    /// How many of the likeliest each has.
    top: usize,
    bytes: usize,
    used: u64,
}

impl Scored {
    /// The scores of the first of these tokens, from the second on, as far as they are here.
    pub fn find(&self, kv: KvType, tokens: &[u32], top: usize) -> Vec<Score> {
        let mut lists = lock(&self.0);
        lists.clock += 1;
        let (clock, key) = (lists.clock, (kv.number(), tokens.to_vec()));
        let mut longest = (0, None);
        let (before, behind) = (lists.of.range(..=&key).next_back(), lists.of.range(&key..).next());
        for (found, list) in [before, behind].into_iter().flatten() {
            let common = found.1.iter().zip(tokens).take_while(|(a, b)| a == b).count();
            if found.0 == key.0 && list.top >= top && common > longest.0 {
                longest = (common, Some(found.clone()));
            }
        }
        let Some(list) = longest.1.and_then(|key| lists.of.get_mut(&key)) else { return Vec::new() };
        list.used = clock;
        let scores = list.scores.iter().take(longest.0 - 1);
        scores.map(|score| Score { best: score.best.iter().take(top).copied().collect(), ..*score }).collect()
    }

    /// Keeps the scores of all of these tokens but the first, if that is not too much; those that were used longest ago go.
    pub fn put(&self, kv: KvType, tokens: &[u32], top: usize, scores: Vec<Score>) {
        // With what an allocator takes for itself.
        let bytes = 128 + tokens.len() * 4 + scores.len() * (size_of::<Score>() + 8 * top + 16);
        if bytes > ROOM / 4 {
            return;
        }
        let mut lists = lock(&self.0);
        lists.clock += 1;
        let (used, key) = (lists.clock, (kv.number(), tokens.to_vec()));
        // A longer list says the same and more, and this one more than a shorter one.
        if let Some((found, list)) = lists.of.range_mut(&key..).next()
            && found.0 == key.0
            && found.1.starts_with(tokens)
            && list.top >= top
        {
            list.used = used;
            return;
        }
        let shorter = lists.of.range(..&key).next_back();
        let shorter = shorter
            .filter(|((kv, found), list)| *kv == key.0 && tokens.starts_with(found) && list.top <= top);
        if let Some(shorter) = shorter.map(|(key, _)| key.clone()) {
            lists.remove(&shorter);
        }
        lists.remove(&key);
        lists.bytes += bytes;
        lists.of.insert(key, List { scores, top, bytes, used });
        while lists.bytes > ROOM
            && let Some(oldest) =
                lists.of.iter().min_by_key(|(_, list)| list.used).map(|(key, _)| key.clone())
        {
            lists.remove(&oldest);
        }
    }
}

impl Lists {
    fn remove(&mut self, key: &(u32, Vec<u32>)) {
        if let Some(list) = self.of.remove(key) {
            self.bytes -= list.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores that tell their tokens, with so many of the best.
    fn scores(tokens: &[u32], top: usize) -> Vec<Score> {
        let best = |token: u32| (0..top as u32).map(|i| (token + i, -(i as f32))).collect();
        tokens[1..]
            .iter()
            .map(|&token| Score { token, logprob: -(token as f32), best: best(token) })
            .collect()
    }

    fn bytes(scored: &Scored) -> (usize, usize) {
        let lists = lock(&scored.0);
        assert_eq!(lists.bytes, lists.of.values().map(|list| list.bytes).sum::<usize>());
        (lists.of.len(), lists.bytes)
    }

    #[test]
    fn a_list_has_the_scores_of_the_longest_beginning_in_common() {
        let scored = Scored::default();
        for list in [&[1, 2, 3, 4][..], &[1, 2, 5, 6], &[1, 9], &[7, 8, 9]] {
            scored.put(KvType::F16, list, 2, scores(list, 2));
        }
        for (list, common) in [
            (&[1, 2, 5, 7, 8][..], 3),
            (&[1, 2, 4], 2),
            (&[1, 2, 3, 4], 4),
            (&[1, 2], 2),
            (&[7, 8, 9, 9], 3),
            (&[1, 0], 1),
            (&[2, 2], 0),
            (&[], 0),
        ] {
            for top in [0, 1, 2] {
                let wanted = if common > 1 { scores(&list[..common], top) } else { Vec::new() };
                assert_eq!(scored.find(KvType::F16, list, top), wanted, "{list:?}");
            }
            assert_eq!(scored.find(KvType::F16, list, 3), [], "none has so many");
            assert_eq!(scored.find(KvType::Q8_0, list, 1), [], "other keys and values, other scores");
        }
    }

    #[test]
    fn what_a_longer_list_says_is_kept_once() {
        let scored = Scored::default();
        scored.put(KvType::F16, &[1, 2], 1, scores(&[1, 2], 1));
        scored.put(KvType::F16, &[1, 2, 3], 1, scores(&[1, 2, 3], 1));
        scored.put(KvType::F16, &[1, 2], 0, scores(&[1, 2], 0));
        assert_eq!(bytes(&scored).0, 1);
        // More of the likeliest, for fewer tokens: both stay.
        scored.put(KvType::F16, &[1, 2], 5, scores(&[1, 2], 5));
        assert_eq!(bytes(&scored).0, 2);
        assert_eq!(scored.find(KvType::F16, &[1, 2], 4), scores(&[1, 2], 4));
    }

    #[test]
    fn what_was_not_used_goes_where_there_is_no_room() {
        let scored = Scored::default();
        let list = |n: u32| (0..5000).map(|i| n + i % 3).collect::<Vec<_>>();
        let used = list(0);
        for n in 0..200 {
            scored.put(KvType::F16, &list(10 * n), 3, scores(&list(10 * n), 3));
            assert_eq!(scored.find(KvType::F16, &used, 3).len(), 4999, "it is used all the time");
            assert!(bytes(&scored).1 <= ROOM);
        }
        assert_eq!(scored.find(KvType::F16, &list(10), 3), []);
        let before = bytes(&scored);
        let long = vec![5; 100_000];
        scored.put(KvType::F16, &long, 0, scores(&long, 0));
        assert_eq!(bytes(&scored), before, "one list does not drive out all others");
    }
}
