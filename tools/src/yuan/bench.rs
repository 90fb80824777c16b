//! `yuan bench`: the speed of prefill and decode beside the speed of memory.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::ensure;
use clap::Args;
use serde_json::json;
use yuan::{
    model::{State, Want},
    session::BATCH,
};
use yuan_tools::{
    console::{size, stopped},
    open::RunArgs,
};

/// Measure the speed of prefill and decode
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan bench model.gguf
  yuan bench model.gguf -p 512 -n 128 -r 5 --threads 4 --json
  yuan bench model.gguf -p 0 -n 64 --depth 4096 --kv q8_0
Tokens are random ones: mixture-of-experts models then touch their experts evenly. Figures are medians.")]
pub struct Bench {
    #[command(flatten)]
    run: RunArgs,
    /// Tokens of the prompt (0: no prefill)
    #[arg(long, short, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Tokens to generate (0: no decode)
    #[arg(long = "tokens", short = 'n', value_name = "N", default_value_t = 128)]
    tokens: usize,
    /// Tokens that are in the context before the decoding starts; by default the prompt
    #[arg(long, short, value_name = "N")]
    depth: Option<usize>,
    /// Repetitions
    #[arg(long, short, value_name = "N", default_value_t = 3)]
    repeat: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub fn run(self) -> anyhow::Result<()> {
        ensure!(
            self.prompt + self.tokens > 0 && self.repeat > 0,
            "there is nothing to measure: raise -p, -n or -r"
        );
        let engine = self.run.open()?;
        let model = engine.model();
        let bandwidth = read_bandwidth(model.threads());
        let vocab = model.config().vocab as u64;
        // A multiplicative hash of the position: any fixed sequence that wanders over the vocabulary does.
        let token = |i: usize| (((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 24) % vocab) as u32;

        let depth = self.depth.unwrap_or(self.prompt);
        let run =
            |state: &mut State, tokens: std::ops::Range<usize>, batch: usize| -> anyhow::Result<Duration> {
                let tokens: Vec<u32> = tokens.map(token).collect();
                let start = Instant::now();
                for batch in tokens.chunks(batch) {
                    model.forward(batch, state, Want::Last)?;
                    ensure!(!stopped(), "stopped on request");
                }
                Ok(start.elapsed())
            };
        let (mut prefill, mut decode) = (Vec::new(), Vec::new());
        for _ in 0..self.repeat {
            let mut state = State::new(model.config(), self.prompt.max(depth) + self.tokens, self.run.kv)?;
            prefill.push(run(&mut state, 0..self.prompt, BATCH)?);
            if depth < self.prompt {
                state = State::new(model.config(), depth + self.tokens, self.run.kv)?;
            }
            let filled = state.position();
            run(&mut state, filled..depth, BATCH)?;
            decode.push(run(&mut state, depth..depth + self.tokens, 1)?);
        }

        let rate = |n: usize, times: Vec<Duration>| n as f64 / median(times).as_secs_f64().max(1e-9);
        let (prefill, decode) = (rate(self.prompt, prefill), rate(self.tokens, decode));
        let bytes = model.bytes_per_token();
        let streamed = decode * bytes as f64 / 1e9;
        if self.json {
            let object = json!({
                "model": self.run.model, "kernels": model.kernels(), "threads": model.threads(),
                "prompt": self.prompt, "tokens": self.tokens, "depth": depth, "kv": self.run.kv.name(), "repeat": self.repeat,
                "prefill_tokens_per_second": prefill, "decode_tokens_per_second": decode,
                "bytes_per_token": bytes, "weights_gb_per_second": streamed, "memory_gb_per_second": bandwidth,
            });
            println!("{object}");
            return Ok(());
        }
        println!("kernels    {} on {} threads", model.kernels(), model.threads());
        println!("memory     {bandwidth:.1} GB/s read");
        println!("token      {} of weights", size(bytes as u64));
        println!("prefill    {prefill:.2} tok/s ({} tokens)", self.prompt);
        let share = 100.0 * streamed / bandwidth;
        println!(
            "decode     {decode:.2} tok/s ({} tokens behind {depth}), {streamed:.1} GB/s of weights, {share:.0} % of memory",
            self.tokens
        );
        Ok(())
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// GB/s at which `threads` threads read memory that no cache holds: the best of five passes.
fn read_bandwidth(threads: usize) -> f64 {
    const WORDS: usize = (256 << 20) / 8;
    let data = vec![1u64; WORDS * threads];
    let pass = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in data.chunks(WORDS) {
                scope.spawn(move || black_box(part.iter().fold(0u64, |a, b| a.wrapping_add(*b))));
            }
        });
        (data.len() * 8) as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..5).map(|_| pass()).fold(0.0, f64::max)
}
