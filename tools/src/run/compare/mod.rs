//! `yuan compare`: what smaller containers of a model cost and gain.

mod facts;
mod picture;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Map, Value, json};
use yuan::{
    files::{check_output, write_whole},
    session::Engine,
};
use yuan_tools::{
    console::size,
    documents::{self, Range},
    models::resolve,
    numbers,
    open::RunArgs,
    say,
};

use crate::perplexity::{
    pair::{self, Side},
    score::{Likelihood, Score, with_error},
};
use facts::Facts;
use picture::{Point, svg};

/// Say in one table what smaller containers of a model cost and gain
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan compare bf16.gguf q8_0.gguf q4_k.gguf q3_k.gguf --text heldout.txt
  yuan compare *.gguf --against bf16.gguf --text 保留.txt --documents 1-58 --svg kl.svg
  yuan compare m32-q4.gguf m32-q3.gguf --text text.txt --memory 8G --memory-speed 60 --drive-speed 3 --json
The first model is the reference, unless --against names it: predictions of the others are measured by their Kullback-Leibler divergence (KL) from its own, and by how often both find the same token \
            the likeliest. The text is divided into documents as in `yuan perplexity`, which says more of one pair. \
            Two models are in memory at a time, the reference and another one, each within --memory; the reference's predictions are computed again for each of the others. \
            Speeds are bounds for the model alone, behind a short context, as `yuan plan` has them. Behind ± is the standard error, for tokens that were independent of each other.")]
pub struct Compare {
    #[command(flatten)]
    run: RunArgs,
    /// Other models
    #[arg(value_name = "OTHER")]
    others: Vec<PathBuf>,
    /// The text file
    #[arg(long, short = 'f', visible_alias = "file", value_name = "TEXT")]
    text: PathBuf,
    /// Use only these documents, counted from 1
    #[arg(long, value_name = "FIRST-LAST")]
    documents: Option<Range>,
    /// The reference, in place of the first model
    #[arg(long, value_name = "MODEL")]
    against: Option<PathBuf>,
    /// GB a second that the memory delivers, of a machine other than this one; by default it is measured
    #[arg(long, value_name = "GB/S", value_parser = numbers::rate)]
    memory_speed: Option<f64>,
    /// GB a second that the drive delivers; by default it is measured where a model does not fit into memory
    #[arg(long, value_name = "GB/S", value_parser = numbers::rate)]
    drive_speed: Option<f64>,
    /// Also write a picture: KL by bits a weight
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A model with what was found of it.
struct Row {
    facts: Facts,
    /// Bytes of weights that a token reads.
    a_token: usize,
    likelihood: Likelihood,
    /// The reference has none.
    score: Option<Score>,
}

impl Compare {
    pub fn run(self) -> anyhow::Result<()> {
        let paths = self.paths()?;
        if let Some(path) = &self.svg {
            let inputs: Vec<_> = paths.iter().chain([&self.text]).cloned().collect();
            check_output(path, 0, &inputs, "NAME.svg")?;
        }
        let text =
            fs::read_to_string(&self.text).with_context(|| format!("cannot read {}", self.text.display()))?;
        // Before models take memory, so that each is alone.
        let mut facts = Facts::of_all(&paths, &self.run, self.memory_speed, self.drive_speed)?.into_iter();

        let mut documents = Vec::new();
        let open = |path: &Path, documents: &mut Vec<Vec<u32>>| {
            let run = RunArgs { model: path.to_owned().into(), ..self.run.clone() };
            run.open_for(|tokenizer, config| {
                *documents = documents::split(&text, tokenizer);
                Ok(documents::longest(documents).min(config.context))
            })
        };
        let reference = open(&paths[0], &mut documents)?;
        let used = documents::chosen(&documents, self.documents, &self.text)?;
        let a_token = |engine: &Engine| engine.model().bytes_per_token();
        let kv = self.run.kv;

        if !self.json {
            say!("{}", heading())?;
        }
        let mut rows: Vec<Row> = Vec::new();
        let mut reference_facts = facts.next();
        for (facts, path) in facts.zip(&paths[1..]) {
            let mut same = Vec::new();
            let other = open(path, &mut same)?;
            ensure!(
                same == documents,
                "{} and {} have different tokenizers: their predictions cannot be compared",
                paths[0].display(),
                path.display()
            );
            let [model, beside] = [&other, &reference].map(|engine| Side { model: engine.model(), kv });
            let context = [model, beside].map(|side| side.model.config().context).into_iter().min();
            let windows = pair::of_documents(used, context.unwrap_or(usize::MAX));
            let score = pair::run(&windows, &self.text, model, Some(beside), "comparing", &mut |_| Ok(()))?;
            if let Some(facts) = reference_facts.take() {
                let row =
                    Row { facts, a_token: a_token(&reference), likelihood: score.reference, score: None };
                self.show(&row)?;
                rows.push(row);
            }
            let row = Row { facts, a_token: a_token(&other), likelihood: score.model, score: Some(score) };
            self.show(&row)?;
            rows.push(row);
        }
        if let Some(path) = &self.svg {
            let svg = self.picture(&rows);
            write_whole(path, svg.len() as u64, |out| out.write_all(svg.as_bytes()))?;
        }
        if self.json {
            let object = json!({
                "text": self.text, "documents": used.len(), "tokens": rows[0].likelihood.tokens(), "kv": kv.name(), "reference": paths[0],
                "models": rows.iter().map(Row::json).collect::<Vec<_>>(),
            });
            return say!("{object}");
        }
        say!("(KL and same top-1: from {}, on {} tokens)", rows[0].facts.name, rows[0].likelihood.tokens())
    }

    /// The files of the reference and of the others, of which there is one at least.
    fn paths(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut paths = vec![self.run.model.path()?];
        for other in &self.others {
            paths.push(resolve(other)?);
        }
        if let Some(reference) = &self.against {
            let reference = resolve(reference)?;
            let canonical = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            // It may be one of `*.gguf`.
            paths.retain(|path| canonical(path) != canonical(&reference));
            paths.insert(0, reference);
        }
        ensure!(
            paths.len() > 1,
            "there is nothing to compare {} with: name two models, the reference first",
            paths[0].display()
        );
        Ok(paths)
    }

    fn show(&self, row: &Row) -> anyhow::Result<()> {
        if self.json { Ok(()) } else { say!("{}", row.text()) }
    }

    fn picture(&self, rows: &[Row]) -> String {
        let points: Vec<Point> = rows
            .iter()
            .filter_map(|row| {
                let kl = row.score.as_ref()?.distance().kl;
                let Facts { name, bits, .. } = &row.facts;
                Some(Point { name: name.clone(), bits: *bits, kl: kl.mean(), error: kl.error() })
            })
            .collect();
        let text = self.text.file_name().unwrap_or(self.text.as_os_str()).to_string_lossy();
        let tokens = rows[0].likelihood.tokens();
        svg(
            &points,
            &format!("Distance from {}, by bits a weight", rows[0].facts.name),
            &format!("{text}, {tokens} tokens"),
        )
    }
}

fn heading() -> String {
    cells([
        "size",
        "bits",
        "experts",
        "a token",
        "tok/s <=",
        "perplexity",
        "mean KL",
        "same top-1, %",
        "model",
    ])
}

fn cells(cells: [&str; 9]) -> String {
    let [size, bits, experts, token, speed, perplexity, kl, same, name] = cells;
    format!(
        "{size:>9}  {bits:>5}  {experts:>7}  {token:>9}  {speed:>8}  {perplexity:>16}  {kl:>19}  {same:>13}  {name}"
    )
}

impl Row {
    fn text(&self) -> String {
        let Facts { name, bytes, bits, expert_bits, speed, .. } = &self.facts;
        let some = |value: Option<f64>, digits| value.map_or("-".into(), |v| format!("{v:.digits$}"));
        let (perplexity, error) = self.likelihood.perplexity();
        let (kl, same) = match &self.score {
            None => ("reference".into(), "-".into()),
            Some(score) => {
                let distance = score.distance();
                (distance.kl.text(1.0, 6), distance.agreed.text(100.0, 2))
            }
        };
        cells([
            &size(*bytes),
            &format!("{bits:.2}"),
            &some(*expert_bits, 2),
            &size(self.a_token as u64),
            &some(*speed, 1),
            &with_error(perplexity, error, 3),
            &kl,
            &same,
            name,
        ])
    }

    fn json(&self) -> Value {
        let mut all: Map<String, Value> = self.facts.json();
        all.insert("bytes_per_token".into(), self.a_token.into());
        all.extend(self.score.as_ref().map_or_else(|| self.likelihood.json(), Score::json));
        all.into()
    }
}
