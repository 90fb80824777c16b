//! A sampler as bytes (FORMAT.md, "Saved sessions"): settings, random state, recent tokens.

use std::collections::VecDeque;

use rand_xoshiro::{Xoshiro256PlusPlus, rand_core::SeedableRng};
use serde::Deserialize;

use super::{Sampler, Settings};
use crate::error::{Error, Result};

impl Sampler {
    /// The sampler as bytes, from which [`Sampler::from_bytes`] makes one that chooses the same.
    pub fn to_bytes(&self) -> Vec<u8> {
        let s = &self.settings;
        let floats =
            [s.temperature, s.top_p, s.min_p, s.repeat_penalty, s.presence_penalty, s.frequency_penalty];
        let mut out: Vec<u8> = floats.iter().flat_map(|f| f.to_le_bytes()).collect();
        let word = |n: usize| n as u64;
        let counts = [word(s.top_k), word(s.repeat_last_n), s.seed.unwrap_or(0)];
        let lengths = [word(s.logit_bias.len()), word(self.recent.len())];
        let words = counts.into_iter().chain(self.random_words()).chain(lengths);
        out.extend(words.flat_map(u64::to_le_bytes));
        out.extend(s.logit_bias.iter().flat_map(|(id, b)| [id.to_le_bytes(), b.to_le_bytes()]).flatten());
        out.extend(self.recent.iter().flat_map(|id| id.to_le_bytes()));
        out
    }

    /// The inverse of [`Sampler::to_bytes`].
    ///
    /// # Errors
    /// [`Error::Argument`] when they are no sampler's, or their settings make no sense.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let fail = || Error::Argument("the bytes are no sampler's: save it again".into());
        let mut input = Input(bytes);
        let sampler = input.sampler().ok_or_else(fail)?;
        sampler.settings.check()?;
        Ok(sampler)
    }

    /// The state of the random numbers. Its type shows it to a serializer only.
    fn random_words(&self) -> [u64; 4] {
        #[derive(Deserialize)]
        struct Words {
            s: [u64; 4],
        }
        let words = serde_json::to_value(&self.random).and_then(serde_json::from_value::<Words>);
        words.expect("the generator is four words").s
    }
}

struct Input<'b>(&'b [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn float(&mut self) -> Option<f32> {
        self.take().map(f32::from_le_bytes)
    }

    fn word(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn id(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn size(&mut self) -> Option<usize> {
        self.word().and_then(|n| usize::try_from(n).ok())
    }

    /// All of it, to the last byte. Lists grow as they are read, so that a wrong length costs nothing.
    fn sampler(&mut self) -> Option<Sampler> {
        let mut settings = Settings {
            temperature: self.float()?,
            top_p: self.float()?,
            min_p: self.float()?,
            repeat_penalty: self.float()?,
            presence_penalty: self.float()?,
            frequency_penalty: self.float()?,
            top_k: self.size()?,
            repeat_last_n: self.size()?,
            seed: Some(self.word()?),
            logit_bias: Vec::new(),
        };
        let random = Xoshiro256PlusPlus::from_seed(self.take()?);
        let (biases, tokens) = (self.size()?, self.size()?);
        for _ in 0..biases {
            settings.logit_bias.push((self.id()?, self.float()?));
        }
        let mut recent = VecDeque::new();
        for _ in 0..tokens {
            recent.push_back(self.id()?);
        }
        self.0.is_empty().then_some(Sampler { settings, random, recent })
    }
}
