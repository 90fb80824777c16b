//! `yuan bench --sequences`: sequences that decode together.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use yuan::model::{KvType, Model, Sequence, State, Want};
use yuan_tools::console::{cancel_on_stop, stopped};

/// What is measured: `sequences` of them, each behind a prompt of its own.
pub struct Together<'m> {
    pub model: &'m Model,
    pub kv: KvType,
    pub prompt: usize,
    pub tokens: usize,
    pub repeat: usize,
}

/// The speed of so many sequences.
pub struct Speed {
    pub sequences: usize,
    /// Tokens a second of all together.
    pub total: f64,
}

impl Speed {
    /// Tokens a second of each sequence.
    pub fn each(&self) -> f64 {
        self.total / self.sequences as f64
    }

    /// For a program.
    pub fn json(&self) -> Value {
        json!({ "sequences": self.sequences, "tokens_per_second": self.total, "tokens_per_second_each": self.each() })
    }
}

impl Together<'_> {
    /// The median of the repetitions: every one runs all prompts, and then so many passes with a token of each sequence.
    pub fn run(&self, sequences: usize, token: impl Fn(usize) -> u32) -> anyhow::Result<Speed> {
        let length = self.prompt + self.tokens;
        let state = || State::new(self.model.config(), length, self.kv);
        let mut states = (0..sequences).map(|_| state()).collect::<Result<Vec<_>, _>>()?;
        // Other tokens in each, so that each wants experts of its own.
        let texts: Vec<Vec<u32>> =
            (0..sequences).map(|i| (i * length..(i + 1) * length).map(&token).collect()).collect();
        let mut times = Vec::new();
        for _ in 0..self.repeat {
            for (state, text) in states.iter_mut().zip(&texts) {
                state.rewind(0);
                let _stop = cancel_on_stop(state.cancel.clone());
                for batch in text[..self.prompt].chunks(self.model.batch()) {
                    self.model.forward_one(batch, state, Want::Nothing)?;
                    ensure!(!stopped(), "stopped on request");
                }
            }
            let start = Instant::now();
            for at in self.prompt..length {
                let pass = states.iter_mut().zip(&texts);
                let mut pass: Vec<_> = pass
                    .map(|(state, text)| Sequence {
                        tokens: &text[at..=at],
                        drafted: 0,
                        state,
                        want: Want::Best(1),
                    })
                    .collect();
                self.model.forward(&mut pass).into_iter().collect::<Result<Vec<_>, _>>()?;
                ensure!(!stopped(), "stopped on request");
            }
            times.push(start.elapsed());
        }
        times.sort();
        let median: Duration = times[times.len() / 2];
        Ok(Speed { sequences, total: (sequences * self.tokens) as f64 / median.as_secs_f64().max(1e-9) })
    }
}
