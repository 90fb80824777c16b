//! The experts that one layer wants for the tokens of one call.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use super::{Backing, Pager, Pass, Plan, Streamed, slot::Slot, sync::lock};
use crate::error::{Error, Result};

/// The experts of a request. All that are not there are asked for, as far as there is room, before the request is handed out;
/// the others follow as room is given back.
pub struct Request<'p> {
    pager: &'p Pager,
    layer: usize,
    /// Those that are there, then those that are not.
    order: Vec<usize>,
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
    slots: Vec<Option<Arc<Slot>>>,
    finished: Vec<bool>,
    /// The next expert that has no place yet.
    next: usize,
    /// Experts of the next layer that are read once this request has places for its own, the last first.
    ahead: Vec<usize>,
}

/// A layer that chose so many times as many experts as there are will be followed by one that wants all of them: of 32 experts with
/// equal chances one is left out once in 300,000 times.
const CERTAIN: usize = 16;

/// One expert whose tiles are there or on their way.
pub struct Expert<'r> {
    slot: Arc<Slot>,
    path: &'r Path,
}

impl<'p> Request<'p> {
    pub(super) fn new(
        pass: &Pass<'p>,
        layer: usize,
        chosen: &[usize],
        used: usize,
        elsewhere: impl Fn(usize) -> bool,
    ) -> Self {
        let pager = pass.pager;
        let (order, hits, slots) = match &pager.backing {
            Backing::Views(views) => {
                let mut wanted = chosen.to_vec();
                wanted.sort_unstable();
                wanted.dedup();
                let find = |e| (e, views.slot(layer * pager.experts + e, pass.generation));
                let (there, coming): (Vec<_>, Vec<_>) =
                    wanted.into_iter().map(find).partition(|(_, (_, is_whole))| *is_whole);
                let hits = there.len();
                let (order, slots) = there.into_iter().chain(coming).map(|(e, (s, _))| (e, Some(s))).unzip();
                (order, hits, slots)
            }
            Backing::Streamed(streamed) => {
                let mut residency = lock(&streamed.residency);
                let plan = residency.policy.request(layer, chosen, used);
                let index = |e: usize| layer * pager.experts + e;
                let mut slots: Vec<_> =
                    plan.hits.iter().map(|&e| residency.slots[index(e)].clone()).collect();
                let left =
                    plan.leaving.iter().filter_map(|(l, e)| residency.slots[l * pager.experts + e].take());
                // Dropped outside the lock.
                let left: Vec<_> = left.collect();
                drop(residency);
                drop(left);
                slots.resize(plan.hits.len() + plan.misses.len(), None);
                take_guesses(streamed, layer, &plan, &mut slots, index);
                let hits = plan.hits.len();
                ([plan.hits, plan.misses].concat(), hits, slots)
            }
        };
        let n = order.len();
        let loading = Loading {
            next: slots.iter().take_while(|s| s.is_some()).count(),
            slots,
            finished: vec![false; n],
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

    /// The expert of a rank in the order, once it has a place. Whoever waits here must have everything of lower ranks finished or
    /// under way.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the request was aborted.
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
            let expert = self.order[rank];
            if residency.policy.is_resident(self.layer, expert) {
                residency.policy.forget(self.layer, expert);
                dropped.push(residency.slots[self.layer * self.pager.experts + expert].take());
            }
            dropped.push(slot);
        }
    }
}

/// Gives misses of the plan the places in which they were read ahead; other guesses are given up.
fn take_guesses(
    streamed: &Streamed,
    layer: usize,
    plan: &Plan,
    slots: &mut [Option<Arc<Slot>>],
    index: impl Fn(usize) -> usize,
) {
    let made = std::mem::take(&mut lock(&streamed.guesses).slots);
    for ((at, expert), slot) in made {
        let miss = plan.misses.iter().position(|&e| at == layer && e == expert);
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
        slots[plan.hits.len() + miss] = Some(slot);
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

impl Expert<'_> {
    /// Tile `t`, as soon as it has arrived.
    ///
    /// # Errors
    /// [`Error::Io`] when it could not be read; [`Error::Argument`] when there is no such tile.
    pub fn tile(&self, t: usize) -> Result<&[u8]> {
        if t >= self.slot.tiles() {
            return Err(Error::Argument(format!("there is no tile {t} of {}", self.slot.tiles())));
        }
        self.slot.tile(t).map_err(|e| unread(self.path, &e))
    }
}

/// A tile could not be read; others may be told the same.
pub(super) fn unread(path: &Path, problem: &io::Error) -> Error {
    Error::io("read", path)(io::Error::new(problem.kind(), problem.to_string()))
}
