//! Choosing the next token from its logits.

use rand_xoshiro::{
    Xoshiro256PlusPlus,
    rand_core::{Rng, SeedableRng},
};

use crate::error::{Error, Result};

/// How to choose. Temperature is applied first, then top-k, then top-p, as the authors' scripts do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Divides the logits; 0 means always the best token (the authors' evaluation setting).
    pub temperature: f32,
    /// Keeps the k best tokens; 0 means all.
    pub top_k: usize,
    /// Keeps the fewest best tokens whose probabilities reach this sum; 1 means all.
    pub top_p: f32,
    /// The same seed gives the same choices from the same logits.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

/// A stream of choices.
#[derive(Clone, Debug)]
pub struct Sampler {
    settings: Settings,
    random: Xoshiro256PlusPlus,
}

impl Sampler {
    /// A sampler at the start of its stream.
    ///
    /// # Errors
    /// [`Error::Argument`] for a negative temperature or a top-p outside (0, 1].
    pub fn new(settings: Settings) -> Result<Self> {
        if !(settings.temperature >= 0.0 && settings.temperature.is_finite()) {
            let t = settings.temperature;
            return Err(Error::Argument(format!("a temperature of {t} makes no sense; give 0 or more")));
        }
        if !(settings.top_p > 0.0 && settings.top_p <= 1.0) {
            let p = settings.top_p;
            return Err(Error::Argument(format!("a top-p of {p} makes no sense; give more than 0, up to 1")));
        }
        Ok(Self { settings, random: Xoshiro256PlusPlus::seed_from_u64(settings.seed) })
    }

    /// The next token from `logits` \[V\]. Logits that are not numbers are never chosen.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        if self.settings.temperature == 0.0 {
            return greedy(logits);
        }
        let mut order: Vec<(u32, f32)> =
            (0..).zip(logits.iter().copied()).filter(|(_, l)| l.is_finite()).collect();
        order.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.settings.top_k > 0 {
            order.truncate(self.settings.top_k);
        }
        let Some(&(best, max)) = order.first() else { return 0 };
        for (_, logit) in &mut order {
            *logit = ((*logit - max) / self.settings.temperature).exp();
        }
        let sum: f32 = order.iter().map(|(_, p)| p).sum();
        let (mut kept, mut reached) = (0, 0.0);
        while kept < order.len() && (kept == 0 || reached < self.settings.top_p * sum) {
            reached += order[kept].1;
            kept += 1;
        }
        let mut left = self.uniform() * reached;
        for &(id, p) in &order[..kept] {
            left -= p;
            if left < 0.0 {
                return id;
            }
        }
        order[..kept].last().map_or(best, |&(id, _)| id)
    }

    /// Uniform in [0, 1), from the upper 24 bits of the next random word.
    fn uniform(&mut self) -> f32 {
        (self.random.next_u64() >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// The token with the highest logit, the lowest id among equals.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in (0..).zip(logits) {
        if logit > best.1 {
            best = (id, logit);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, f32::NAN, 2.0, -1.0];

    fn draw(settings: Settings, n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(settings).unwrap();
        (0..n).map(|_| sampler.sample(&LOGITS)).collect()
    }

    #[test]
    fn no_temperature_takes_the_best() {
        assert_eq!(draw(Settings::default(), 3), [1, 1, 1]);
    }

    #[test]
    fn the_same_seed_gives_the_same_stream() {
        let settings = Settings { temperature: 1.0, seed: 7, ..Settings::default() };
        assert_eq!(draw(settings, 100), draw(settings, 100));
        assert_ne!(draw(settings, 100), draw(Settings { seed: 8, ..settings }, 100));
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let settings = Settings { temperature: 1.0, ..Settings::default() };
        assert!(draw(Settings { top_k: 2, ..settings }, 500).iter().all(|id| [1, 3].contains(id)));
        assert!(draw(Settings { top_p: 0.5, ..settings }, 500).iter().all(|&id| id == 1));
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let drawn = draw(Settings { temperature: 1.0, ..Settings::default() }, 20_000);
        let sum: f32 = [1f32, 3.0, 2.0, -1.0].iter().map(|l| l.exp()).sum();
        for (id, logit) in [(0, 1f32), (1, 3.0), (3, 2.0), (4, -1.0)] {
            let share = drawn.iter().filter(|&&d| d == id).count() as f32 / 20_000.0;
            assert!((share - logit.exp() / sum).abs() < 0.015, "{id}: {share}");
        }
    }

    #[test]
    fn nonsense_settings_are_errors() {
        assert!(Sampler::new(Settings { temperature: -1.0, ..Settings::default() }).is_err());
        assert!(Sampler::new(Settings { top_p: 0.0, ..Settings::default() }).is_err());
        assert!(Sampler::new(Settings { temperature: f32::NAN, ..Settings::default() }).is_err());
    }
}
