//! Which experts stay in memory. Data only: no files, no threads, no clock. The engine and `yuan replay` run this same code on the
//! same requests, so their hits are the same.

/// How the expert that leaves is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Eviction {
    /// The least used, where older uses count less: scan-proof, and follows a change of subject.
    #[default]
    Lfu,
    /// The one that was used longest ago, for comparison.
    Lru,
}

impl Eviction {
    /// The name of the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lfu => "lfu",
            Self::Lru => "lru",
        }
    }

    /// The inverse of [`Eviction::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Lfu, Self::Lru].into_iter().find(|e| e.name() == name)
    }
}

/// What one use of an expert adds to its score.
const USE: u64 = 1 << 32;
/// A token takes 1/64 off the scores of a layer: a use counts half after 44 tokens.
const DECAY: u32 = 6;

/// The set of experts that are kept.
///
/// Every layer may keep `capacity / layers` experts whatever the others do; the remainder, and what a layer leaves unused,
/// goes to the experts of the best scores.
#[derive(Clone, Debug)]
pub struct Policy {
    eviction: Eviction,
    experts: usize,
    capacity: usize,
    /// Experts that no other layer takes from a layer.
    base: usize,
    /// By `layer * experts + expert`.
    scores: Vec<u64>,
    last_use: Vec<u64>,
    resident: Vec<bool>,
    /// Residents of each layer.
    counts: Vec<usize>,
    clock: u64,
}

/// What one request of a layer found and changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Experts that were there, in order of number.
    pub hits: Vec<usize>,
    /// Experts that have to be read, in order of number.
    pub misses: Vec<usize>,
    /// `(layer, expert)` that are kept no longer. Those of the request itself, which may be read and not kept, leave after their use.
    pub leaving: Vec<(usize, usize)>,
}

impl Policy {
    /// An empty set that keeps up to `capacity` of the `experts` of each of `layers`.
    pub fn new(eviction: Eviction, layers: usize, experts: usize, capacity: usize) -> Self {
        let all = layers * experts;
        Self {
            eviction,
            experts,
            capacity,
            base: capacity / layers.max(1),
            scores: vec![0; all],
            last_use: vec![0; all],
            resident: vec![false; all],
            counts: vec![0; layers],
            clock: 0,
        }
    }

    /// A layer wants the experts `chosen` by its tokens, `used` a token, in the order of the tokens. Scores follow the tokens one by
    /// one, so a prompt leaves the experts of its end.
    pub fn request(&mut self, layer: usize, chosen: &[usize], used: usize) -> Decision {
        let first = layer * self.experts;
        let mut wanted = vec![false; self.experts];
        for token in chosen.chunks(used.max(1)) {
            self.clock += 1;
            self.scores[first..][..self.experts].iter_mut().for_each(|s| *s -= *s >> DECAY);
            for &expert in token {
                self.scores[first + expert] += USE;
                self.last_use[first + expert] = self.clock;
                wanted[expert] = true;
            }
        }
        let mut decision = Decision::default();
        for expert in (0..self.experts).filter(|&e| wanted[e]) {
            if self.resident[first + expert] {
                decision.hits.push(expert);
            } else {
                decision.misses.push(expert);
                self.set(first + expert, true);
            }
        }
        decision.leaving = self.shrink();
        decision
    }

    /// Keeps an expert that nobody has asked for yet, as if it had been used once. Says whether there was room.
    pub fn insert(&mut self, layer: usize, expert: usize) -> bool {
        let index = layer * self.experts + expert;
        if self.resident[index] || self.counts.iter().sum::<usize>() >= self.capacity {
            return false;
        }
        self.scores[index] = self.scores[index].max(USE);
        self.set(index, true);
        true
    }

    /// An expert is not there after all: it could not be read.
    pub fn forget(&mut self, layer: usize, expert: usize) {
        let index = layer * self.experts + expert;
        if self.resident[index] {
            self.set(index, false);
        }
    }

    /// An expert that was to leave stays after all.
    pub fn keep(&mut self, layer: usize, expert: usize) {
        let index = layer * self.experts + expert;
        if !self.resident[index] {
            self.set(index, true);
        }
    }

    /// How often an expert was used lately, older uses counting less: about as often it will be used in the next 64 tokens.
    pub fn uses(&self, layer: usize, expert: usize) -> f64 {
        self.scores[layer * self.experts + expert] as f64 / USE as f64
    }

    /// Experts that are kept at most.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether an expert is kept.
    pub fn is_resident(&self, layer: usize, expert: usize) -> bool {
        self.resident[layer * self.experts + expert]
    }

    /// The experts that are kept, the most valuable first.
    pub fn hot(&self) -> Vec<(usize, usize)> {
        let mut hot: Vec<usize> = (0..self.resident.len()).filter(|&i| self.resident[i]).collect();
        hot.sort_by_key(|&i| std::cmp::Reverse(self.value(i)));
        hot.into_iter().map(|i| (i / self.experts, i % self.experts)).collect()
    }

    /// Lets the least valuable go until no more than the capacity are left. Only layers that hold more than their own share give.
    fn shrink(&mut self) -> Vec<(usize, usize)> {
        let mut leaving = Vec::new();
        while self.counts.iter().sum::<usize>() > self.capacity {
            let gives = |i: &usize| self.resident[*i] && self.counts[i / self.experts] > self.base;
            let Some(worst) = (0..self.resident.len()).filter(gives).min_by_key(|&i| self.value(i)) else {
                break;
            };
            self.set(worst, false);
            leaving.push((worst / self.experts, worst % self.experts));
        }
        leaving
    }

    /// What an expert is worth: equals go by their last use.
    fn value(&self, index: usize) -> (u64, u64) {
        match self.eviction {
            Eviction::Lfu => (self.scores[index], self.last_use[index]),
            Eviction::Lru => (self.last_use[index], 0),
        }
    }

    fn set(&mut self, index: usize, resident: bool) {
        self.resident[index] = resident;
        let count = &mut self.counts[index / self.experts];
        *count = if resident { *count + 1 } else { *count - 1 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn residents(policy: &Policy) -> usize {
        policy.resident.iter().filter(|r| **r).count()
    }

    #[test]
    fn what_was_used_is_there_the_next_time() {
        let mut policy = Policy::new(Eviction::Lfu, 2, 8, 4);
        assert_eq!(policy.request(0, &[3, 5], 2).misses, [3, 5]);
        assert_eq!(policy.request(1, &[3, 5], 2).misses, [3, 5]);
        let again = policy.request(0, &[5, 1], 2);
        assert_eq!((again.hits, again.misses, again.leaving.len()), (vec![5], vec![1], 1));
    }

    #[test]
    fn no_more_than_the_capacity_stays_and_a_layer_keeps_its_share() {
        for eviction in [Eviction::Lfu, Eviction::Lru] {
            let mut policy = Policy::new(eviction, 3, 8, 7);
            for step in 0..500 {
                let (layer, a) = (step % 3, step * 7 / 3 % 8);
                policy.request(layer, &[a, (a + 1 + step % 5) % 8], 2);
                assert!(residents(&policy) <= 7);
                assert_eq!(policy.counts.iter().sum::<usize>(), residents(&policy));
                if step > 50 {
                    assert!(policy.counts.iter().all(|&c| c >= 2), "{:?}", policy.counts);
                }
            }
        }
    }

    #[test]
    fn a_scan_does_not_drive_out_what_is_used_again_and_again() {
        let mut policy = Policy::new(Eviction::Lfu, 1, 16, 4);
        for _ in 0..50 {
            policy.request(0, &[0, 1], 2);
        }
        for expert in 2..16 {
            policy.request(0, &[expert], 1);
        }
        assert!(policy.is_resident(0, 0) && policy.is_resident(0, 1));
    }

    #[test]
    fn old_favourites_leave_when_the_subject_changes() {
        let mut policy = Policy::new(Eviction::Lfu, 1, 16, 2);
        for _ in 0..1000 {
            policy.request(0, &[0, 1], 2);
        }
        for _ in 0..60 {
            policy.request(0, &[8, 9], 2);
        }
        assert_eq!(policy.request(0, &[8, 9], 2).hits, [8, 9]);
    }

    #[test]
    fn a_prompt_leaves_the_experts_of_its_end() {
        let mut policy = Policy::new(Eviction::Lfu, 1, 8, 2);
        let prompt: Vec<usize> = (0..200).flat_map(|t| if t < 40 { [0, 1] } else { [6, 7] }).collect();
        let decision = policy.request(0, &prompt, 2);
        assert_eq!((decision.misses, decision.leaving), (vec![0, 1, 6, 7], vec![(0, 0), (0, 1)]));
        assert_eq!(policy.hot(), [(0, 6), (0, 7)]);
    }

    #[test]
    fn no_capacity_keeps_nothing() {
        let mut policy = Policy::new(Eviction::Lfu, 2, 4, 0);
        let decision = policy.request(1, &[2, 3], 2);
        assert_eq!((decision.misses, decision.leaving), (vec![2, 3], vec![(1, 2), (1, 3)]));
        assert!(!policy.insert(0, 0));
    }
}
