//! `yuan bench`: the speed of prefill and decode beside the speed of memory.

mod drafted;
mod form;
mod phases;
mod picture;
mod rows;
mod simulate;
mod table;
mod together;

use std::{
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use clap::Args;
use serde_json::json;
use yuan::{
    container::Container,
    files::check_output,
    model::{GpuPlacement, Model, Options, Placement, Sequence, State, Want, threads::usable_cores},
    pager::{self, Mode, trace::Trace},
    session::{
        Drafts, Engine,
        stats::{self, Lap, Meter},
    },
    tokenizer::Tokenizer,
};
use yuan_tools::{
    console::{cancel_on_stop, size, stopped, unless_stopped},
    numbers,
    open::RunArgs,
    say,
    stats::describe,
};

use crate::bandwidth::read_bandwidth;
use drafted::Pairs;
use form::Form;
use phases::Recording;
use simulate::{Recorded, Simulated};
use together::Together;

/// Measure the speed of prefill and decode
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan bench model.gguf
  yuan bench model.gguf -p 512 -n 128 -r 5 --threads 4 --json
  yuan bench model.gguf --memory 50% --paging streamed --throttle 0.5
  yuan bench model.gguf -p 0 -n 64 --depth 4096 --kv q8_0
  yuan bench synthetic.gguf --memory 8G --routing poem.trace
  yuan bench model.gguf -p 64 -n 32 --sequences 1,2,4,8,16
  yuan bench model.gguf -p 64 -n 128 --draft 3 --draft-accept 0.9
  yuan bench model.gguf -p 128-1024*2 -n 32,64 -pg 512,128 -d 0,4096 -r 5
  yuan bench model.gguf -o sql | sqlite3 speed.sqlite
  yuan bench model.gguf -r 1 --phases phases.json
  yuan bench model.gguf -r 1 -t 1 --simulate 4,16,64 --simulate-memory 250 --phases phases.svg
Tokens are random ones: mixture-of-experts models then touch their experts evenly. Figures are medians. \
With -o, -pg or several values they are a table as llama-bench prints it: each prompt, each answer and each pair behind each depth, which is 0 where none is given, \
is a test of its own, with the mean and the standard deviation of its repetitions.")]
pub struct Bench {
    #[command(flatten)]
    run: RunArgs,
    /// Number of tokens in the prompt (0: no prefill): one or several, also as FIRST-LAST, FIRST-LAST+STEP or FIRST-LAST*FACTOR
    #[arg(long, short, alias = "n-prompt", value_name = "N,...", value_delimiter = ',', default_value = "512", value_parser = str::parse::<numbers::Series>)]
    prompt: Vec<numbers::Series>,
    /// Number of tokens to generate (0: no decode), one or several
    #[arg(long = "tokens", short = 'n', alias = "n-gen", value_name = "N,...", value_delimiter = ',', default_value = "128", value_parser = str::parse::<numbers::Series>)]
    tokens: Vec<numbers::Series>,
    /// Measure a prompt of P tokens and an answer of N together; several times for several such tests (-pg is the same)
    #[arg(long, value_name = "P,N", value_parser = numbers::pair, conflicts_with_all = ["json", "sequences", "draft", "trace"])]
    pg: Vec<(usize, usize)>,
    /// Number of tokens in the context before, one or several; by default decoding starts behind those of the prompt
    #[arg(long, short, alias = "n-depth", value_name = "N,...", value_delimiter = ',', value_parser = str::parse::<numbers::Series>)]
    depth: Vec<numbers::Series>,
    /// Print a table of tests in this form
    #[arg(long, short, value_name = "FORM", value_enum, conflicts_with_all = ["json", "sequences", "draft", "trace"])]
    output: Option<Form>,
    /// Count what is run first, too: by default the prompt and one token of the answer are run once before (not with --trace), so that pages and caches are as they will be
    #[arg(long)]
    no_warmup: bool,
    /// Measure how fast so many sequences decode together, each behind a prompt of its own, in place of prefill and decode
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = numbers::sequences, conflicts_with_all = ["depth", "routing", "trace"])]
    sequences: Vec<usize>,
    /// Measure answers with drafts beside the same answers without, in place of prefill and decode: auto, off, or a number of tokens. The answers are random ones, in which
    /// nothing repeats itself
    #[arg(long, value_name = "HOW", value_parser = str::parse::<Drafts>, conflicts_with_all = ["sequences", "trace"])]
    draft: Option<Drafts>,
    /// Draft what the answers will be, but for wrong tokens, so that this part of the drafts is right (1: all)
    #[arg(long, value_name = "PART", value_parser = numbers::part, requires = "draft")]
    draft_accept: Option<f64>,
    /// Number of repetitions
    #[arg(long, short, alias = "repetitions", value_name = "N", default_value_t = 3, value_parser = numbers::repetitions)]
    repeat: usize,
    /// When streaming, deliver reads at this rate in GB a second, as a slower drive would
    #[arg(long, value_name = "GB/S", value_parser = numbers::rate)]
    throttle: Option<f64>,
    /// Choose experts as these files of yuan trace did: a model of random weights would choose evenly, which trained ones do not
    #[arg(long, value_name = "FILE,...", value_delimiter = ',')]
    routing: Vec<PathBuf>,
    /// Record which experts the last repetition used, for yuan replay
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Run the prompt and eight of the tokens (or of those of all sequences) once more, and write what each thread does when: as a picture, if the file's name ends with
    /// .svg, or in Chrome's trace format, which ui.perfetto.dev shows; a table says what of it one thread does alone
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "pg", "draft"])]
    phases: Option<PathBuf>,
    /// Say how long the prompt and tokens behind it would take with so many threads, from the times that one thread (-t 1) needs for each piece of work, the medians of
    /// the repetitions; --phases then has what those threads would do
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = numbers::other_threads, conflicts_with_all = ["output", "pg", "draft", "sequences", "routing", "trace"])]
    simulate: Vec<usize>,
    /// The memory that these threads share, in GB a second (default: as much as they ask for)
    #[arg(long, value_name = "GB/S", value_parser = numbers::rate, requires = "simulate")]
    simulate_memory: Option<f64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Tokens whose phases are recorded, at most.
const RECORDED: usize = 8;

/// What is measured where it is no table.
#[derive(Clone, Copy)]
struct Shape {
    prompt: usize,
    tokens: usize,
    depth: Option<usize>,
}

impl Bench {
    pub fn run(self) -> anyhow::Result<()> {
        let [prompts, answers, depths] =
            [&self.prompt, &self.tokens, &self.depth].map(|series| numbers::all(series));
        let several = [&prompts, &answers, &depths].iter().any(|values| values.len() > 1);
        if self.output.is_none() && self.pg.is_empty() && !several {
            return self.figures(Shape {
                prompt: prompts[0],
                tokens: answers[0],
                depth: depths.first().copied(),
            });
        }
        let other = [
            ("--json", self.json),
            ("--sequences", !self.sequences.is_empty()),
            ("--draft", self.draft.is_some()),
            ("--trace", self.trace.is_some()),
            ("--phases", self.phases.is_some()),
            ("--simulate", !self.simulate.is_empty()),
        ];
        if let Some((name, _)) = other.iter().find(|(_, given)| *given) {
            bail!(
                "several values make a table, which {name} has none of; give one -p, -n and -d, or -o json"
            );
        }
        let depths = if depths.is_empty() { vec![0] } else { depths };
        self.table(rows::tests(&prompts, &answers, &self.pg, &depths)?)
    }

    /// A container, and how its model would run with so many tokens in its contexts.
    fn prepare(&self, context: usize) -> anyhow::Result<(Container, Options, Placement)> {
        let mut options = self.run.options(context);
        options.paging.throttle = self.throttle.map(|gb| gb * 1e9);
        let container = Container::open(&self.run.model.path()?)?;
        let placement = Placement::new(&container, &options)?;
        ensure!(
            placement.mode == Mode::Streamed || self.throttle.is_none(),
            "--throttle slows streamed reads: give --paging streamed"
        );
        Ok((container, options, placement))
    }

    fn load(&self, container: &Container, options: &Options) -> anyhow::Result<Model> {
        let mut model = Model::load_watched(container, options, &mut |_, _| unless_stopped())?;
        if !self.routing.is_empty() {
            let traces = self.routing.iter().map(|path| Trace::read(path)).collect::<Result<Vec<_>, _>>()?;
            model.follow(&traces)?;
        }
        Ok(model)
    }

    /// The figures of one prompt and one answer, or what `--sequences` and `--draft` ask for.
    fn figures(self, shape: Shape) -> anyhow::Result<()> {
        let Shape { prompt, tokens, depth } = shape;
        ensure!(prompt + tokens > 0, "there is nothing to measure: raise -p or -n");
        ensure!(
            self.simulate.is_empty() || self.run.threads == 1,
            "--simulate plays what one thread has done: give -t 1"
        );
        let inputs: Vec<_> = [self.run.model.path()?].into_iter().chain(self.routing.clone()).collect();
        for (output, example) in [(&self.trace, "NAME.trace"), (&self.phases, "NAME.json")] {
            output.iter().try_for_each(|path| check_output(path, 0, &inputs, example))?;
        }
        let depth = depth.unwrap_or(prompt);
        let context = prompt.max(depth) + tokens;
        let most = self.sequences.iter().copied().max().unwrap_or(1);
        ensure!(self.sequences.is_empty() || tokens > 0, "sequences decode together: raise -n");
        // All keys and values have a place in the budget.
        let (container, options, placement) = self.prepare(context.saturating_mul(most))?;
        // Before the model takes its memory.
        let threads = if self.run.threads == 0 { usable_cores() } else { self.run.threads };
        let bandwidth = read_bandwidth(threads, placement.budget.bytes / 2)?;
        let drive = match placement.mode == Mode::Streamed {
            true => Some(pager::calibrate(&container, &options.paging, Duration::from_secs(1))?),
            false => None,
        };
        let model = self.load(&container, &options)?;
        if let Some(drafts) = self.draft {
            let tokenizer = Tokenizer::new(container.vocab()?)?;
            let engine = Engine::with_model(container, tokenizer, model)?;
            return self.drafted(&engine, drafts, shape, bandwidth);
        }
        let vocab = model.config().vocab as u64;
        let token = |i| wandering(i, vocab);
        if !self.sequences.is_empty() {
            return self.together(&model, shape, bandwidth, token);
        }
        let run = |state: &mut State, tokens: Range<usize>, batch: usize| -> anyhow::Result<Vec<Duration>> {
            let tokens: Vec<u32> = tokens.map(token).collect();
            let _stop = cancel_on_stop(state.cancel.clone());
            let call = |batch: &[u32]| {
                let start = Instant::now();
                model
                    .forward(&mut [Sequence { tokens: batch, drafted: 0, state, want: Want::Best(1) }])
                    .remove(0)?;
                ensure!(!stopped(), "stopped on request");
                Ok(start.elapsed())
            };
            tokens.chunks(batch).map(call).collect()
        };
        // A trace is of a run that begins with nothing in memory, as yuan replay does.
        if !self.no_warmup && self.trace.is_none() {
            let mut state = State::new(model.config(), prompt + tokens.min(1), self.run.kv)?;
            run(&mut state, 0..prompt, model.batch())?;
            run(&mut state, prompt..prompt + tokens.min(1), 1)?;
        }
        let (mut prefill, mut decode, mut times) = (Vec::new(), Vec::new(), Vec::new());
        let mut laps = [Lap::default(), Lap::default()];
        let mut meter = Meter::new(&model);
        for _ in 0..self.repeat {
            if self.trace.is_some() {
                model.pager().record();
            }
            let mut state = State::new(model.config(), context, self.run.kv)?;
            meter.lap(0);
            prefill.push(run(&mut state, 0..prompt, model.batch())?.iter().sum());
            laps[0].add(&meter.lap(prompt));
            if depth < prompt {
                state = State::new(model.config(), depth + tokens, self.run.kv)?;
            }
            let filled = state.position();
            run(&mut state, filled..depth, model.batch())?;
            meter.lap(0);
            let answer = run(&mut state, depth..depth + tokens, 1)?;
            laps[1].add(&meter.lap(tokens));
            decode.push(answer.iter().sum());
            times.extend(answer);
        }

        if let Some(path) = &self.trace {
            model.recorded().write(path)?;
        }
        let recorded = |cut_for: usize, repeat: usize| -> anyhow::Result<[Recorded; 2]> {
            let mut state = State::new(model.config(), context, self.run.kv)?;
            model.record_phases(cut_for);
            for _ in 0..repeat {
                state.rewind(0);
                run(&mut state, 0..prompt, model.batch())?;
            }
            let of_prompt = Recorded { name: "prompt", passes: model.recorded_phases() };
            let reached = state.rewind(depth);
            run(&mut state, reached..depth, model.batch())?;
            model.record_phases(cut_for);
            run(&mut state, depth..depth + tokens.min(RECORDED * repeat), 1)?;
            Ok([of_prompt, Recorded { name: "decode", passes: model.recorded_phases() }])
        };
        let (mut recordings, mut simulated) = (Vec::new(), Vec::new());
        if !self.simulate.is_empty() {
            (recordings, simulated) = self.simulated(&model, |cut_for| recorded(cut_for, self.repeat))?;
        } else if self.phases.is_some() {
            for (Recorded { name, passes }, threads) in
                recorded(0, 1)?.into_iter().zip([model.batch_threads(), model.threads()])
            {
                recordings.push(Recording::new(name.into(), threads, passes));
            }
            recordings.retain(|recording| !recording.passes.is_empty());
        }
        self.phases.iter().try_for_each(|path| phases::save(path, &recordings))?;
        let rate = |n: usize, times: Vec<Duration>| n as f64 / median(times).as_secs_f64().max(1e-9);
        let (prefill, decode) = (rate(prompt, prefill), rate(tokens, decode));
        let bytes = model.bytes_per_token();
        let weights = decode * bytes as f64 / 1e9;
        if self.json {
            let mut object = json!({
                "model": self.run.model.path()?, "kernels": model.kernels(), "prefetch": model.prefetch(), "threads": model.threads(), "threads_batch": model.batch_threads(),
                "prompt": prompt, "tokens": tokens, "depth": depth, "kv": self.run.kv.name(), "repeat": self.repeat,
                "prefill_tokens_per_second": prefill, "decode_tokens_per_second": decode,
                "bytes_per_token": bytes, "weights_gb_per_second": weights, "memory_gb_per_second": bandwidth,
                "drive_gb_per_second": drive, "throttle_gb_per_second": self.throttle, "token_ms": stats::token_times(&times),
                "paging": stats::placement(&model), "prefill": laps[0].json(), "decode": laps[1].json(),
            });
            if !recordings.is_empty() {
                let of = |recording: &Recording| (recording.name.clone(), recording.json());
                object["phases"] = recordings.iter().map(of).collect();
            }
            if !simulated.is_empty() {
                object["simulated"] = simulated.iter().map(Simulated::json).collect();
            }
            return say!("{object}");
        }
        describe_machine(&model, bandwidth)?;
        say!("prefill    {prefill:.2} tok/s ({prompt} tokens)")?;
        let share = 100.0 * weights / bandwidth;
        say!(
            "decode     {decode:.2} tok/s ({tokens} tokens after {depth}), {weights:.1} GB/s of weights, {share:.0} % of memory"
        )?;
        if let Some(drive) = drive {
            say!("drive      {drive:.2} GB/s by reads of a tile")?;
        }
        let laps = [("prefill", &laps[0]), ("decode", &laps[1])];
        say!("{}", describe(&model, &laps, &times))?;
        if let GpuPlacement::On { bandwidth, .. } = &model.placement().gpu
            && *bandwidth > 0
        {
            let memory = *bandwidth as f64 / 1e9;
            say!(
                "gpu memory {memory:.0} GB/s by its clock; the weights of decode are {:.0} % of it",
                100.0 * weights / memory
            )?;
        }
        recordings.iter().try_for_each(|recording| say!("{}", recording.describe()))?;
        simulated.iter().try_for_each(|simulated| say!("{}", simulated.describe()))
    }
}

impl Bench {
    /// `--draft`.
    fn drafted(
        &self,
        engine: &Arc<Engine>,
        drafts: Drafts,
        shape: Shape,
        bandwidth: f64,
    ) -> anyhow::Result<()> {
        let (model, Shape { prompt, tokens, depth }) = (engine.model(), shape);
        ensure!(tokens > 1, "drafts are of an answer: raise -n");
        let vocab = model.config().vocab as u64;
        let prompt: Vec<u32> = (0..depth.unwrap_or(prompt).max(1)).map(|i| wandering(i, vocab)).collect();
        let pairs = Pairs { engine, drafts, accept: self.draft_accept, kv: self.run.kv, tokens };
        let measured = pairs.run(&prompt, self.repeat)?;
        if !self.json {
            describe_machine(model, bandwidth)?;
            return say!("{}", measured.describe(prompt.len(), tokens));
        }
        let object = json!({
            "model": self.run.model.path()?, "kernels": model.kernels(), "prefetch": model.prefetch(), "threads": model.threads(), "threads_batch": model.batch_threads(),
            "depth": prompt.len(), "tokens": tokens, "kv": self.run.kv.name(), "repeat": self.repeat,
            "bytes_per_token": model.bytes_per_token(), "memory_gb_per_second": bandwidth,
            "paging": stats::placement(model), "draft": measured.json(),
        });
        say!("{object}")
    }

    /// `--sequences`.
    fn together(
        &self,
        model: &Model,
        shape: Shape,
        bandwidth: f64,
        token: impl Fn(usize) -> u32,
    ) -> anyhow::Result<()> {
        let (Shape { prompt, tokens, .. }, repeat) = (shape, self.repeat);
        let together = Together { model, kv: self.run.kv, prompt, tokens, repeat, warm_up: !self.no_warmup };
        if !self.json {
            describe_machine(model, bandwidth)?;
        }
        let recorded = if self.phases.is_some() { RECORDED } else { 0 };
        let (mut speeds, mut recordings) = (Vec::new(), Vec::new());
        for &n in &self.sequences {
            let (speed, recording) = together.run(n, recorded, &token)?;
            recordings.extend(recording);
            if !self.json {
                let (total, each) = (speed.total, speed.each());
                say!(
                    "together   {total:.2} tok/s of {n} sequences, {each:.2} each ({tokens} tokens behind {prompt})"
                )?;
            }
            speeds.push(speed.json());
        }
        self.phases.iter().try_for_each(|path| phases::save(path, &recordings))?;
        if !self.json {
            return recordings.iter().try_for_each(|recording| say!("{}", recording.describe()));
        }
        let mut object = json!({
            "model": self.run.model.path()?, "kernels": model.kernels(), "prefetch": model.prefetch(), "threads": model.threads(), "threads_batch": model.batch_threads(),
            "prompt": prompt, "tokens": tokens, "kv": self.run.kv.name(), "repeat": repeat,
            "bytes_per_token": model.bytes_per_token(), "memory_gb_per_second": bandwidth,
            "paging": stats::placement(model), "together": speeds,
        });
        if self.phases.is_some() {
            object["phases"] = recordings
                .iter()
                .map(|r| (r.name.clone(), r.json()))
                .collect::<serde_json::Map<_, _>>()
                .into();
        }
        say!("{object}")
    }
}

/// The token in place `i`, by a multiplicative hash of that: any fixed sequence that wanders over the vocabulary does.
fn wandering(i: usize, vocab: u64) -> u32 {
    (((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 24) % vocab) as u32
}

/// What computes, and from what.
fn describe_machine(model: &Model, bandwidth: f64) -> anyhow::Result<()> {
    say!(
        "kernels    {} on {} threads, {} for the prompt; one token asks for weights {} bytes ahead",
        model.kernels(),
        model.threads(),
        model.batch_threads(),
        model.prefetch()
    )?;
    say!("memory     {bandwidth:.1} GB/s read")?;
    say!("token      {} of weights", size(model.bytes_per_token() as u64))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
