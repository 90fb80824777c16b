//! Choosing the next token from its logits.
//!
//! The chain, in the order that users of llama.cpp know: bias, penalties, top-k, top-p, min-p, temperature, and a draw.

pub(crate) mod exp;
mod penalties;
mod ranking;
mod saved;
mod settings;
mod stop;

use std::collections::VecDeque;

use rand_xoshiro::{
    Xoshiro256PlusPlus,
    rand_core::{Rng, SeedableRng},
};

use crate::error::{Error, Result};
use exp::exp;
use ranking::{Ranking, by_rank};

pub use ranking::best;
pub use settings::Settings;
pub use stop::StopText;

/// A stream of choices. The same settings, seed and logits give the same choices on every machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampler {
    settings: Settings,
    random: Xoshiro256PlusPlus,
    /// The last tokens, for the penalties; the newest is last.
    recent: VecDeque<u32>,
}

impl Sampler {
    /// A sampler at the start of its stream.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings that make no sense, as [`Settings::check`] has it, and where no seed is given and the system has none.
    pub fn new(mut settings: Settings) -> Result<Self> {
        settings.check()?;
        let seed = settings.seed.map_or_else(random_seed, Ok)?;
        settings.seed = Some(seed);
        Ok(Self { settings, random: Xoshiro256PlusPlus::seed_from_u64(seed), recent: VecDeque::new() })
    }

    /// The settings, with the seed that was chosen where none was given.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The seed of the choices, where they are random.
    pub fn seed(&self) -> Option<u64> {
        self.settings.seed.filter(|_| self.settings.temperature > 0.0)
    }

    /// Other settings for the choices to come. The stream of random numbers begins anew when they name another seed.
    ///
    /// # Errors
    /// As [`Sampler::new`]; the settings are then as before.
    pub fn set(&mut self, settings: Settings) -> Result<()> {
        settings.check()?;
        let seed = settings.seed.or(self.settings.seed);
        if let Some(seed) = seed.filter(|_| seed != self.settings.seed) {
            self.random = Xoshiro256PlusPlus::seed_from_u64(seed);
        }
        self.settings = Settings { seed, ..settings };
        self.trim();
        Ok(())
    }

    /// The penalties look at the end of `tokens`, and at what is chosen from now on.
    pub fn follow(&mut self, tokens: &[u32]) {
        let first = tokens.len().saturating_sub(self.settings.repeat_last_n);
        self.recent = tokens[first..].iter().copied().collect();
    }

    /// The penalties look at `token` too, which someone else has chosen. ([`Sampler::sample`] does it with its own.)
    pub fn accept(&mut self, token: u32) {
        self.recent.push_back(token);
        self.trim();
    }

    fn trim(&mut self) {
        let excess = self.recent.len().saturating_sub(self.settings.repeat_last_n);
        self.recent.drain(..excess);
    }

    /// The next token from `logits` \[V\]. A token whose logit is infinite or not a number is never chosen; where there are no others it is 0.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        let token = self.choose(logits);
        self.accept(token);
        token
    }

    /// How many of the best tokens a choice looks at, where it does not look at all of them: [`Sampler::sample_best`] is then the same as
    /// [`Sampler::sample`].
    pub fn looks_at(&self) -> Option<usize> {
        match self.settings.top_k {
            _ if self.changes_logits() => None,
            _ if self.settings.temperature == 0.0 => Some(1),
            0 => None,
            // One more, and so sums go by rank: of all tokens they would go by id.
            k => k.checked_add(1),
        }
    }

    /// The next token from at least [`Sampler::looks_at`] tokens and their logits, all finite: the best of all, best first and of equals
    /// the lower id first.
    pub fn sample_best(&mut self, best: &[(u32, f32)]) -> u32 {
        let token = match self.settings.temperature {
            0.0 => best.first().map_or(0, |b| b.0),
            _ => self.draw(Ranking::of_best(best)),
        };
        self.accept(token);
        token
    }

    fn choose(&mut self, logits: &[f32]) -> u32 {
        let changed = self.changes_logits().then(|| {
            let mut logits = logits.to_vec();
            penalties::apply(&mut logits, &self.settings, self.recent.iter().copied());
            logits
        });
        let logits = changed.as_deref().unwrap_or(logits);
        match self.settings.top_k {
            _ if self.settings.temperature == 0.0 => greedy(logits),
            0 => self.draw(Ranking::new(logits)),
            k => self.draw(Ranking::of_best(&best(logits, k.saturating_add(1)))),
        }
    }

    fn changes_logits(&self) -> bool {
        let s = &self.settings;
        let penalties = s.repeat_penalty != 1.0 || s.presence_penalty != 0.0 || s.frequency_penalty != 0.0;
        !s.logit_bias.is_empty() || (penalties && !self.recent.is_empty())
    }

    /// A random choice among the tokens that top-k, top-p and min-p leave.
    fn draw(&mut self, mut ranking: Ranking) -> u32 {
        let u = self.uniform();
        let Settings { temperature, top_k, top_p, min_p, .. } = self.settings;
        let Some(max) = ranking.max() else { return 0 };
        let all = ranking.len();
        let weight = |logit: f32, t: f32| exp(f64::from((logit - max) / t));

        let mut kept = if top_k == 0 { all } else { top_k.min(all) };
        if top_p < 1.0 {
            let whole = ranking.sum(kept, |l| weight(l, 1.0));
            let (mut n, mut reached) = (0, 0.0);
            while n < kept && (n == 0 || reached < f64::from(top_p) * whole) {
                reached += weight(ranking.get(n).1, 1.0);
                n += 1;
            }
            kept = n;
        }
        if min_p > 0.0 {
            kept =
                (0..kept).take_while(|&i| weight(ranking.get(i).1, 1.0) >= f64::from(min_p)).count().max(1);
        }
        let mut left = u * ranking.sum(kept, |l| weight(l, temperature));
        for i in 0..kept {
            let (id, logit) = ranking.get(i);
            left -= weight(logit, temperature);
            if left < 0.0 {
                return id;
            }
        }
        // Rounding has left a crumb: the last one that has any weight.
        ranking.get(kept - 1).0
    }

    /// Uniform in [0, 1), from the upper 53 bits of the next random word.
    fn uniform(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A seed that nobody knows before.
fn random_seed() -> Result<u64> {
    let seed = getrandom::u32().map_err(|e| {
        Error::Argument(format!("the system has no random numbers for a seed ({e}); give a seed"))
    });
    seed.map(u64::from)
}

/// The best token whose logit is finite, or 0 where there is none.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in (0..).zip(logits) {
        if logit >= best.1 && logit.is_finite() && by_rank(&(id, logit), &best).is_lt() {
            best = (id, logit);
        }
    }
    best.0
}

#[cfg(test)]
mod tests;
