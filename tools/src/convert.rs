//! Running a conversion for a person: the plan, the warnings, the progress bar.

use std::path::Path;

use anyhow::Context;
use yuan::{
    checkpoint::{Checkpoint, LeftOut, vocab::read_vocab},
    config::{Family, ModelConfig, RouterKind},
    container::Container,
    convert::{Conversion, ImportanceFile, within_size},
    quantize::{Loss, Plan, SourceOf, Wishes},
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

    /// Its model.
    pub fn config(&self) -> &ModelConfig {
        match self {
            Self::Checkpoint(checkpoint, _) => checkpoint.config(),
            Self::Gguf(container) => container.config(),
        }
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
    /// Of a GPTQ checkpoint: what it is.
    quantized: Option<Quantized>,
    left_out: &'a [LeftOut],
    /// Where a size chose the types: the mean KL divergence that they are expected to have.
    expected: Option<f32>,
    /// What is known of the importance of weights.
    told: Vec<String>,
}

/// How the matrices of a GPTQ checkpoint fare.
struct Quantized {
    /// The checkpoint, for people.
    what: String,
    /// By tensor of the container, why it is not the checkpoint's, if it is not.
    losses: Vec<Option<String>>,
    /// Experts or matrices in blocks that hold the codes, and all that were quantized.
    exact: usize,
    all: usize,
}

impl<'a> Job<'a> {
    /// Plans the conversion, by importance where that is given. A GGUF file keeps its own types (a repack without loss) unless `wishes` name types.
    ///
    /// # Errors
    /// When the input does not allow it.
    pub fn new(
        input: &'a Input,
        wishes: &Wishes,
        importance: Option<&'a ImportanceFile>,
    ) -> anyhow::Result<Self> {
        let (wishes, expected) = &within_size(wishes, input.config())?;
        let (conversion, warnings, quantized) = match input {
            Input::Checkpoint(checkpoint, vocab) => {
                let (plan, warnings) = Plan::of_checkpoint(checkpoint, wishes)?;
                let identity = checkpoint.identity();
                let quantized = Quantized::of(checkpoint, &plan)?;
                let conversion =
                    Conversion::of_checkpoint(plan, checkpoint.as_ref(), vocab, &identity, importance)?;
                (conversion.reading(checkpoint.files()), warnings, quantized)
            }
            Input::Gguf(_) if wishes.lossless && wishes.name_types() => {
                anyhow::bail!(
                    "--lossless: a GGUF file keeps its weights where no types are named; leave out --experts and --dense"
                )
            }
            Input::Gguf(container) if wishes.name_types() => {
                (Conversion::requantize(container, &wishes.options(), importance)?, vec![], None)
            }
            Input::Gguf(_) if importance.is_some() => {
                anyhow::bail!(
                    "--importance: a GGUF file keeps its blocks where no types are named; give --experts, --dense or both, and a file of floats"
                )
            }
            Input::Gguf(container) => (Conversion::repack(container, &wishes.options())?, vec![], None),
        };
        let left_out = match input {
            Input::Checkpoint(checkpoint, _) => checkpoint.left_out(),
            Input::Gguf(_) => &[],
        };
        let told = importance.map(ImportanceFile::summary).unwrap_or_default();
        Ok(Self { conversion, warnings, quantized, left_out, told, expected: *expected })
    }

    /// A conversion that was planned elsewhere.
    pub fn of(conversion: Conversion<'a>) -> Self {
        Self {
            conversion,
            warnings: Vec::new(),
            quantized: None,
            left_out: &[],
            told: Vec::new(),
            expected: None,
        }
    }

    /// These tensors of the input go into no tensor.
    pub fn leaving_out(self, left_out: &'a [LeftOut]) -> Self {
        Self { left_out, ..self }
    }

    /// What the user should know before it runs.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What it is told of the importance of weights.
    pub fn told(&self) -> &[String] {
        &self.told
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
        for (i, tensor) in self.conversion.tensors().iter().enumerate() {
            let line = format!(
                "{:<36} {:<12} {:>14} {:?}",
                tensor.name,
                tensor.stored.name(),
                tensor.bytes,
                tensor.dims
            );
            match self.quantized.as_ref().and_then(|quantized| quantized.losses.get(i)) {
                Some(None) => say!("{line:<88} lossless")?,
                Some(Some(why)) => say!("{line:<88} rounded: {why}")?,
                None => say!("{line}")?,
            }
        }
        if let Some(quantized) = &self.quantized {
            say!("{}", quantized.summary())?;
        }
        say!("{} tensors, {} in all", self.conversion.tensors().len(), size(self.conversion.file_bytes()))?;
        for tensor in self.left_out {
            let bytes = tensor.bytes.map_or_else(|| "?".to_owned(), |bytes| bytes.to_string());
            say!("{:<36} {:<12} {bytes:>14}", tensor.name, "left out")?;
        }
        if let Some(left_out) = self.left_out() {
            say!("{left_out}")?;
        }
        if let Some(expected) = self.expected {
            say!(
                "expected mean KL divergence from the original: about {expected:.4}, as measured on the demo model"
            )?;
        }
        say!("about {} of memory at the peak", size(self.conversion.peak_bytes()))?;
        Ok(())
    }

    /// Bytes that the progress of [`Job::write`] counts.
    pub fn data_bytes(&self) -> u64 {
        self.conversion.data_bytes()
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.conversion.file_bytes()
    }

    /// Writes `output` without a word.
    ///
    /// # Errors
    /// As [`Job::run`].
    pub fn make(&self, output: &Path) -> anyhow::Result<()> {
        let written = self.conversion.write(output, &|_| !stopped());
        written.map(drop).with_context(|| format!("converting to {}", output.display()))
    }

    /// Writes `output` behind a progress bar.
    ///
    /// # Errors
    /// Those of the conversion; a stopped or failed run leaves `output` alone.
    pub fn run(&self, output: &Path) -> anyhow::Result<()> {
        let bar = byte_bar(self.data_bytes(), "convert");
        self.write(output, &|bytes| {
            bar.inc(bytes);
            if bar.position() == bar.length().unwrap_or(0) {
                bar.finish_and_clear();
            }
            !stopped()
        })
    }

    /// Writes `output`, while `progress` hears the bytes of every finished tensor and says whether to go on.
    ///
    /// # Errors
    /// As [`Job::run`].
    pub fn write(&self, output: &Path, progress: &dyn Fn(u64) -> bool) -> anyhow::Result<()> {
        let written = self
            .conversion
            .write(output, progress)
            .with_context(|| format!("converting to {}", output.display()))?;
        if written.resumed > 0 {
            tell!("continued after {} tensors of an earlier run", written.resumed);
        }
        if let Some(quantized) = &self.quantized {
            tell!("{}", quantized.summary());
            tell_losses(&self.conversion.losses(), written.resumed);
        }
        tell!("{}: {}", output.display(), size(written.bytes));
        if let Some(left_out) = self.left_out() {
            tell!("{left_out}");
        }
        Ok(())
    }
}

impl Quantized {
    fn of(checkpoint: &Checkpoint, plan: &Plan) -> anyhow::Result<Option<Self>> {
        let Some(settings) = checkpoint.quantized() else { return Ok(None) };
        let groups = settings.group_size.map_or("whole rows".into(), |size| format!("groups of {size}"));
        let what = format!("GPTQ, {} bits, {groups}, {}", settings.bits, settings.format.name());
        let (mut exact, mut all) = (0, 0);
        for (item, loss) in plan.items.iter().zip(&plan.losses) {
            let name = match &item.source {
                SourceOf::Matrix(name) | SourceOf::Conv(name) | SourceOf::Tiles { w1: name, .. } => name,
            };
            if checkpoint.facts(name)?.is_some() {
                (exact, all) = (exact + usize::from(loss.is_none()), all + 1);
            }
        }
        Ok(Some(Self { what, losses: plan.losses.clone(), exact, all }))
    }

    fn summary(&self) -> String {
        let Self { what, exact, all, .. } = self;
        let floats = self.losses.iter().flatten().count() - (all - exact);
        let floats = match floats {
            0 => "; all other tensors, too".into(),
            n => format!("; {n} tensors that the checkpoint has in floats are rounded (not with --lossless)"),
        };
        match all - exact {
            0 => format!("{what}: lossless: all {all} quantized tensors keep their weights exactly{floats}"),
            lossy => format!(
                "{what}: {exact} of {all} quantized tensors keep their weights exactly, {lossy} have no form here that does and are quantized once \
                 more{floats}"
            ),
        }
    }
}

/// Tells what it cost to quantize matrices once more.
fn tell_losses(losses: &[Loss], resumed: usize) {
    let Some(worst) = losses.iter().max_by(|a, b| a.relative.total_cmp(&b.relative)) else { return };
    let mean = losses.iter().map(|loss| loss.relative).sum::<f64>() / losses.len() as f64;
    let measured = if resumed > 0 { " in this run" } else { "" };
    tell!(
        "quantized once more{measured}: {} matrices, by {:.3} % of their weights' root mean square on average; most in {} ({}): {:.3} %, at most {:.3e}",
        losses.len(),
        100.0 * mean,
        worst.name,
        worst.dtype.name(),
        100.0 * worst.relative,
        worst.largest
    );
}

/// Writes a standard GGUF file with the weights of the container `model`.
///
/// # Errors
/// Those of the container and of writing.
pub fn export(model: &Path, output: &Path) -> anyhow::Result<()> {
    let container = Container::open(model)?;
    Job::of(Conversion::export(&container)?).run(output)?;
    let config = container.config();
    let name = config.architecture_name();
    match (config.router, config.yarn) {
        (RouterKind::Linear, _) => tell!(
            "the architecture is called {name}, which only this program reads: the model has a linear router, and programs that read yuan2_moe have \
             the attention router only"
        ),
        (_, Some(_)) => tell!(
            "the architecture is called {name}, which only this program reads: the model has YaRN in a form of its own, and programs that read \
             yuan2_moe would leave it out"
        ),
        _ if config.family == Family::Yuan3 => tell!(
            "the architecture is called {name}, as of Yuan2.0-M32: programs that read it compute the same from these tensors, with f32 rotary \
             tables of the base {}; they know no conversations of Yuan 3.0",
            config.rope_base
        ),
        _ => {}
    }
    Ok(())
}
