//! The choice of tokens beside the plainest program that does the same: all of the vocabulary sorted, every sum in one loop.

use arbitrary::{Arbitrary, Unstructured};
use rand_xoshiro::{
    Xoshiro256PlusPlus,
    rand_core::{Rng, SeedableRng},
};
use yuan::sampler::{Sampler, Settings, StopText};

use crate::Seed;

#[derive(Arbitrary, Debug)]
struct Input {
    temperature: Level,
    top_k: u8,
    top_p: Level,
    min_p: Level,
    repeat: Level,
    presence: i8,
    frequency: i8,
    window: u8,
    seed: u8,
    bias: Vec<(u8, f32)>,
    stops: Vec<String>,
    text: Vec<String>,
    before: Vec<u8>,
    logits: Vec<Logit>,
}

/// A number that is often one that means something.
#[derive(Arbitrary, Debug)]
enum Level {
    Zero,
    One,
    Hundredths(u8),
    Any(f32),
}

impl Level {
    fn value(&self) -> f32 {
        match self {
            Self::Zero => 0.0,
            Self::One => 1.0,
            Self::Hundredths(n) => f32::from(*n) / 100.0,
            Self::Any(n) => *n,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Logit {
    Eighths(i8),
    Any(f32),
    Forbidden,
}

/// A sampler chooses four times from the same logits.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    stop_texts(&input);
    let logits = input.logits.iter().map(|logit| match logit {
        Logit::Eighths(n) => f32::from(*n) / 8.0,
        Logit::Any(n) => *n,
        Logit::Forbidden => f32::NEG_INFINITY,
    });
    let logits: Vec<f32> = logits.collect();
    let settings = Settings {
        logit_bias: input.bias.iter().map(|(id, bias)| (u32::from(*id), *bias)).collect(),
        repeat_penalty: input.repeat.value(),
        presence_penalty: f32::from(input.presence) / 16.0,
        frequency_penalty: f32::from(input.frequency) / 16.0,
        repeat_last_n: input.window.into(),
        top_k: input.top_k.into(),
        top_p: input.top_p.value(),
        min_p: input.min_p.value(),
        temperature: input.temperature.value(),
        seed: Some(input.seed.into()),
    };
    let Ok(mut sampler) = Sampler::new(settings.clone()) else { return };
    let mut plain =
        Plain { random: Xoshiro256PlusPlus::seed_from_u64(input.seed.into()), settings, recent: Vec::new() };
    let before: Vec<u32> = input.before.iter().map(|id| u32::from(*id)).collect();
    sampler.follow(&before);
    plain.recent.extend(&before);
    for _ in 0..4 {
        let saved = sampler.to_bytes();
        assert!(Sampler::from_bytes(&saved).expect("what was saved") == sampler);
        let chosen = sampler.sample(&logits);
        assert!(plain.may_choose(&logits, chosen), "{chosen} of {logits:?} by {:?}", plain.settings);
        plain.recent.push(chosen);
    }
}

struct Plain {
    random: Xoshiro256PlusPlus,
    settings: Settings,
    recent: Vec<u32>,
}

impl Plain {
    /// Whether the next choice is this one, or so near to it that only the rounding of sums is between them.
    fn may_choose(&mut self, logits: &[f32], chosen: u32) -> bool {
        let s = &self.settings;
        let mut logits = logits.to_vec();
        for (id, bias) in &s.logit_bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        let recent = &self.recent[self.recent.len().saturating_sub(s.repeat_last_n)..];
        for (id, logit) in (0..).zip(&mut logits) {
            let count = recent.iter().filter(|token| **token == id).count();
            if count > 0 {
                *logit = if *logit > 0.0 { *logit / s.repeat_penalty } else { *logit * s.repeat_penalty };
                *logit -= s.presence_penalty + s.frequency_penalty * count as f32;
            }
        }
        let mut ranked: Vec<(u32, f32)> = (0..).zip(logits).filter(|(_, logit)| logit.is_finite()).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let drawn = if s.temperature == 0.0 { 0 } else { self.random.next_u64() };
        let Some(best) = ranked.first().copied() else { return chosen == 0 };
        if s.temperature == 0.0 {
            return chosen == best.0;
        }
        if s.top_k > 0 {
            ranked.truncate(s.top_k);
        }
        let weight = |logit: f32, heat: f32| f64::from((logit - best.1) / heat).exp();
        let Some(place) = ranked.iter().position(|(id, _)| *id == chosen) else { return false };
        // Of sums that are compared, so much may be rounding.
        let near = 1e-9;
        if s.top_p < 1.0 {
            let whole: f64 = ranked.iter().map(|(_, logit)| weight(*logit, 1.0)).sum();
            let reached: f64 = ranked[..place].iter().map(|(_, logit)| weight(*logit, 1.0)).sum();
            if place > 0 && reached >= f64::from(s.top_p) * whole * (1.0 + near) {
                return false;
            }
        }
        let is_kept = |i: usize, share: f64| {
            let before: f64 = ranked[..i].iter().map(|(_, logit)| weight(*logit, 1.0)).sum();
            let whole: f64 = ranked.iter().map(|(_, logit)| weight(*logit, 1.0)).sum();
            i == 0
                || ((s.top_p >= 1.0 || before < f64::from(s.top_p) * whole * share)
                    && (s.min_p == 0.0 || weight(ranked[i].1, 1.0) >= f64::from(s.min_p) / share))
        };
        // The place of the number that was drawn, in the widest and the narrowest of what may be kept.
        let u = (drawn >> 11) as f64 / (1_u64 << 53) as f64;
        let [fewest, most] = [1.0 - near, 1.0 + near]
            .map(|share| (0..ranked.len()).take_while(|i| is_kept(*i, share)).count());
        // Of tokens that are nearly equal, any number may be kept.
        (fewest.max(place + 1)..=most).any(|kept| {
            let sum =
                |n: usize| ranked[..n].iter().map(|(_, logit)| weight(*logit, s.temperature)).sum::<f64>();
            let (from, to, whole) = (sum(place), sum(place + 1), sum(kept));
            from <= (u + near) * whole && (u - near) * whole <= to
        })
    }
}

/// Texts that end an answer are found as a search of the whole text finds them, however it comes.
fn stop_texts(input: &Input) {
    let mut stop = StopText::new(&input.stops);
    let (mut shown, mut found) = (String::new(), None);
    for piece in &input.text {
        let (more, stopped) = stop.push(piece);
        shown += &more;
        if stopped.is_some() {
            found = stopped;
            break;
        }
    }
    let whole = input.text.concat();
    if found.is_none() {
        shown += &stop.finish();
        assert_eq!(shown, whole);
    } else {
        assert!(whole.starts_with(&shown));
        let behind = &whole[shown.len()..];
        assert!(found.is_some_and(|i| behind.starts_with(&input.stops[i])));
    }
    let first =
        input.stops.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| whole.find(stop.as_str())).min();
    assert_eq!(found.is_some(), first.is_some(), "{:?} in {:?}", input.stops, input.text);
}

/// Enough bytes for every setting.
pub fn seeds() -> Vec<Seed> {
    (0..6_u8).map(|i| (0..200_u8).map(|n| n.wrapping_mul(37).wrapping_add(i * 41)).collect()).collect()
}
