//! The experts that one layer wants for the tokens of one call.

use smallvec::smallvec;

use super::{
    Backing, Decision, Pager, Pass, Residency, Streamed,
    expert::Expert,
    slot::Slot,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
        lock,
    },
};
use crate::{
    error::{Error, Result},
    list::List,
};

/// The experts of a request. All that are not there are asked for, as far as there is room, before the request is handed out;
/// the others follow as room is given back.
pub struct Request<'p> {
    pager: &'p Pager,
    layer: usize,
    /// Those that are there, then those that are not.
    order: List<usize>,
    hits: usize,
    /// Mapped experts that a prompt used and its end did not.
    passing: Vec<usize>,
    loading: Mutex<Loading>,
    aborted: AtomicBool,
}

/// Tokens at the end of a prompt whose experts are expected to be used again.
const TAIL: usize = 64;

/// By rank in the order.
struct Loading {
    slots: List<Option<Arc<Slot>>>,
    finished: List<bool>,
    /// The next expert that has no place yet.
    next: usize,
    /// Experts of the next layer that are read once this request has places for its own, the last first.
    ahead: Vec<usize>,
}

/// A layer that chose so many times as many experts as there are will be followed by one that wants all of them: of 32 experts with
/// equal chances one is left out once in 300,000 times.
const CERTAIN: usize = 16;

impl<'p> Request<'p> {
    pub(super) fn new(
        pass: &'p Pass<'_>,
        layer: usize,
        chosen: &[usize],
        used: usize,
        elsewhere: impl Fn(usize) -> bool,
    ) -> Self {
        let pager = pass.pager;
        let (order, hits, slots) = match &pager.backing {
            Backing::Views(views) => {
                let mut wanted: List<usize> = chosen.into();
                wanted.sort_unstable();
                wanted.dedup();
                let find = |e| (e, views.slot(layer * pager.experts + e, pass.generation));
                let mut found: List<_> = wanted.into_iter().map(find).collect();
                // Those that are there first, in their order.
                found.sort_by_key(|(_, (_, is_whole))| !is_whole);
                let hits = found.partition_point(|(_, (_, is_whole))| *is_whole);
                let (order, slots): (List<_>, _) =
                    found.into_iter().map(|(e, (slot, _))| (e, Some(slot))).unzip();
                (order, hits, slots)
            }
            Backing::Streamed(streamed) => {
                let mut residency = lock(&streamed.residency);
                let decision = residency.policy.request(layer, chosen, used);
                let index = |e: usize| layer * pager.experts + e;
                let mut slots: List<_> =
                    decision.hits.iter().map(|&e| residency.slots[index(e)].clone()).collect();
                let left = decision
                    .leaving
                    .iter()
                    .filter_map(|(l, e)| residency.slots[l * pager.experts + e].take());
                // Dropped outside the lock.
                let left: Vec<_> = left.collect();
                drop(residency);
                drop(left);
                slots.resize(decision.hits.len() + decision.misses.len(), None);
                take_guesses(streamed, layer, &decision, &mut slots, index);
                let hits = decision.hits.len();
                (decision.hits.into_iter().chain(decision.misses).collect(), hits, slots)
            }
        };
        let n = order.len();
        let loading = Loading {
            next: slots.iter().take_while(|s| s.is_some()).count(),
            slots,
            finished: smallvec![false; n],
            ahead: match chosen.len() >= CERTAIN * pager.experts
                && (layer + 1) * pager.experts < pager.uses.len()
            {
                true => (0..pager.experts).rev().filter(|&e| !elsewhere(e)).collect(),
                false => Vec::new(),
            },
        };
        let passing = match &pager.backing {
            Backing::Views(views) if views.cools() && chosen.len() > used => {
                let tail = &chosen[chosen.len().saturating_sub(TAIL * used)..];
                order[hits..].iter().copied().filter(|e| !tail.contains(e)).collect()
            }
            _ => Vec::new(),
        };
        let (loading, aborted) = (Mutex::new(loading), AtomicBool::new(false));
        let request = Self { pager, layer, order, hits, passing, loading, aborted };
        request.count(chosen, used);
        if let Some(record) = &mut *lock(&pager.record) {
            record.push((layer, chosen.to_vec()));
        }
        request.start(&mut lock(&request.loading));
        request
    }

    /// The experts, in the order in which to use them.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// Tiles of an expert.
    pub fn tiles(&self) -> usize {
        self.pager.tiles
    }

    /// How many experts from `rank` on have places, one after another.
    pub fn placed(&self, rank: usize) -> usize {
        let mut loading = lock(&self.loading);
        self.start(&mut loading);
        loading.slots[rank..].iter().take_while(|slot| slot.is_some()).count()
    }

    /// The expert of a rank in the order, once it has a place. Whoever waits here must have everything of lower ranks finished or
    /// under way.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the request was aborted; [`Error::Argument`] for an expert that was given back.
    pub fn expert(&self, rank: usize) -> Result<Expert<'_>> {
        loop {
            let seen = match &self.pager.backing {
                Backing::Streamed(streamed) => streamed.arena.events(),
                Backing::Views(_) => 0,
            };
            {
                let mut loading = lock(&self.loading);
                self.start(&mut loading);
                if let Some(slot) = &loading.slots[rank] {
                    return Ok(Expert { slot: slot.clone(), path: &self.pager.path });
                }
                if loading.finished[rank] {
                    return Err(Error::Argument(format!("expert {} was given back", self.order[rank])));
                }
            }
            if self.aborted.load(Relaxed) {
                return Err(Error::Cancelled);
            }
            if let Backing::Streamed(streamed) = &self.pager.backing {
                streamed.arena.wait_beyond(seen);
            }
        }
    }

    /// The request is given up: those who wait for a place of an expert wake up.
    pub fn abort(&self) {
        self.aborted.store(true, Relaxed);
        if let Backing::Streamed(streamed) = &self.pager.backing {
            streamed.arena.announce();
        }
    }

    /// Nothing of this expert is needed any more.
    pub fn finish(&self, rank: usize) {
        let slot = {
            let mut loading = lock(&self.loading);
            loading.finished[rank] = true;
            loading.slots[rank].take()
        };
        // What could not be read is not kept.
        if let Backing::Streamed(streamed) = &self.pager.backing
            && slot.as_ref().is_some_and(|slot| slot.has_failed())
        {
            drop(self.forget(&mut lock(&streamed.residency), rank));
        }
        drop(slot);
        self.start(&mut lock(&self.loading));
    }

    /// Gives places to the next experts, and asks for them; then for those of the next layer, which the drive reads while attention is
    /// computed.
    fn start(&self, loading: &mut Loading) {
        let Backing::Streamed(streamed) = &self.pager.backing else { return };
        while loading.next < self.order.len() {
            // One that was guessed has a place, and may even be finished.
            if loading.slots[loading.next].is_some() || loading.finished[loading.next] {
                loading.next += 1;
                continue;
            }
            let index = self.layer * self.pager.experts + self.order[loading.next];
            let Some(slot) = self.pager.place(streamed, index) else { return };
            streamed.pool.ask(&slot);
            let mut residency = lock(&streamed.residency);
            if residency.policy.is_resident(self.layer, self.order[loading.next]) {
                residency.slots[index] = Some(slot.clone());
            }
            loading.slots[loading.next] = Some(slot);
            loading.next += 1;
            streamed.arena.announce();
        }
        while let Some(&expert) = loading.ahead.last() {
            if !self.pager.guess(streamed, self.layer + 1, expert) {
                return;
            }
            loading.ahead.pop();
        }
    }

    fn count(&self, chosen: &[usize], used: usize) {
        let of = if chosen.len() > used { &self.pager.prefill } else { &self.pager.decode };
        of.hits.fetch_add(self.hits as u64, Relaxed);
        of.misses.fetch_add((self.order.len() - self.hits) as u64, Relaxed);
        let uses = &self.pager.uses[self.layer * self.pager.experts..];
        chosen.iter().for_each(|&e| {
            uses[e].fetch_add(1, Relaxed);
        });
    }

    /// What was not used to the end is given up: an expert that may lack tiles is not kept.
    fn give_up(&self, streamed: &Streamed) {
        let mut loading = lock(&self.loading);
        let mut dropped = Vec::new();
        let mut residency = lock(&streamed.residency);
        for rank in self.hits..self.order.len() {
            if loading.finished[rank] {
                continue;
            }
            let slot = loading.slots[rank].take();
            if let Some(slot) = &slot {
                slot.cancel();
            }
            dropped.push(self.forget(&mut residency, rank));
            dropped.push(slot);
        }
    }

    /// An expert is not kept any more; its place is to be dropped outside of locks.
    fn forget(&self, residency: &mut Residency, rank: usize) -> Option<Arc<Slot>> {
        let expert = self.order[rank];
        if !residency.policy.is_resident(self.layer, expert) {
            return None;
        }
        residency.policy.forget(self.layer, expert);
        residency.slots[self.layer * self.pager.experts + expert].take()
    }
}

/// Gives misses of the decision the places in which they were read ahead; other guesses are given up.
fn take_guesses(
    streamed: &Streamed,
    layer: usize,
    decision: &Decision,
    slots: &mut [Option<Arc<Slot>>],
    index: impl Fn(usize) -> usize,
) {
    let made = std::mem::take(&mut lock(&streamed.guesses).slots);
    for ((at, expert), slot) in made {
        let miss = decision.misses.iter().position(|&e| at == layer && e == expert);
        let Some(miss) = miss.filter(|_| !slot.has_failed()) else {
            slot.cancel();
            continue;
        };
        lock(&streamed.guesses).right += 1;
        // What is not on its way is asked for in earnest.
        streamed.pool.ask(&slot);
        let mut residency = lock(&streamed.residency);
        if residency.policy.is_resident(layer, expert) {
            residency.slots[index(expert)] = Some(slot.clone());
        }
        slots[decision.hits.len() + miss] = Some(slot);
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        match &self.pager.backing {
            Backing::Streamed(streamed) => self.give_up(streamed),
            Backing::Views(views) => {
                self.passing.iter().for_each(|e| views.cool(self.layer * self.pager.experts + e));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, io, path::Path};

    use super::*;
    use crate::{
        machine::source::Source,
        pager::{Eviction, Hits, Policy, Shape},
    };

    const TILE: usize = 64;
    const EXPERTS: usize = 4;

    /// A drive on which some experts cannot be read, and on which every byte of an expert is its number.
    #[derive(Clone, Default)]
    struct Drive {
        broken: Arc<Mutex<HashSet<u64>>>,
        read: Arc<Mutex<Vec<u64>>>,
    }

    impl Drive {
        /// Breaks the reads of these experts and mends all others.
        fn breaks(&self, experts: &[u64]) {
            *lock(&self.broken) = experts.iter().copied().collect();
        }

        /// The experts that were read since the last call, by number, without those that failed.
        fn read(&self) -> Vec<u64> {
            let mut read = std::mem::take(&mut *lock(&self.read));
            read.sort_unstable();
            read.dedup();
            read
        }
    }

    impl Source for Drive {
        fn read_at(&self, tile: &mut [u8], offset: u64) -> io::Result<usize> {
            let expert = offset / (2 * TILE as u64);
            if lock(&self.broken).contains(&expert) {
                return Err(io::Error::other("the drive is broken"));
            }
            lock(&self.read).push(expert);
            tile.fill(expert as u8);
            Ok(tile.len())
        }
    }

    /// 2 layers of 4 experts of 2 tiles.
    fn pager(kept: usize, transient: usize) -> (Pager, Drive) {
        let (drive, shape) = (Drive::default(), Shape { experts: EXPERTS, tiles: 2, tile_bytes: TILE });
        let policy = Policy::new(Eviction::Lru, 2, EXPERTS, kept);
        let offsets = (0..2 * EXPERTS).map(|e| (e * 2 * TILE) as u64).collect();
        let source = Box::new(drive.clone());
        let pager = Pager::streamed(source, offsets, shape, policy, transient, 1, Path::new("drive"));
        (pager.unwrap(), drive)
    }

    /// Uses all experts of a request, and says which ones.
    fn use_all(request: &Request<'_>) -> Result<Vec<usize>> {
        for (rank, &number) in request.order().iter().enumerate() {
            let expert = request.expert(rank)?;
            for t in 0..request.tiles() {
                assert_eq!(expert.tile(t)?, [(request.layer * EXPERTS + number) as u8; TILE]);
            }
            drop(expert);
            request.finish(rank);
        }
        Ok(request.order().to_vec())
    }

    fn run(pager: &Pager, layer: usize, chosen: &[usize]) -> Result<Vec<usize>> {
        use_all(&pager.begin().request(layer, chosen, chosen.len())?)
    }

    #[test]
    fn what_is_there_comes_first_and_is_not_read_again() {
        let (pager, drive) = pager(3, 1);
        assert_eq!(run(&pager, 1, &[2, 1]).unwrap(), [1, 2]);
        assert_eq!(drive.read(), [5, 6]);
        assert_eq!(run(&pager, 1, &[3, 0, 2]).unwrap(), [2, 0, 3]);
        assert_eq!(drive.read(), [4, 7]);
        let usage = pager.usage();
        assert_eq!(usage.decode, Hits { hits: 1, misses: 4 });
        assert_eq!(usage.uses, [0, 0, 0, 0, 1, 1, 2, 1]);
    }

    #[test]
    fn one_place_serves_any_number_of_experts_one_after_another() {
        let (pager, drive) = pager(0, 1);
        assert_eq!(run(&pager, 0, &[0, 1, 2, 3]).unwrap(), [0, 1, 2, 3]);
        assert_eq!(drive.read(), [0, 1, 2, 3]);
    }

    #[test]
    fn who_waits_for_a_place_gets_the_one_that_is_given_back() {
        let (pager, _) = pager(0, 1);
        let pass = pager.begin();
        let request = pass.request(0, &[0, 1], 2).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| request.expert(1).unwrap().tile(0).unwrap().to_vec());
            request.expert(0).unwrap().tile(0).unwrap();
            request.finish(0);
            assert_eq!(second.join().unwrap(), [1; TILE]);
        });
    }

    #[test]
    fn who_waits_for_a_place_hears_that_the_request_is_given_up() {
        let (pager, _) = pager(0, 1);
        let pass = pager.begin();
        let request = pass.request(0, &[0, 1], 2).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| request.expert(1).map(|_| ()));
            request.abort();
            assert!(matches!(second.join().unwrap(), Err(Error::Cancelled)));
        });
    }

    #[test]
    fn an_expert_that_was_given_back_is_not_waited_for() {
        let bytes = crate::container::Bytes::copy(&[0; 2 * TILE]);
        for pager in [pager(0, 1).0, Pager::plain(vec![bytes], 1, TILE).unwrap()] {
            let pass = pager.begin();
            let request = pass.request(0, &[0], 1).unwrap();
            use_all(&request).unwrap();
            assert!(matches!(request.expert(0), Err(Error::Argument(_))));
        }
    }

    #[test]
    fn an_expert_that_could_not_be_read_is_not_kept() {
        let (pager, drive) = pager(4, 1);
        drive.breaks(&[1]);
        let problem = run(&pager, 0, &[0, 1]).unwrap_err();
        assert_eq!(problem.to_string(), "cannot read drive: the drive is broken");
        assert_eq!(pager.hot(), [(0, 0)]);
        drive.breaks(&[]);
        drive.read();
        assert_eq!(run(&pager, 0, &[0, 1]).unwrap(), [0, 1]);
        assert_eq!(drive.read(), [1]);
    }

    /// It may lack tiles.
    #[test]
    fn an_expert_that_was_not_used_to_the_end_is_not_kept() {
        let (pager, _) = pager(4, 1);
        let pass = pager.begin();
        let request = pass.request(0, &[0, 1], 2).unwrap();
        request.expert(0).unwrap().tile(0).unwrap();
        request.finish(0);
        drop(request);
        assert_eq!(pager.hot(), [(0, 0)]);
    }

    #[test]
    fn what_was_guessed_is_read_once_and_other_guesses_are_given_up() {
        let (pager, drive) = pager(2, 4);
        let pass = pager.begin();
        use_all(&pass.request(0, &[0], 1).unwrap()).unwrap();
        pass.guess(1, &[2, 3]).unwrap();
        assert_eq!(use_all(&pass.request(1, &[1, 2], 2).unwrap()).unwrap(), [1, 2]);
        assert_eq!(drive.read().iter().filter(|&&e| e == 6).count(), 1);
        assert_eq!(pager.usage().guesses, Hits { hits: 1, misses: 1 });
        drop(pass);
        // Every place is free again, or kept.
        assert_eq!(run(&pager, 0, &[0, 1, 2, 3]).unwrap().len(), EXPERTS);
    }

    #[test]
    fn experts_and_tiles_that_there_are_not_are_errors() {
        let (pager, _) = pager(1, 1);
        let pass = pager.begin();
        assert!(matches!(pass.request(0, &[EXPERTS], 1), Err(Error::Argument(_))));
        assert!(matches!(pass.request(2, &[0], 1), Err(Error::Argument(_))));
        let request = pass.request(0, &[0], 1).unwrap();
        assert!(matches!(request.expert(0).unwrap().tile(2), Err(Error::Argument(_))));
    }
}
