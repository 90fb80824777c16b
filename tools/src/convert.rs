//! Running a conversion for a person: the plan, the warnings, the progress bar.

use std::path::Path;

use anyhow::Context;
use yuan::{
    checkpoint::{Checkpoint, vocab::read_vocab},
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
            let vocab = read_vocab(path, Some(checkpoint.config().vocab))?;
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
        Ok(Self { conversion, warnings })
    }

    /// A conversion that was planned elsewhere.
    pub fn of(conversion: Conversion<'a>) -> Self {
        Self { conversion, warnings: Vec::new() }
    }

    /// What the user should know before it runs.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
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
        Ok(())
    }
}

/// Writes a standard GGUF file with the weights of the container `model`.
///
/// # Errors
/// Those of the container and of writing.
pub fn export(model: &Path, output: &Path) -> anyhow::Result<()> {
    let container = Container::open(model)?;
    Job::of(Conversion::export(&container)?).run(output)
}
