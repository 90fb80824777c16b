//! `yuan bench -o`: tests of prompts, of answers and of both, each a row of a table, as llama-bench has them.

use std::time::{Duration, Instant, SystemTime};

use anyhow::ensure;
use indicatif::ProgressBar;
use serde_json::{Map, Value, json};
use yuan::model::{KvType, Model, Sequence, State, Want};
use yuan_tools::console::{cancel_on_stop, stopped};

/// Tests of one table at most.
const MOST_TESTS: usize = 10_000;

/// What is measured: a prompt and an answer, either of which may be of no tokens, behind so many others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    pub prompt: usize,
    pub tokens: usize,
    pub depth: usize,
}

impl Test {
    /// Its name in llama-bench: `pp512`, `tg128`, `pp512+tg128`, `tg128 @ d4096`.
    pub fn name(self) -> String {
        let parts = [("pp", self.prompt), ("tg", self.tokens)].into_iter().filter(|(_, n)| *n > 0);
        let name = parts.map(|(kind, n)| format!("{kind}{n}")).collect::<Vec<_>>().join("+");
        if self.depth == 0 { name } else { format!("{name} @ d{}", self.depth) }
    }

    /// Tokens of the whole context.
    pub const fn context(self) -> usize {
        self.depth + self.prompt + self.tokens
    }
}

/// Behind every depth the prompts, then the answers, then the pairs of both.
///
/// # Errors
/// For none, or more than anybody can wait for.
pub fn tests(
    prompts: &[usize],
    answers: &[usize],
    pairs: &[(usize, usize)],
    depths: &[usize],
) -> anyhow::Result<Vec<Test>> {
    let alone = prompts.iter().map(|&n| (n, 0)).chain(answers.iter().map(|&n| (0, n)));
    let shapes: Vec<_> = alone.chain(pairs.iter().copied()).filter(|&(p, n)| p + n > 0).collect();
    ensure!(!shapes.is_empty(), "there is nothing to measure: raise -p or -n");
    let count = shapes.len().saturating_mul(depths.len());
    ensure!(count <= MOST_TESTS, "these are {count} tests, and {MOST_TESTS} are the most: give fewer values");
    let behind = |&depth: &usize| {
        shapes.iter().map(move |&(prompt, tokens)| Test { prompt, tokens, depth }).collect::<Vec<_>>()
    };
    Ok(depths.iter().flat_map(behind).collect())
}

/// How tests are run.
pub struct Runner<'m> {
    pub model: &'m Model,
    pub kv: KvType,
    pub repeat: usize,
    /// Whether what a test runs first is not counted: the prompt, and a token of the answer.
    pub warm_up: bool,
    /// Hears how many repetitions have ended.
    pub bar: &'m ProgressBar,
}

/// What a test took.
pub struct Measured {
    test: Test,
    begun: SystemTime,
    times: Vec<Duration>,
}

impl Runner<'_> {
    /// Runs a test; `token` is the token in a place.
    pub fn run(&self, test: Test, token: impl Fn(usize) -> u32) -> anyhow::Result<Measured> {
        let Test { prompt, tokens, depth } = test;
        let text: Vec<u32> = (0..test.context()).map(token).collect();
        let mut state = State::new(self.model.config(), text.len(), self.kv)?;
        let _stop = cancel_on_stop(state.cancel.clone());
        self.bar.set_message(test.name());
        if self.warm_up {
            self.pass(&mut state, &text[..prompt], self.model.batch())?;
            self.pass(&mut state, &text[prompt..][..tokens.min(1)], 1)?;
            state.rewind(0);
        }
        let (begun, mut times) = (SystemTime::now(), Vec::new());
        for _ in 0..self.repeat {
            let reached = state.rewind(depth);
            self.pass(&mut state, &text[reached..depth], self.model.batch())?;
            let start = Instant::now();
            self.pass(&mut state, &text[depth..depth + prompt], self.model.batch())?;
            self.pass(&mut state, &text[depth + prompt..], 1)?;
            times.push(start.elapsed());
            self.bar.inc(1);
        }
        Ok(Measured { test, begun, times })
    }

    /// Runs the tokens, so many at a time.
    fn pass(&self, state: &mut State, tokens: &[u32], batch: usize) -> anyhow::Result<()> {
        for tokens in tokens.chunks(batch) {
            self.model
                .forward(&mut [Sequence { tokens, drafted: 0, state, want: Want::Best(1) }])
                .remove(0)?;
            ensure!(!stopped(), "stopped on request");
        }
        Ok(())
    }
}

impl Measured {
    /// The test's own fields of a row, by their names in llama-bench: times in ns, speeds in tokens a second, each with its mean, its standard deviation
    /// and all of them.
    pub fn fields(&self) -> Map<String, Value> {
        let Test { prompt, tokens, depth } = self.test;
        let ns: Vec<u64> = self.times.iter().map(|time| time.as_nanos().max(1) as u64).collect();
        let speeds: Vec<f64> = ns.iter().map(|&ns| (prompt + tokens) as f64 * 1e9 / ns as f64).collect();
        let (time, of_times) = spread(ns.iter().map(|&ns| ns as f64));
        let (speed, of_speeds) = spread(speeds.iter().copied());
        let fields = json!({
            "n_prompt": prompt, "n_gen": tokens, "n_depth": depth,
            "test_time": humantime::format_rfc3339_seconds(self.begun).to_string(),
            "avg_ns": time.round() as u64, "stddev_ns": of_times.round() as u64, "avg_ts": speed, "stddev_ts": of_speeds,
            "samples_ns": ns, "samples_ts": speeds,
        });
        if let Value::Object(fields) = fields { fields } else { Map::new() }
    }
}

/// The mean, and the standard deviation as a sample has it: 0 of one number.
fn spread(numbers: impl ExactSizeIterator<Item = f64> + Clone) -> (f64, f64) {
    let n = numbers.len() as f64;
    let mean = numbers.clone().sum::<f64>() / n.max(1.0);
    let squares: f64 = numbers.map(|x| (x - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_is_a_test_with_the_name_that_people_know() {
        let all = tests(&[512, 0], &[16, 32], &[(8, 4)], &[0, 100]).unwrap();
        let names: Vec<_> = all.iter().map(|test| test.name()).collect();
        assert_eq!(names[..4], ["pp512", "tg16", "tg32", "pp8+tg4"]);
        assert_eq!(names[4..], ["pp512 @ d100", "tg16 @ d100", "tg32 @ d100", "pp8+tg4 @ d100"]);
        assert_eq!(all[7].context(), 112);
        assert!(tests(&[0], &[0], &[], &[0]).unwrap_err().to_string().contains("raise -p or -n"));
        assert!(tests(&[1; 200], &[], &[], &[1; 200]).unwrap_err().to_string().contains("40000 tests"));
    }

    #[test]
    fn the_deviation_is_that_of_a_sample() {
        let (mean, deviation) = spread([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0].into_iter());
        assert!(mean == 5.0 && (deviation - (32.0f64 / 7.0).sqrt()).abs() < 1e-12);
        assert_eq!(spread([3.0].into_iter()), (3.0, 0.0));
    }

    #[test]
    fn a_row_tells_what_was_measured() {
        let test = Test { prompt: 10, tokens: 0, depth: 3 };
        let times = [1, 2].map(Duration::from_secs).to_vec();
        let fields = Measured { test, begun: SystemTime::UNIX_EPOCH, times }.fields();
        assert_eq!(
            (&fields["n_prompt"], &fields["n_gen"], &fields["n_depth"]),
            (&json!(10), &json!(0), &json!(3))
        );
        assert_eq!((&fields["avg_ns"], &fields["avg_ts"]), (&json!(1_500_000_000), &json!(7.5)));
        assert_eq!(
            (&fields["test_time"], &fields["samples_ts"]),
            (&json!("1970-01-01T00:00:00Z"), &json!([10.0, 5.0]))
        );
    }
}
