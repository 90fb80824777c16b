//! `yuan perplexity`: how well a model predicts a text, and how far it is from another.

pub mod pair;
pub mod score;

use std::{fs, path::PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::Value;
use yuan::{model::KvType, session::stats, tokenizer::Special};
use yuan_tools::{
    documents::{self, Range},
    numbers::{self, Most},
    open::{RunArgs, kv_type},
    say,
};

use pair::{Side, Window};
use score::Score;

/// Measure how well a model predicts a text, and how far it is from another model
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan perplexity model.gguf --file text.txt
  yuan perplexity model.gguf --file wiki.test.raw --context 512
  yuan perplexity q4.gguf --file heldout.txt --documents 1-58 --against bf16.gguf
  yuan perplexity model.gguf --file text.txt --kv q4_0 --against model.gguf --against-kv f16
Documents are divided by lines that say <eod>. Each is run by itself from an empty state; every token but its first \
            is predicted, special tokens and the closing <eod> included. With --context N the whole text is one list of tokens, run in chunks of N, and those behind the \
            first half of each are predicted, as llama-perplexity does (512 there): figures of the two can be compared on the same file, if it has the same tokens. With --against, --memory is for each of the two models, and the Kullback-Leibler divergence (KL) of each token is \
            told by its mean, by what so many of the tokens do not exceed, and by the token's position in the document. \
            Behind ± is the standard error, for tokens that were independent of each other. `yuan compare` has a table of several models.")]
pub struct Perplexity {
    #[command(flatten)]
    run: RunArgs,
    /// The text file
    #[arg(long, short, value_name = "TEXT")]
    file: PathBuf,
    /// Use only these documents, counted from 1
    #[arg(long, value_name = "FIRST-LAST", conflicts_with = "context")]
    documents: Option<Range>,
    /// Run the text in chunks of N tokens, and score the second half of each, as llama-perplexity does; each shows the perplexity so far
    #[arg(long, value_name = "N", value_parser = numbers::chunk)]
    context: Option<usize>,
    /// Run only the first N chunks (-1: all)
    #[arg(long, value_name = "N", requires = "context", default_value = "-1", hide_default_value = true)]
    chunks: Most,
    /// Also report how far the predictions are from this model's: KL divergence, and how often both find the same token the likeliest
    #[arg(long, value_name = "MODEL")]
    against: Option<PathBuf>,
    /// Type of that model's key-value cache, where it is not --kv
    #[arg(long, value_name = "TYPE", value_parser = kv_type, requires = "against")]
    against_kv: Option<KvType>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Perplexity {
    pub fn run(self) -> anyhow::Result<()> {
        let text =
            fs::read_to_string(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        let mut documents = Vec::new();
        let engine = self.run.open_for(|tokenizer, config| {
            documents = match self.context {
                None => documents::split(&text, tokenizer),
                Some(_) => vec![tokenizer.encode(&text, Special::Parse)],
            };
            Ok(self.context.unwrap_or_else(|| documents::longest(&documents)).min(config.context))
        })?;
        let context = engine.model().config().context;
        let kv = self.against_kv.unwrap_or(self.run.kv);
        let other = match &self.against {
            None => None,
            Some(path) => {
                let run = RunArgs { model: path.clone().into(), kv, ..self.run.clone() };
                Some(run.open(self.context.unwrap_or_else(|| documents::longest(&documents)))?)
            }
        };
        let context = other.as_ref().map_or(context, |other| other.model().config().context.min(context));
        let documents = documents::chosen(&documents, self.documents, &self.file)?;
        let windows = match self.context {
            None => pair::of_documents(documents, context),
            Some(chunk) => self.chunks(&documents[0], chunk, context)?,
        };
        let side = Side { model: engine.model(), kv: self.run.kv };
        let reference = other.as_ref().map(|other| Side { model: other.model(), kv });
        let mut so_far = Vec::new();
        let tells = self.context.is_some() && !self.json;
        if tells {
            say!("chunk       perplexity so far")?;
        }
        let mut each = |score: &Score| {
            so_far.push(score.model.perplexity().0);
            if tells { say!("{:<11} {}", so_far.len(), score.model.perplexity_text()) } else { Ok(()) }
        };
        let score = pair::run(&windows, &self.file, side, reference, "perplexity", &mut each)?;
        let (name, number) = match self.context {
            None => ("documents", documents.len()),
            Some(_) => ("chunks", windows.len()),
        };
        if self.json {
            let mut object = score.json();
            object.insert(name.into(), number.into());
            if self.context.is_some() {
                object.insert("perplexity_so_far".into(), so_far.into());
            }
            object.insert("paging".into(), stats::placement(engine.model()));
            return say!("{}", Value::from(object));
        }
        say!("{name:<11} {number}\n{}", score.text())
    }

    /// The chunks of these tokens that are wanted, in a context of so many.
    fn chunks<'t>(&self, tokens: &'t [u32], chunk: usize, context: usize) -> anyhow::Result<Vec<Window<'t>>> {
        ensure!(chunk <= context, "--context {chunk}: the model was made for {context} tokens");
        let mut windows = pair::of_chunks(tokens, chunk);
        ensure!(
            !windows.is_empty(),
            "{} has {} tokens, fewer than a chunk of {chunk}: give a longer text or a smaller --context",
            self.file.display(),
            tokens.len()
        );
        if let Most::Tokens(most) = self.chunks {
            windows.truncate(most);
        }
        Ok(windows)
    }
}
