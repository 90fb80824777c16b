//! `yuan bench --sequences`: sequences that decode together.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use yuan::model::{KvType, Model, Sequence, State, Want};
use yuan_tools::console::{cancel_on_stop, stopped};

use super::phases::Recording;

/// What is measured: `sequences` of them, each behind a prompt of its own.
pub struct Together<'m> {
    pub model: &'m Model,
    pub kv: KvType,
    pub prompt: usize,
    pub tokens: usize,
    pub repeat: usize,
    /// Whether the prompts and a token are run once before, and not counted.
    pub warm_up: bool,
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
    /// The median of the repetitions: every one runs all prompts, and then so many passes with a token of each sequence. Behind them the phases of up to so many more are
    /// `recorded`.
    pub fn run(
        &self,
        sequences: usize,
        recorded: usize,
        token: impl Fn(usize) -> u32,
    ) -> anyhow::Result<(Speed, Option<Recording>)> {
        let length = self.prompt + self.tokens;
        let state = || State::new(self.model.config(), length, self.kv);
        let mut states = (0..sequences).map(|_| state()).collect::<Result<Vec<_>, _>>()?;
        // Other tokens in each, so that each wants experts of its own.
        let texts: Vec<Vec<u32>> =
            (0..sequences).map(|i| (i * length..(i + 1) * length).map(&token).collect()).collect();
        let prompts = |states: &mut [State]| -> anyhow::Result<()> {
            for (state, text) in states.iter_mut().zip(&texts) {
                state.rewind(0);
                let _stop = cancel_on_stop(state.cancel.clone());
                for batch in text[..self.prompt].chunks(self.model.batch()) {
                    self.model.forward_one(batch, state, Want::Nothing)?;
                    ensure!(!stopped(), "stopped on request");
                }
            }
            Ok(())
        };
        let answers = |states: &mut [State], tokens: usize| -> anyhow::Result<Duration> {
            let start = Instant::now();
            for at in self.prompt..self.prompt + tokens {
                let pass = states.iter_mut().zip(&texts);
                let mut pass: Vec<_> = pass
                    .map(|(state, text)| Sequence {
                        tokens: &text[at..=at],
                        drafted: 0,
                        state,
                        want: Want::Best(1),
                    })
                    .collect();
                let outputs = self.model.forward(&mut pass).into_iter().collect::<Result<Vec<_>, _>>()?;
                // As a session does.
                states.iter_mut().zip(outputs).for_each(|(state, output)| state.reuse(output.into_rows()));
                ensure!(!stopped(), "stopped on request");
            }
            Ok(start.elapsed())
        };
        if self.warm_up {
            prompts(&mut states)?;
            answers(&mut states, 1)?;
        }
        let mut times = Vec::new();
        for _ in 0..self.repeat {
            prompts(&mut states)?;
            times.push(answers(&mut states, self.tokens)?);
        }
        times.sort();
        let median = times[times.len() / 2];
        let total = (sequences * self.tokens) as f64 / median.as_secs_f64().max(1e-9);
        let recording = match recorded.min(self.tokens) {
            0 => None,
            tokens => {
                prompts(&mut states)?;
                self.model.record_phases(0);
                answers(&mut states, tokens)?;
                let threads = self.model.batch_threads();
                let passes = self.model.recorded_phases();
                Some(Recording::new(format!("sequences {sequences}"), threads, passes))
            }
        };
        Ok((Speed { sequences, total }, recording))
    }
}
