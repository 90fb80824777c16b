//! `yuan perplexity`: how well a model predicts a text, and how far it is from another.

use std::{fs, path::PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;
use yuan::{
    model::{KvType, LOGIT_ROWS, Model, State, Want},
    session::{Engine, stats},
};
use yuan_tools::{
    console::{cancel_on_stop, stopped, token_bar},
    documents::split,
    open::{RunArgs, kv_type},
    say,
};

/// Measure how well a model predicts a text, and how far it is from another model
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan perplexity model.gguf --file text.txt
  yuan perplexity q4.gguf --file heldout.txt --documents 1-58 --against bf16.gguf
  yuan perplexity model.gguf --file text.txt --kv q4_0 --against model.gguf --against-kv f16
Documents are divided by lines that say <eod>. Each is run by itself from an empty state; every token but its first \
            is predicted, special tokens and the closing <eod> included. With --against, --memory is for each of the two models.")]
pub struct Perplexity {
    #[command(flatten)]
    run: RunArgs,
    /// The text file
    #[arg(long, short, value_name = "TEXT")]
    file: PathBuf,
    /// Use only these documents, counted from 1
    #[arg(long, value_name = "FIRST-LAST", value_parser = range)]
    documents: Option<(usize, usize)>,
    /// Also report the mean Kullback-Leibler divergence from this model's predictions
    #[arg(long, value_name = "MODEL")]
    against: Option<PathBuf>,
    /// Type of that model's key-value cache, where it is not --kv
    #[arg(long, value_name = "TYPE", value_parser = kv_type, requires = "against")]
    against_kv: Option<KvType>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Sums over predicted tokens.
#[derive(Default)]
struct Score {
    tokens: usize,
    loss: f64,
    hits: usize,
    divergence: f64,
    agreed: usize,
}

impl Perplexity {
    pub fn run(self) -> anyhow::Result<()> {
        let text =
            fs::read_to_string(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        let mut documents = Vec::new();
        let engine = self.run.open_for(|tokenizer, config| {
            documents = split(&text, tokenizer);
            Ok(documents.iter().map(Vec::len).max().unwrap_or(0).min(config.context))
        })?;
        let context = documents.iter().map(Vec::len).max().unwrap_or(0);
        let other = match &self.against {
            None => None,
            Some(path) => {
                let kv = self.against_kv.unwrap_or(self.run.kv);
                Some(RunArgs { model: path.clone().into(), kv, ..self.run.clone() }.open(context)?)
            }
        };
        if let Some(other) = &other {
            let (a, b) = (engine.model().config().vocab, other.model().config().vocab);
            ensure!(
                a == b,
                "the models have vocabularies of {a} and {b}: their predictions cannot be compared"
            );
        }
        let (first, last) = self.documents.unwrap_or((1, documents.len()));
        ensure!(
            first <= last && last <= documents.len(),
            "{} has {} documents: --documents {first}-{last} asks for others",
            self.file.display(),
            documents.len()
        );
        let documents = &documents[first - 1..last];

        let bar = token_bar(documents.iter().map(|d| d.len() as u64).sum(), "perplexity");
        let mut score = Score::default();
        for document in documents {
            for window in document.chunks(engine.model().config().context) {
                ensure!(!stopped(), "stopped on request");
                self.score(window, engine.model(), other.as_deref().map(Engine::model), &mut score)?;
                bar.inc(window.len() as u64);
            }
        }
        bar.finish_and_clear();
        ensure!(score.tokens > 0, "{} has no token to predict: give a longer text", self.file.display());
        self.print(documents.len(), &score, other.is_some(), engine.model())
    }

    fn score(
        &self,
        tokens: &[u32],
        model: &Model,
        other: Option<&Model>,
        score: &mut Score,
    ) -> anyhow::Result<()> {
        let mut state = model.state(tokens.len(), self.run.kv)?;
        let _stop = cancel_on_stop(state.cancel.clone());
        let kv = self.against_kv.unwrap_or(self.run.kv);
        let mut other = other.map(|m| Ok::<_, yuan::Error>((m, m.state(tokens.len(), kv)?))).transpose()?;
        if let Some((_, other)) = &mut other {
            other.cancel = state.cancel.clone();
        }
        let vocab = model.config().vocab;
        let mut next = tokens[1..].iter();
        for batch in tokens.chunks(model.batch()) {
            let hidden = Hidden::run(model, batch, &mut state)?;
            let reference = match &mut other {
                None => None,
                Some((m, state)) => Some(Hidden::run(m, batch, state)?),
            };
            for first in (0..batch.len()).step_by(LOGIT_ROWS) {
                let logits = hidden.logits(first)?;
                let reference = reference.as_ref().map_or(Ok(Vec::new()), |r| r.logits(first))?;
                for (i, (row, &next)) in logits.chunks_exact(vocab).zip(&mut next).enumerate() {
                    score.add(row, next, reference.chunks_exact(vocab).nth(i));
                }
                ensure!(!stopped(), "stopped on request");
            }
        }
        Ok(())
    }

    fn print(&self, documents: usize, score: &Score, compared: bool, model: &Model) -> anyhow::Result<()> {
        let n = score.tokens as f64;
        let loss = score.loss / n;
        let (divergence, agreed) = (score.divergence / n, score.agreed as f64 / n);
        if self.json {
            let mut object = json!({
                "documents": documents, "tokens": score.tokens, "loss": loss, "perplexity": loss.exp(),
                "top1": score.hits as f64 / n, "paging": stats::placement(model),
            });
            if compared {
                object["kl_divergence"] = divergence.into();
                object["top1_agreement"] = agreed.into();
            }
            return say!("{object}");
        }
        say!("documents   {documents}\ntokens      {}", score.tokens)?;
        say!("loss        {loss:.4}\nperplexity  {:.3}", loss.exp())?;
        say!("top-1       {:.2} %", 100.0 * score.hits as f64 / n)?;
        if compared {
            say!("KL          {divergence:.6} (mean, from the predictions of --against)")?;
            say!("same top-1  {:.2} %", 100.0 * agreed)?;
        }
        Ok(())
    }
}

/// Hidden states of a batch, of which logits are made a few rows at a time.
struct Hidden<'m> {
    model: &'m Model,
    rows: Vec<f32>,
}

impl<'m> Hidden<'m> {
    /// Runs a batch, cut where this model's own batches end.
    fn run(model: &'m Model, batch: &[u32], state: &mut State) -> yuan::Result<Self> {
        let parts = batch.chunks(model.batch()).map(|part| model.forward_one(part, state, Want::Hidden));
        Ok(Self { model, rows: parts.collect::<yuan::Result<Vec<_>>>()?.concat() })
    }

    /// Up to [`LOGIT_ROWS`] rows of logits from row `first` on.
    fn logits(&self, first: usize) -> yuan::Result<Vec<f32>> {
        let width = self.model.config().hidden;
        let end = self.rows.len().min((first + LOGIT_ROWS) * width);
        self.model.logits(&self.rows[first * width..end])
    }
}

impl Score {
    fn add(&mut self, logits: &[f32], next: u32, reference: Option<&[f32]>) {
        let p = log_softmax(logits);
        let best = yuan::sampler::greedy(logits);
        self.tokens += 1;
        self.loss -= p[next as usize];
        self.hits += usize::from(best == next);
        if let Some(reference) = reference {
            let q = log_softmax(reference);
            self.divergence += q.iter().zip(&p).map(|(q, p)| q.exp() * (q - p)).sum::<f64>();
            self.agreed += usize::from(best == yuan::sampler::greedy(reference));
        }
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let sum: f64 = logits.iter().map(|&l| (l as f64 - max).exp()).sum();
    logits.iter().map(|&l| l as f64 - max - sum.ln()).collect()
}

fn range(text: &str) -> Result<(usize, usize), String> {
    let parse = |s: &str| s.parse::<usize>().ok().filter(|&n| n > 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    parse(first).zip(parse(last)).ok_or_else(|| "give FIRST-LAST, counted from 1".into())
}
