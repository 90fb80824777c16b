//! Answers with drafts beside the same answers without, for `yuan bench --draft`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde_json::{Value, json};
use yuan::{
    model::KvType,
    sampler::{Sampler, Settings},
    session::{Drafted, Drafts, Engine, Limits, Session},
};
use yuan_tools::console::{cancel_on_stop, stopped, unless_stopped};

/// What is measured.
pub struct Pairs<'e> {
    pub engine: &'e Arc<Engine>,
    pub drafts: Drafts,
    /// The part of the drafts that is right, where they are prescribed.
    pub accept: Option<f64>,
    pub kv: KvType,
    /// Of an answer.
    pub tokens: usize,
}

/// What was measured.
pub struct Measured {
    /// Tokens a second without drafts and with them, in pairs.
    speeds: Vec<(f64, f64)>,
    drafted: Drafted,
}

impl Pairs<'_> {
    /// So many answers to the prompt, each without drafts, and then again with them.
    pub fn run(&self, prompt: &[u32], repeat: usize) -> anyhow::Result<Measured> {
        let mut session = Session::new(self.engine.clone(), prompt.len() + self.tokens, self.kv)?;
        let _stop = cancel_on_stop(session.cancel_token());
        let mut speeds = Vec::new();
        for number in 0..repeat {
            session.set_drafts(Drafts::Off);
            let (wanted, without) = self.answer(&mut session, prompt, number)?;
            session.set_drafts(self.drafts);
            if let Some(accept) = self.accept {
                let (known, begun) = (wanted.clone(), prompt.len());
                session.draft_by(Some(Box::new(move |timeline, most| {
                    let at = timeline.len() - begun;
                    (at..known.len()).take(most).map(|i| draft(&known, i, accept)).collect()
                })));
            }
            let (found, with) = self.answer(&mut session, prompt, number)?;
            ensure!(found == wanted, "drafts have changed the answer: please report this");
            // The first token comes from the prompt.
            let speed = |took: Duration| (self.tokens - 1) as f64 / took.as_secs_f64().max(1e-9);
            speeds.push((speed(without), speed(with)));
        }
        Ok(Measured { speeds, drafted: session.drafted() })
    }

    /// An answer, and how long it took behind its first token. Of the best forty tokens each is as likely as the others, so that the experts that they use are not always the same.
    fn answer(
        &self,
        session: &mut Session,
        prompt: &[u32],
        number: usize,
    ) -> anyhow::Result<(Vec<u32>, Duration)> {
        session.sync(prompt, |_| unless_stopped())?;
        let settings =
            Settings { temperature: 1e9, top_k: 40, seed: Some(number as u64), ..Settings::default() };
        let limits = Limits { ignore_eod: true, ..Limits::tokens(self.tokens) };
        let (mut tokens, mut begun) = (Vec::new(), Instant::now());
        session.generate(&mut Sampler::new(settings)?, &limits, |token, _| {
            if tokens.is_empty() {
                begun = Instant::now();
            }
            tokens.extend(token);
            unless_stopped()
        })?;
        ensure!(!stopped(), "stopped on request");
        Ok((tokens, begun.elapsed()))
    }
}

/// What is drafted for the token in place `i` of an answer, right in this part of all places.
fn draft(answer: &[u32], i: usize, accept: f64) -> u32 {
    let dice = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11;
    let right = (dice as f64 / (1u64 << 53) as f64) < accept;
    if right { answer[i] } else { u32::from(answer[i] == 0) }
}

impl Measured {
    /// The middle of the speeds without drafts, with them, and of the factors between the two of a pair.
    fn medians(&self) -> [f64; 3] {
        let median = |of: fn(&(f64, f64)) -> f64| {
            let mut all: Vec<f64> = self.speeds.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        [median(|s| s.0), median(|s| s.1), median(|s| s.1 / s.0)]
    }

    pub fn describe(&self, depth: usize, tokens: usize) -> String {
        let [without, with, factor] = self.medians();
        let Drafted { tokens: drafted, accepted } = self.drafted;
        format!(
            "decode     {without:.2} tok/s without drafts, {with:.2} with them: {factor:.3} times as fast ({tokens} tokens after {depth})\n\
             drafts     {accepted} of {drafted} were right"
        )
    }

    pub fn json(&self) -> Value {
        let [without, with, factor] = self.medians();
        json!({
            "without_tokens_per_second": without, "with_tokens_per_second": with, "factor": factor,
            "drafted_tokens": self.drafted.tokens, "accepted_tokens": self.drafted.accepted,
            "pairs": self.speeds.iter().map(|(without, with)| json!([without, with])).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::draft;

    #[test]
    fn so_many_drafts_are_right_as_was_said() {
        let answer: Vec<u32> = (0..10_000).map(|i| i % 7).collect();
        for accept in [0.0, 0.3, 0.9, 1.0] {
            let right = (0..answer.len()).filter(|&i| draft(&answer, i, accept) == answer[i]).count();
            assert!((right as f64 / 10_000.0 - accept).abs() < 0.01, "{accept}: {right}");
        }
    }
}
