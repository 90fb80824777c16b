//! How to choose.

use crate::{
    error::{Error, Result},
    limits::MOST_WEIGHT,
};

/// How to choose. The fields are applied in this order, as llama.cpp does it by default; the penalties look at the last
/// [`repeat_last_n`](Self::repeat_last_n) tokens, the prompt's included.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Added to the logits of these tokens; minus infinity forbids one.
    pub logit_bias: Vec<(u32, f32)>,
    /// Divides the logits of recent tokens where they are positive, and multiplies them where they are negative; 1 means none.
    pub repeat_penalty: f32,
    /// Taken from the logits of recent tokens; 0 means none.
    pub presence_penalty: f32,
    /// Taken from the logits of recent tokens as often as they occur; 0 means none.
    pub frequency_penalty: f32,
    /// Tokens that count as recent; 0 means none, `usize::MAX` all.
    pub repeat_last_n: usize,
    /// Keeps the k best tokens; 0 means all.
    pub top_k: usize,
    /// Keeps the fewest best tokens whose probabilities reach this sum; 1 means all.
    pub top_p: f32,
    /// Keeps the tokens with at least this part of the probability of the best; 0 means all.
    pub min_p: f32,
    /// Divides the logits; 0 means always the best token (the authors' evaluation setting).
    pub temperature: f32,
    /// The same seed gives the same choices from the same logits. Without one [`Sampler::new`](super::Sampler::new) takes a random one, of 32 bits
    /// so that it can be written down.
    pub seed: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            logit_bias: Vec::new(),
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repeat_last_n: 64,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            temperature: 0.0,
            seed: None,
        }
    }
}

impl Settings {
    /// Whether they make sense.
    ///
    /// # Errors
    /// [`Error::Argument`] with the setting and what it may be.
    pub fn check(&self) -> Result<()> {
        let fail = |what: &str, value: f32, range: &str| {
            Err(Error::Argument(format!("a {what} of {value} makes no sense; give {range}")))
        };
        if !(0.0..=MOST_WEIGHT).contains(&self.temperature) {
            return fail("temperature", self.temperature, "0 to 1e9");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return fail("top-p", self.top_p, "more than 0, up to 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return fail("min-p", self.min_p, "0 to 1");
        }
        if !(1.0 / MOST_WEIGHT..=MOST_WEIGHT).contains(&self.repeat_penalty) {
            return fail("repeat penalty", self.repeat_penalty, "1e-9 to 1e9 (1 is none)");
        }
        for (what, value) in
            [("presence penalty", self.presence_penalty), ("frequency penalty", self.frequency_penalty)]
        {
            if !(-MOST_WEIGHT..=MOST_WEIGHT).contains(&value) {
                return fail(what, value, "-1e9 to 1e9 (0 is none)");
            }
        }
        let allowed = |b: f32| b == f32::NEG_INFINITY || (-MOST_WEIGHT..=MOST_WEIGHT).contains(&b);
        let wrong = self.logit_bias.iter().find(|(_, b)| !allowed(*b));
        match wrong {
            Some((id, bias)) => fail(&format!("bias of token {id}"), *bias, "-1e9 to 1e9, or -inf"),
            None => Ok(()),
        }
    }
}
