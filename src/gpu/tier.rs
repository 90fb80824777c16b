//! Which experts are in the GPU's memory, and what happens to those that are not. Data only, as the pager's policy, which it uses: VRAM
//! is a second tier over memory as memory is over the drive.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use super::Costs;
use crate::pager::{Eviction, Policy};

/// How an expert of a request is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// On the GPU: it is in this slot.
    Here(usize),
    /// On the GPU, after it was copied into this slot, where it stays.
    Copy(usize),
    /// On the GPU, after it was copied to where experts pass through.
    Pass,
    /// On the CPU.
    Cpu,
}

/// The experts that a GPU's slots hold.
#[derive(Clone, Debug)]
pub struct Tier {
    policy: Policy,
    experts: usize,
    /// Whether there are places for experts that pass through.
    passes: bool,
    /// By `layer * experts + expert`.
    slots: Vec<Option<usize>>,
    free: Vec<usize>,
    /// Which have a slot, for readers that do not wait for a call.
    there: Arc<[AtomicBool]>,
}

impl Tier {
    /// Empty slots for the experts of `layers` layers. `passes` when there are places for others to pass through.
    pub fn new(layers: usize, experts: usize, slots: usize, passes: bool) -> Self {
        Self {
            policy: Policy::new(Eviction::Lfu, layers, experts, slots),
            experts,
            passes,
            slots: vec![None; layers * experts],
            free: (0..slots).rev().collect(),
            there: (0..layers * experts).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// Which experts are there, by `layer * experts + expert`, from now on.
    pub fn there(&self) -> Arc<[AtomicBool]> {
        self.there.clone()
    }

    /// A layer wants the experts `chosen` by its tokens, `used` a token, in the order of the tokens. Gives the way of each, in the order
    /// of their numbers. No slot of this very request is given to another expert.
    pub fn request(
        &mut self,
        layer: usize,
        chosen: &[usize],
        used: usize,
        costs: &Costs,
    ) -> Vec<(usize, Way)> {
        let mut tokens = vec![0; self.experts];
        chosen.iter().for_each(|&e| tokens[e] += 1);
        let plan = self.policy.request(layer, chosen, used);
        let own = |&(l, e): &(usize, usize)| l == layer && tokens[e] > 0;
        let (own, others): (Vec<_>, Vec<_>) = plan.leaving.iter().copied().partition(own);

        let mut ways: Vec<(usize, Way)> = plan.hits.iter().map(|&e| (e, self.here(layer, e))).collect();
        let mut others = others.into_iter();
        for expert in plan.misses {
            let n = tokens[expert];
            let mut way = if self.passes && costs.copy_pays(n, 0.0) { Way::Pass } else { Way::Cpu };
            if self.policy.is_resident(layer, expert) {
                let victim = if self.free.is_empty() { others.next() } else { None };
                let lost = victim.map_or(0.0, |(l, e)| self.policy.uses(l, e));
                let again = self.policy.uses(layer, expert) - lost;
                let slot =
                    victim.map_or_else(|| self.free.last().copied(), |(l, e)| self.slots[self.at(l, e)]);
                match slot {
                    Some(slot) if costs.copy_pays(n, again) => {
                        match victim {
                            Some((l, e)) => {
                                self.put(l, e, None);
                            }
                            None => drop(self.free.pop()),
                        }
                        self.put(layer, expert, Some(slot));
                        way = Way::Copy(slot);
                    }
                    _ => {
                        self.policy.forget(layer, expert);
                        victim.into_iter().for_each(|(l, e)| self.policy.keep(l, e));
                    }
                }
            }
            ways.push((expert, way));
        }
        // What nobody took the place of stays; own experts leave after this request, and none has taken their slots.
        let kept: Vec<_> = others.collect();
        kept.into_iter().for_each(|(l, e)| self.policy.keep(l, e));
        for (l, e) in own {
            let slot = self.put(l, e, None);
            self.free.extend(slot);
        }
        ways.sort_unstable_by_key(|&(expert, _)| expert);
        ways
    }

    /// An expert could not be copied into its slot.
    pub fn forget(&mut self, layer: usize, expert: usize) {
        self.policy.forget(layer, expert);
        let slot = self.put(layer, expert, None);
        self.free.extend(slot);
    }

    /// Whether an expert is there.
    pub fn has(&self, layer: usize, expert: usize) -> bool {
        self.slots.get(self.at(layer, expert)).is_some_and(Option::is_some)
    }

    /// The experts that are there.
    pub fn residents(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    fn here(&self, layer: usize, expert: usize) -> Way {
        Way::Here(self.slots[self.at(layer, expert)].expect("what the policy keeps has a slot"))
    }

    /// Gives an expert a slot, or none, and returns the one that it had.
    fn put(&mut self, layer: usize, expert: usize, slot: Option<usize>) -> Option<usize> {
        let at = self.at(layer, expert);
        self.there[at].store(slot.is_some(), Relaxed);
        std::mem::replace(&mut self.slots[at], slot)
    }

    fn at(&self, layer: usize, expert: usize) -> usize {
        layer * self.experts + expert
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COPY: Costs = Costs { copy: 0.1, cpu_first: 1.0, cpu_more: 1.0 };
    const CPU: Costs = Costs { copy: f64::INFINITY, cpu_first: 1.0, cpu_more: 1.0 };
    /// A copy that a second use pays for.
    const EVEN: Costs = Costs { copy: 3.5, cpu_first: 1.0, cpu_more: 0.5 };

    fn ways(tier: &mut Tier, chosen: &[usize], costs: &Costs) -> Vec<(usize, Way)> {
        tier.request(0, chosen, 2, costs)
    }

    #[test]
    fn what_was_copied_is_there_the_next_time() {
        let mut tier = Tier::new(1, 8, 4, true);
        assert_eq!(ways(&mut tier, &[5, 3], &COPY), [(3, Way::Copy(0)), (5, Way::Copy(1))]);
        assert_eq!(ways(&mut tier, &[3, 5], &CPU), [(3, Way::Here(0)), (5, Way::Here(1))]);
        assert_eq!(tier.residents(), 2);
    }

    #[test]
    fn without_slots_the_costs_say_whether_experts_pass_through() {
        let mut tier = Tier::new(1, 8, 0, true);
        assert_eq!(ways(&mut tier, &[1, 2], &COPY), [(1, Way::Pass), (2, Way::Pass)]);
        assert_eq!(ways(&mut tier, &[1, 2], &CPU), [(1, Way::Cpu), (2, Way::Cpu)]);
        let mut tier = Tier::new(1, 8, 0, false);
        assert_eq!(ways(&mut tier, &[1, 2], &COPY), [(1, Way::Cpu), (2, Way::Cpu)]);
    }

    #[test]
    fn an_expert_is_copied_when_its_uses_pay_for_it() {
        let mut tier = Tier::new(1, 8, 2, true);
        let uses: Vec<_> = (0..4).map(|_| ways(&mut tier, &[6], &EVEN)[0].1).collect();
        assert_eq!(uses, [Way::Cpu, Way::Cpu, Way::Copy(0), Way::Here(0)]);
    }

    #[test]
    fn the_subject_changes_and_the_slots_follow() {
        let mut tier = Tier::new(1, 16, 2, true);
        (0..50).for_each(|_| drop(ways(&mut tier, &[0, 1], &EVEN)));
        (0..150).for_each(|_| drop(ways(&mut tier, &[8, 9], &EVEN)));
        assert!(ways(&mut tier, &[8, 9], &EVEN).iter().all(|(_, w)| matches!(w, Way::Here(_))));
    }

    /// Whatever is asked for: no two experts share a slot, none that is used is overwritten, and what is "here" was copied there.
    #[test]
    fn slots_are_what_they_are_said_to_be() {
        let mut random = 7u64;
        let mut next = |n: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % n
        };
        for slots in [1, 2, 3, 7, 23, 24] {
            let mut tier = Tier::new(3, 8, slots, slots % 2 == 0);
            let mut contents = vec![None; slots];
            for step in 0..2000 {
                let (layer, tokens) = (step % 3, 1 + next(9) as usize);
                let among = 1 + next(8);
                let chosen: Vec<usize> = (0..2 * tokens).map(|_| next(among) as usize).collect();
                let costs = [COPY, CPU, EVEN][next(3) as usize];
                let ways = tier.request(layer, &chosen, 2, &costs);
                let mut wanted = chosen.clone();
                wanted.sort_unstable();
                wanted.dedup();
                assert_eq!(ways.iter().map(|w| w.0).collect::<Vec<_>>(), wanted);
                let here = |w: &&(usize, Way)| matches!(w.1, Way::Here(_));
                let before: Vec<_> = ways.iter().filter(here).collect();
                for (expert, way) in &ways {
                    match *way {
                        Way::Here(slot) => assert_eq!(contents[slot], Some((layer, *expert))),
                        Way::Copy(slot) => {
                            assert!(before.iter().all(|(_, w)| *w != Way::Here(slot)), "it is in use");
                            contents[slot] = Some((layer, *expert));
                            if next(20) == 0 {
                                contents[slot] = None;
                                tier.forget(layer, *expert);
                            }
                        }
                        Way::Pass => assert!(slots % 2 == 0),
                        Way::Cpu => {}
                    }
                }
                assert!(tier.residents() <= slots);
                let there = |at: usize| tier.there[at].load(Relaxed) == tier.has(at / 8, at % 8);
                assert!((0..24).all(there), "readers see what there is");
                assert_eq!(tier.residents() + tier.free.len(), slots);
            }
        }
    }
}
