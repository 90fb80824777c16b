//! `yuan perplexity`: how well a model predicts a text, and how far it is from another.

pub mod pair;
pub mod score;

use std::{fs, path::PathBuf};

use anyhow::Context;
use clap::Args;
use serde_json::Value;
use yuan::{model::KvType, session::stats};
use yuan_tools::{
    documents::{self, Range},
    open::{RunArgs, kv_type},
    say,
};

use pair::Side;

/// Measure how well a model predicts a text, and how far it is from another model
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan perplexity model.gguf --file text.txt
  yuan perplexity q4.gguf --file heldout.txt --documents 1-58 --against bf16.gguf
  yuan perplexity model.gguf --file text.txt --kv q4_0 --against model.gguf --against-kv f16
Documents are divided by lines that say <eod>. Each is run by itself from an empty state; every token but its first \
            is predicted, special tokens and the closing <eod> included. With --against, --memory is for each of the two models, and the Kullback-Leibler divergence (KL) of each token is \
            told by its mean, by what so many of the tokens do not exceed, and by the token's position in the document. \
            Behind ± is the standard error, for tokens that were independent of each other. `yuan compare` has a table of several models.")]
pub struct Perplexity {
    #[command(flatten)]
    run: RunArgs,
    /// The text file
    #[arg(long, short, value_name = "TEXT")]
    file: PathBuf,
    /// Use only these documents, counted from 1
    #[arg(long, value_name = "FIRST-LAST")]
    documents: Option<Range>,
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
            documents = documents::split(&text, tokenizer);
            Ok(documents::longest(&documents).min(config.context))
        })?;
        let kv = self.against_kv.unwrap_or(self.run.kv);
        let other = match &self.against {
            None => None,
            Some(path) => {
                let run = RunArgs { model: path.clone().into(), kv, ..self.run.clone() };
                Some(run.open(documents::longest(&documents))?)
            }
        };
        let documents = documents::chosen(&documents, self.documents, &self.file)?;
        let side = Side { model: engine.model(), kv: self.run.kv };
        let reference = other.as_ref().map(|other| Side { model: other.model(), kv });
        let score = pair::run(documents, &self.file, side, reference, "perplexity")?;
        if self.json {
            let mut object = score.json();
            object.insert("documents".into(), documents.len().into());
            object.insert("paging".into(), stats::placement(engine.model()));
            return say!("{}", Value::from(object));
        }
        say!("documents   {}\n{}", documents.len(), score.text())
    }
}
