//! What is counted, as Prometheus reads it.

use std::{
    fmt::{Display, Write},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{server::Server, work::Figures};

/// Upper ends of times, in seconds.
const TIMES: [f64; 14] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 60.0];
/// Classes of status: 1xx to 5xx.
const CLASSES: usize = 5;

/// Counters of a server.
#[derive(Debug, Default)]
pub struct Metrics {
    replies: [AtomicU64; CLASSES],
    refused: AtomicU64,
    prompt: AtomicU64,
    cached: AtomicU64,
    answer: AtomicU64,
    forced: AtomicU64,
    first_token: Times,
    between_tokens: Times,
}

/// A histogram of times.
#[derive(Debug, Default)]
struct Times {
    /// Those up to each end of [`TIMES`] and above the one before, and those above all.
    counts: [AtomicU64; TIMES.len() + 1],
    microseconds: AtomicU64,
}

impl Times {
    fn add(&self, time: Duration) {
        let place = TIMES.iter().take_while(|end| time.as_secs_f64() > **end).count();
        self.counts[place].fetch_add(1, Relaxed);
        self.microseconds.fetch_add(time.as_micros() as u64, Relaxed);
    }

    fn write(&self, text: &mut Text, name: &str, help: &str) {
        text.head(name, "histogram", help);
        let mut sum = 0;
        for (end, count) in TIMES.iter().map(ToString::to_string).chain(["+Inf".into()]).zip(&self.counts) {
            sum += count.load(Relaxed);
            text.line(&format!("{name}_bucket{{le=\"{end}\"}}"), sum);
        }
        text.line(&format!("{name}_sum"), self.microseconds.load(Relaxed) as f64 / 1e6);
        text.line(&format!("{name}_count"), sum);
    }
}

impl Metrics {
    /// A reply of this status.
    pub fn replied(&self, status: u16) {
        let class = usize::from(status / 100).clamp(1, CLASSES) - 1;
        self.replies[class].fetch_add(1, Relaxed);
        self.refused.fetch_add(u64::from(status == 429), Relaxed);
    }

    /// A token that came so long behind the one before, or, if it is the first, behind the beginning; forced ones were not chosen.
    pub fn token(&self, first: bool, forced: bool, time: Duration) {
        self.answer.fetch_add(1, Relaxed);
        self.forced.fetch_add(u64::from(forced), Relaxed);
        if first { &self.first_token } else { &self.between_tokens }.add(time);
    }

    /// A sequence that has come to its end.
    pub fn answered(&self, figures: &Figures) {
        self.prompt.fetch_add(figures.prompt as u64, Relaxed);
        self.cached.fetch_add(figures.cached as u64, Relaxed);
    }
}

/// All counters.
pub fn text(server: &Server) -> String {
    let mut text = Text(String::new());
    let Metrics { replies, refused, prompt, cached, answer, forced, first_token, between_tokens } =
        &server.metrics;
    text.head("yuan_replies_total", "counter", "Replies by the class of their status.");
    for (class, count) in (1..).zip(replies) {
        text.line(&format!("yuan_replies_total{{class=\"{class}xx\"}}"), count.load(Relaxed));
    }
    let mut counter = |name, help, value: &AtomicU64| text.one(name, "counter", help, value.load(Relaxed));
    counter("yuan_requests_refused_total", "Requests that the full queue has refused.", refused);
    counter("yuan_prompt_tokens_total", "Tokens of prompts, those that were there already included.", prompt);
    counter("yuan_prompt_tokens_cached_total", "Tokens of prompts that were there already.", cached);
    counter("yuan_tokens_predicted_total", "Tokens of answers.", answer);
    counter("yuan_tokens_forced_total", "Tokens of answers that a grammar left no choice about.", forced);
    text.one("yuan_requests", "gauge", "Requests that were let in and have not ended.", server.gate.inside());
    text.one("yuan_sequences_running", "gauge", "Sequences that run.", server.gate.running());
    first_token.write(
        &mut text,
        "yuan_time_to_first_token_seconds",
        "From the start of a sequence to its first token.",
    );
    between_tokens.write(
        &mut text,
        "yuan_time_between_tokens_seconds",
        "From one token of an answer to the next.",
    );
    if let Ok(loaded) = server.model() {
        let engine = &loaded.served.engine;
        let (passes, memory, usage) =
            (engine.counts(), engine.model().pool_use(), engine.model().pager().usage());
        let (hits, misses) =
            (usage.prefill.hits + usage.decode.hits, usage.prefill.misses + usage.decode.misses);
        text.one("yuan_passes_total", "counter", "Passes of the model.", passes.passes);
        text.one("yuan_pass_tokens_total", "counter", "Tokens in them.", passes.tokens);
        text.one("yuan_pass_sequences_total", "counter", "Sequences in them, added up.", passes.sequences);
        let drafted = "Guesses of the next tokens of answers that were run in them.";
        text.one("yuan_tokens_drafted_total", "counter", drafted, passes.drafted);
        let accepted = "Those of them that were the next tokens.";
        text.one("yuan_tokens_accepted_total", "counter", accepted, passes.accepted);
        text.one(
            "yuan_pass_panics_total",
            "counter",
            "Passes that failed by a mistake in the library.",
            passes.panics,
        );
        text.one("yuan_kv_bytes", "gauge", "Bytes of keys and values of all sequences.", memory.bytes);
        text.one("yuan_kv_pages", "gauge", "Pages of keys and values.", memory.pages);
        text.one(
            "yuan_kv_pages_kept",
            "gauge",
            "Those of them that are of earlier sequences and that nobody holds.",
            memory.kept,
        );
        text.one("yuan_kv_sequences", "gauge", "Sequences that have keys and values.", memory.sequences);
        text.one(
            "yuan_expert_hits_total",
            "counter",
            "Experts that were in memory when a layer asked for them.",
            hits,
        );
        text.one("yuan_expert_misses_total", "counter", "Experts that were not.", misses);
        text.one(
            "yuan_expert_bytes_read_total",
            "counter",
            "Bytes of experts that were read.",
            usage.bytes_read,
        );
    }
    text.0
}

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        self.line(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_adds_up() {
        let times = Times::default();
        [0, 1, 2, 30, 100_000].iter().for_each(|ms| times.add(Duration::from_millis(*ms)));
        let mut text = Text(String::new());
        times.write(&mut text, "t", "Times.");
        for line in [
            "t_bucket{le=\"0.001\"} 2",
            "t_bucket{le=\"0.002\"} 3",
            "t_bucket{le=\"0.05\"} 4",
            "t_bucket{le=\"60\"} 4",
            "t_bucket{le=\"+Inf\"} 5",
            "t_sum 100.033",
            "t_count 5",
        ] {
            assert!(text.0.contains(&format!("{line}\n")), "{line} in {}", text.0);
        }
    }
}
