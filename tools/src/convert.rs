//! Running a conversion for a person: the plan, the warnings, the progress bar.

use std::path::Path;

use anyhow::Context;
use yuan::{
    checkpoint::{Checkpoint, LeftOut, vocab::read_vocab},
    config::Family,
    container::Container,
    convert::Conversion,
    quantize::{Options, Plan},
    vocab::Vocab,
};

use crate::{
    console::{byte_bar, size, stopped},
    say, tell,
};

/// What a conversion reads.
pub enum Input {
    /// A Hugging Face folder with its tokenizer.
    Checkpoint(Box<Checkpoint>, Vocab),
    /// A GGUF file.
    Gguf(Box<Container>),
}

impl Input {
    /// Opens a folder as a checkpoint, anything else as a GGUF file.
    ///
    /// # Errors
    /// When it is neither.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        if path.is_dir() {
            let checkpoint = Checkpoint::open(path)?;
            let vocab = read_vocab(path, Some(checkpoint.config()))?;
            return Ok(Self::Checkpoint(Box::new(checkpoint), vocab));
        }
        Ok(Self::Gguf(Box::new(Container::open(path)?)))
    }

    /// Bytes of all its tensors.
    pub fn data_bytes(&self) -> u64 {
        match self {
            Self::Checkpoint(checkpoint, _) => checkpoint.data_bytes(),
            Self::Gguf(container) => container.data_bytes(),
        }
    }
}

/// A conversion that is ready to run.
pub struct Job<'a> {
    conversion: Conversion<'a>,
    warnings: Vec<String>,
    left_out: &'a [LeftOut],
}

impl<'a> Job<'a> {
    /// Plans the conversion. A GGUF file keeps its own types (a repack without loss) unless `requested` says that the
    /// types in `options` were asked for.
    ///
    /// # Errors
    /// When the input does not allow it.
    pub fn new(input: &'a Input, options: &Options, requested: bool) -> anyhow::Result<Self> {
        let (conversion, warnings) = match input {
            Input::Checkpoint(checkpoint, vocab) => {
                let (plan, warnings) = Plan::of_checkpoint(checkpoint, options)?;
                let identity = checkpoint.identity();
                let conversion = Conversion::of_checkpoint(plan, checkpoint.as_ref(), vocab, &identity)?;
                (conversion.reading(checkpoint.files()), warnings)
            }
            Input::Gguf(container) if requested => (Conversion::requantize(container, options)?, vec![]),
            Input::Gguf(container) => (Conversion::repack(container, options)?, vec![]),
        };
        let left_out = match input {
            Input::Checkpoint(checkpoint, _) => checkpoint.left_out(),
            Input::Gguf(_) => &[],
        };
        Ok(Self { conversion, warnings, left_out })
    }

    /// A conversion that was planned elsewhere.
    pub fn of(conversion: Conversion<'a>) -> Self {
        Self { conversion, warnings: Vec::new(), left_out: &[] }
    }

    /// What the user should know before it runs.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What of the input goes into no tensor, in one sentence; none where everything does.
    fn left_out(&self) -> Option<String> {
        let (count, bytes) =
            (self.left_out.len(), self.left_out.iter().filter_map(|tensor| tensor.bytes).sum());
        let first = self.left_out.first()?;
        Some(format!(
            "left out: {count} tensors, {}, that are no part of the text model ({}, …): pictures are not understood",
            size(bytes),
            first.name
        ))
    }

    /// Prints every tensor with its type and size, the totals, and the memory that a run takes.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn print_plan(&self) -> anyhow::Result<()> {
        for tensor in self.conversion.tensors() {
            say!("{:<36} {:<12} {:>14} {:?}", tensor.name, tensor.stored.name(), tensor.bytes, tensor.dims)?;
        }
        say!("{} tensors, {} in all", self.conversion.tensors().len(), size(self.conversion.file_bytes()))?;
        for tensor in self.left_out {
            let bytes = tensor.bytes.map_or_else(|| "?".to_owned(), |bytes| bytes.to_string());
            say!("{:<36} {:<12} {bytes:>14}", tensor.name, "left out")?;
        }
        if let Some(left_out) = self.left_out() {
            say!("{left_out}")?;
        }
        say!("about {} of memory at the peak", size(self.conversion.peak_bytes()))?;
        Ok(())
    }

    /// Writes `output` behind a progress bar.
    ///
    /// # Errors
    /// Those of the conversion; a stopped or failed run leaves `output` alone.
    pub fn run(&self, output: &Path) -> anyhow::Result<()> {
        let bar = byte_bar(self.conversion.data_bytes(), "convert");
        let written = self
            .conversion
            .write(output, &|bytes| {
                bar.inc(bytes);
                !stopped()
            })
            .with_context(|| format!("converting to {}", output.display()))?;
        bar.finish_and_clear();
        if written.resumed > 0 {
            tell!("continued after {} tensors of an earlier run", written.resumed);
        }
        tell!("{}: {}", output.display(), size(written.bytes));
        if let Some(left_out) = self.left_out() {
            tell!("{left_out}");
        }
        Ok(())
    }
}

/// Writes a standard GGUF file with the weights of the container `model`.
///
/// # Errors
/// Those of the container and of writing.
pub fn export(model: &Path, output: &Path) -> anyhow::Result<()> {
    let container = Container::open(model)?;
    Job::of(Conversion::export(&container)?).run(output)?;
    let config = container.config();
    if config.family == Family::Yuan3 {
        let name = config.architecture_name();
        match config.yarn {
            None => tell!(
                "the architecture is called {name}, as of Yuan2.0-M32: programs that read it compute the same from these tensors, with f32 rotary \
                 tables of the base {}; they know no conversations of Yuan 3.0",
                config.rope_base
            ),
            Some(_) => tell!(
                "the architecture is called {name}, which only this program reads: the model has YaRN in a form of its own, and programs that read \
                 yuan2_moe would leave it out"
            ),
        }
    }
    Ok(())
}
