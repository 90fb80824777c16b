//! `yuan generate`: continue a prompt.

use std::{
    fs,
    io::{Read, Write},
    ops::ControlFlow,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use serde_json::json;
use yuan::{
    sampler::{Sampler, Settings},
    session::{Finish, Session},
    tokenizer::{Message, Special},
};
use yuan_tools::{
    console::{stopped, token_bar},
    open::{Opened, RunArgs},
    stats::{self, Lap, Meter},
};

/// Continue a prompt
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan generate model.gguf -p 'Write a poem about autumn<sep>' -n 200
  yuan generate model.gguf --chat -p '写一首关于秋天的诗' --temp 0.6 --top-p 0.95 --seed 7
  yuan generate model.gguf --file prompt.txt --json
  yuan generate model.gguf -p 'In the beginning' --memory 8G --stats
A question ends with <sep> (--chat adds it); the answer ends at <eod>. Special strings in the prompt become special
tokens unless --no-special or --chat is given.")]
pub struct Generate {
    #[command(flatten)]
    run: RunArgs,
    /// The prompt
    #[arg(long, short, value_name = "TEXT", required_unless_present = "file")]
    prompt: Option<String>,
    /// Read the prompt from a file (- for standard input)
    #[arg(long, short, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// Tokens to generate at most
    #[arg(long = "tokens", short = 'n', value_name = "N", default_value_t = 256)]
    most: usize,
    #[command(flatten)]
    sampling: Sampling,
    /// Room for tokens; by default the prompt and -n
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Take the prompt as a question, and put it into the chat form of the model
    #[arg(long)]
    chat: bool,
    /// Leave special strings in the prompt as text
    #[arg(long, conflicts_with = "chat")]
    no_special: bool,
    /// Go on after <eod>
    #[arg(long)]
    ignore_eod: bool,
    /// Say on stderr how experts came into memory, and how long tokens took
    #[arg(long)]
    stats: bool,
    /// Print one JSON object at the end instead of streaming text
    #[arg(long)]
    json: bool,
}

/// How to choose tokens.
#[derive(Args, Clone)]
pub struct Sampling {
    /// Temperature; 0 always takes the best token
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temp: f32,
    /// Keep the K best tokens (0: all)
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Keep the best tokens up to this sum of probabilities
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f32,
    /// Seed of the random choices
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl Sampling {
    pub fn settings(&self) -> Settings {
        Settings { temperature: self.temp, top_k: self.top_k, top_p: self.top_p, seed: self.seed }
    }
}

/// A generated text with its figures.
pub struct Answer {
    pub prompt: Vec<u32>,
    pub tokens: Vec<u32>,
    pub text: String,
    pub finish: Finish,
    pub prefill: Duration,
    pub decode: Duration,
    /// What the pager did in each.
    pub laps: [Lap; 2],
    /// Of the tokens behind the first.
    pub times: Vec<Duration>,
}

impl Answer {
    /// Tokens a second of prefill and decode. The first token of the answer comes from the prefill.
    pub fn rates(&self) -> (f64, f64) {
        let decoded = self.tokens.len().saturating_sub(1) as f64;
        (self.prompt.len() as f64 / self.prefill.as_secs_f64(), decoded / self.decode.as_secs_f64().max(1e-9))
    }
}

impl Generate {
    pub fn run(self) -> anyhow::Result<()> {
        let text = match (&self.prompt, &self.file) {
            (Some(text), _) => text.clone(),
            (None, Some(file)) => read(file)?,
            (None, None) => anyhow::bail!("give a prompt with -p TEXT or --file FILE"),
        };
        let (mut prompt, mut context) = (Vec::new(), 0);
        let opened = self.run.open_for(|tokenizer, _| {
            anyhow::ensure!(!text.is_empty(), "the prompt is empty; give some text");
            prompt = match (self.chat, self.no_special) {
                (true, _) => tokenizer.chat(&[Message::new("user", text)], true)?,
                (false, true) => tokenizer.encode(&text, Special::AsText),
                (false, false) => tokenizer.encode(&text, Special::Parse),
            };
            context = self.context.unwrap_or(prompt.len() + self.most);
            Ok(context)
        })?;
        let mut session = Session::new(opened.model.clone(), context, self.run.kv)?;
        let sampler = Sampler::new(self.sampling.settings())?;
        let json = self.json;
        let answer = answer(&opened, &mut session, prompt, self.most, self.ignore_eod, sampler, |text| {
            if !json {
                print!("{text}");
                std::io::stdout().flush()?;
            }
            Ok(())
        })?;
        if json {
            print_json(&opened, &answer)
        } else {
            print_figures(&answer)?;
            if self.stats {
                let laps = [("prefill", &answer.laps[0]), ("decode", &answer.laps[1])];
                eprintln!("{}", stats::describe(&opened.model, &laps, &answer.times));
            }
            Ok(())
        }
    }
}

fn read(file: &PathBuf) -> anyhow::Result<String> {
    if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input is no UTF-8 text")?;
        return Ok(text);
    }
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Runs the prompt and streams the answer to `show`, until it ends or Ctrl-C is pressed.
pub fn answer(
    opened: &Opened,
    session: &mut Session,
    prompt: Vec<u32>,
    most: usize,
    ignore_eod: bool,
    mut sampler: Sampler,
    mut show: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Answer> {
    let flow = || if stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let mut meter = Meter::new(&opened.model);
    let start = Instant::now();
    let bar = token_bar(prompt.len() as u64, "prompt");
    let logits = session.extend(&prompt, |done| {
        bar.set_position(done as u64);
        flow()
    })?;
    bar.finish_and_clear();
    let prefill = start.elapsed();
    let prompt_lap = meter.lap(prompt.len());

    let start = Instant::now();
    let stops: Vec<u32> = opened.tokenizer.eod().filter(|_| !ignore_eod).into_iter().collect();
    let (mut tokens, mut text, mut stream) = (Vec::new(), String::new(), opened.tokenizer.stream());
    let (mut shown, mut times, mut last) = (Ok(()), Vec::new(), start);
    let finish = session.generate(logits, most, &stops, &mut sampler, |token| {
        tokens.push(token);
        if tokens.len() > 1 {
            times.push(last.elapsed());
        }
        last = Instant::now();
        let piece = stream.push(token);
        text.push_str(&piece);
        shown = show(&piece);
        if shown.is_err() { ControlFlow::Break(()) } else { flow() }
    })?;
    shown?;
    let decode = start.elapsed();
    let rest = stream.finish();
    show(&rest)?;
    text.push_str(&rest);
    let laps = [prompt_lap, meter.lap(tokens.len().saturating_sub(1))];
    Ok(Answer { prompt, tokens, text, finish, prefill, decode, laps, times })
}

fn print_figures(answer: &Answer) -> anyhow::Result<()> {
    writeln!(std::io::stdout())?;
    let (prefill, decode) = answer.rates();
    eprintln!(
        "{} tokens of prompt at {prefill:.1} tok/s, {} generated at {decode:.1} tok/s{}",
        answer.prompt.len(),
        answer.tokens.len(),
        match answer.finish {
            Finish::Stop => "",
            Finish::Length => " (stopped by -n)",
            Finish::Cancelled => " (stopped by Ctrl-C)",
        }
    );
    Ok(())
}

fn print_json(opened: &Opened, answer: &Answer) -> anyhow::Result<()> {
    let (prefill, decode) = answer.rates();
    let finish = match answer.finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Cancelled => "cancelled",
    };
    let object = json!({
        "prompt_tokens": answer.prompt, "tokens": answer.tokens, "text": answer.text, "finish": finish,
        "prefill_tokens_per_second": prefill, "decode_tokens_per_second": decode,
        "token_ms": stats::token_times(&answer.times), "paging": stats::placement(&opened.model),
        "prefill": answer.laps[0].json(), "decode": answer.laps[1].json(),
    });
    Ok(writeln!(std::io::stdout(), "{object}")?)
}
