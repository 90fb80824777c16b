//! `yuan-quant calibrate`: text goes through a model, and what its matrices are multiplied with goes to a file of importances.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::Args;
use yuan::{
    Error,
    calibrate::{Moments, Work, Writing, calibrate, moments_bytes, write},
    config::ModelConfig,
    container::Container,
    files::{check_not_read, check_output},
    machine::budget::{Budget, Limit},
    model::{BATCH, Model},
    tokenizer::Tokenizer,
};
use yuan_tools::{
    console::{byte_bar, size, token_bar, unless_stopped},
    documents::split,
    numbers,
    open::RunArgs,
    say, tell,
};

/// Sums so far are saved about as often.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// Find out by text which columns of a model's matrices matter, for conversions with --importance
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan-quant calibrate yuan2-m32.q8_0.gguf --text english.txt 中文.txt -o importance.gguf
  yuan-quant calibrate yuan2-m32.bf16.gguf --text texts.txt --hessians layer --memory 16G -o importance.gguf
  yuan-quant Yuan2-M32-hf -o yuan2-m32.q4_k.gguf --rope-base 40890 --importance importance.gguf
Give text of the kinds and languages that the model is for. Documents are divided by lines that say <eod>; <sep> and <n> in them are the model's own. With --write the model writes text of its own, too, in the form that it is used in. The file is a GGUF file of llama.cpp's form (imatrix); with --hessians it has second moments, too, for error feedback. A run that was killed continues where it stopped \
when it is started again with the same arguments.")]
pub struct Calibrate {
    #[command(flatten)]
    run: RunArgs,
    /// The text files
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    text: Vec<PathBuf>,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Gather second moments, too, by which a conversion lets columns make up for the errors of others: better by more, and a larger file. By layer (9 GB for
    /// Yuan2.0-M32), or also of what each expert takes (by expert: 21 GB, and better). What does not fit into the memory together is gathered in several rounds through
    /// the texts
    #[arg(long, value_name = "layer|expert", value_parser = moments)]
    hessians: Option<Moments>,
    /// Number of tokens of each file to use at most; 0 means all
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N", value_parser = numbers::tokens)]
    tokens: usize,
    /// Have the model write about this number of tokens itself, too: behind the `<sep>` of documents that have one, and behind the first words of others
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N", value_parser = numbers::tokens)]
    write: usize,
}

impl Calibrate {
    pub fn run(mut self) -> anyhow::Result<()> {
        let path = self.run.model.path()?;
        check_output(&self.output, 0, &[], "importance.gguf")?;
        check_not_read(&self.output, &[&self.text[..], std::slice::from_ref(&path)].concat())?;
        let container = Container::open(&path)?;
        let vocab = container.vocab();
        let tokenizer =
            Tokenizer::new(vocab.with_context(|| format!("the tokenizer of {}", path.display()))?)?;
        let mut documents = Vec::new();
        for file in &self.text {
            documents.extend(self.read(file, &tokenizer)?);
        }
        let moments = self.divide_memory(container.config())?;
        let mut options = self.run.options(BATCH.min(container.config().context));
        options.gpu.choice = "off".parse().map_err(anyhow::Error::msg)?;
        let mut bar = None;
        let model = Model::load_watched(&container, &options, &mut |done, total| {
            bar.get_or_insert_with(|| byte_bar(total, "opening")).set_position(done);
            unless_stopped()
        });
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let model = model?;

        let name = |file: &PathBuf| file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut datasets: Vec<String> = self.text.iter().map(name).collect();
        if self.write > 0 {
            documents.extend(self.written(&model, &tokenizer, &documents)?);
            datasets.push("text that the model has written".into());
        }
        let work = Work {
            datasets,
            documents,
            moments,
            kv: self.run.kv,
            identity: container.identity().to_vec(),
            save_every: SAVE_EVERY,
        };
        let bar = token_bar(work.tokens(model.config().layers), "calibrate");
        let mut said = false;
        let sums = calibrate(&model, &work, &self.output, &mut |tokens| {
            if !said && tokens > 0 && bar.position() == 0 {
                tell!("continued after {tokens} tokens of an earlier run");
            }
            said = true;
            bar.inc(tokens);
            unless_stopped()
        });
        bar.finish_and_clear();
        let sums = sums?;
        let tokens: usize = work.documents.iter().map(Vec::len).sum();
        let written = fs::metadata(&self.output).map_err(Error::io("read", &self.output))?.len();
        say!(
            "{}: {tokens} tokens, {} matrices, {}",
            self.output.display(),
            sums.entries.keys().filter(|name| name.ends_with(".weight")).count(),
            size(written)
        )?;
        let experts = sums.entries.iter().filter(|(name, _)| name.ends_with("ffn_gate_exps.weight"));
        let counts: Vec<f32> = experts.flat_map(|(_, entry)| entry.counts.iter().copied()).collect();
        if let Some(least) = counts.iter().copied().reduce(f32::min) {
            let few = counts.iter().filter(|count| **count < FEW).count();
            say!(
                "an expert got {least} tokens at least; {few} of {} got fewer than {FEW}, and will take after the others of their layers",
                counts.len()
            )?;
        }
        Ok(())
    }

    /// The tokens of the documents of a file, as many as are wanted.
    fn read(&self, file: &Path, tokenizer: &Tokenizer) -> anyhow::Result<Vec<Vec<u32>>> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut documents = split(&text, tokenizer);
        if self.tokens > 0 {
            let mut left = self.tokens;
            for document in &mut documents {
                document.truncate(left);
                left -= document.len();
            }
        }
        documents.retain(|document| !document.is_empty());
        ensure!(!documents.is_empty(), "{} has no text in it", file.display());
        Ok(documents)
    }

    /// What the model writes behind the beginnings of documents, which are taken from all of them alike.
    fn written(
        &self,
        model: &Model,
        tokenizer: &Tokenizer,
        documents: &[Vec<u32>],
    ) -> anyhow::Result<Vec<Vec<u32>>> {
        let count = (self.write / PAGE).clamp(1, documents.len());
        let beginnings = (0..count).map(|i| {
            let document = &documents[i * documents.len() / count];
            let separator = document.iter().position(|token| Some(*token) == tokenizer.sep());
            let end = separator.map_or(FIRST_WORDS, |at| at + 1).min(document.len()).min(PAGE - 1);
            document[..end].to_vec()
        });
        let ends = tokenizer.ends().collect();
        let writing = Writing { beginnings: beginnings.collect(), most: PAGE, ends, kv: self.run.kv };
        let bar = token_bar(self.write as u64, "write");
        let written = write(model, &writing, &mut |tokens| {
            bar.inc(tokens);
            unless_stopped()
        });
        bar.finish_and_clear();
        Ok(written?)
    }

    /// Takes what second moments need out of the memory for the model, and says of how many layers they fit there together.
    fn divide_memory(&mut self, config: &ModelConfig) -> anyhow::Result<Option<(Moments, usize)>> {
        let Some(moments) = self.hessians else { return Ok(None) };
        let (layer, head) = moments_bytes(config, moments);
        let budget = Budget::of(self.run.paging.memory).bytes;
        // Half of the memory at most, so that the model has the other.
        let layers = ((budget / 2).saturating_sub(head) / layer.max(1)).min(config.layers as u64 + 1);
        ensure!(
            layers > 0,
            "the second moments of a layer take {} and half of the memory is {}; give more --memory, or leave out --hessians",
            size(layer + head),
            size(budget / 2)
        );
        let taken = layers * layer + head;
        self.run.paging.memory = Some(Limit::Bytes(budget - taken));
        Ok(Some((moments, layers as usize)))
    }
}

fn moments(name: &str) -> Result<Moments, String> {
    match name {
        "layer" => Ok(Moments::ByLayer),
        "expert" => Ok(Moments::ByExpert),
        _ => Err("choose layer or expert".into()),
    }
}

/// Tokens of a document that the model writes at most.
const PAGE: usize = 256;
/// Tokens with which such a document begins, where nothing says where its question ends.
const FIRST_WORDS: usize = 8;
/// Experts with fewer tokens are told of.
const FEW: f32 = 64.0;
