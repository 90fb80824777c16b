//! `yuan-quant`: convert checkpoints of Yuan 2.0 and Yuan 3.0 to containers.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use yuan::{
    config::RopePrecision,
    container::Container,
    quantize::{DType, Options, Wishes},
};
use yuan_tools::{
    console::{self, byte_bar, size, stopped},
    convert::{self, Input},
    inspect::{self, Show},
    open::rope,
    say, tell,
};

mod synth;

/// Convert checkpoints of Yuan 2.0 and Yuan 3.0 to containers
#[derive(Parser)]
#[command(
    name = "yuan-quant",
    version = yuan::VERSION,
    max_term_width = 110,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  yuan-quant Yuan2-M32-hf -o yuan2-m32.q4_k.gguf --rope-base 40890
  yuan-quant Yuan2-M32-hf -o yuan2-m32.q4_0.gguf --rope-base 40890 --experts q4_0 --dry-run
  yuan-quant Yuan2-M32-gptq-int4 -o yuan2-m32.q4_0.gguf --rope-base 40890
  yuan-quant Yuan3.0-Flash -o yuan3-flash.gguf --dry-run
  yuan-quant Yuan2-M32-q4_0.gguf -o tiles.gguf
  yuan-quant verify yuan2-m32.q4_k.gguf
A run that was killed continues where it stopped when it is started again with the same arguments."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    convert: Convert,
}

#[derive(Subcommand)]
enum Command {
    /// Check every byte of a container against its recorded BLAKE3 digests
    #[command(after_help = "Example:\n  yuan-quant verify yuan2-m32.q4_k.gguf")]
    Verify {
        /// The container
        model: PathBuf,
    },
    /// Show what a container holds
    Inspect(Show),
    /// Write a standard GGUF file with the same weights
    #[command(after_help = "Example:\n  yuan-quant export yuan2-m32.q4_k.gguf -o yuan2-m32.standard.gguf")]
    Export {
        /// The container
        model: PathBuf,
        /// The file to write
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },
    /// Write a model with random weights, for benchmarks and tests
    Synth(synth::Synth),
}

/// A conversion.
#[derive(Args)]
struct Convert {
    /// A Hugging Face folder (safetensors or .bin; bf16, f16, f32, or GPTQ of 4 or 8 bits), or a GGUF file as published
    #[arg(required = true)]
    input: Option<PathBuf>,
    /// The container to write
    #[arg(long, short, value_name = "FILE", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    #[command(flatten)]
    types: Types,
    /// Stop unless every weight of the container is exactly the checkpoint's. Types that are not named are then those of the checkpoint
    #[arg(long)]
    lossless: bool,
    /// Print the plan (every tensor, its type and size, of GPTQ whether it is without loss; totals, peak memory) and write nothing
    #[arg(long)]
    dry_run: bool,
}

/// Types and conventions of the output.
#[derive(Args, Clone)]
pub struct Types {
    /// Type of the experts: q4_k or q4_0 (as neuron tiles, which can be streamed), q8_0, f16, bf16 or f32; by default q4_k, what a GGUF input has, or
    /// what holds the weights of a GPTQ input exactly (q4_0 of 4 bits, q8_0 of 8 bits)
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    experts: Option<DType>,
    /// Type of the other matrices: q8_0, q6_k, q4_k, f16, bf16 or f32; by default q8_0, what a GGUF input has, or what holds the weights of GPTQ exactly
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    dense: Option<DType>,
    /// Rotary convention to record: mixed (that of the training), f32 or hfbf16; by default the config's, or mixed; Yuan 3.0 has f32 only
    #[arg(long, value_name = "KIND", value_parser = rope)]
    rope: Option<RopePrecision>,
    /// Base of the rotary frequencies to record; by default the config's (that of the published Yuan2-M32-hf has none: give 40890), and 10000 with
    /// YaRN, as in the authors' code
    #[arg(long, value_name = "BASE")]
    rope_base: Option<f32>,
}

impl Types {
    fn wishes(&self) -> Wishes {
        let Self { experts, dense, rope, rope_base } = *self;
        Wishes { experts, dense, rope, rope_base, lossless: false }
    }

    fn options(&self) -> Options {
        self.wishes().options()
    }
}

fn dtype(name: &str) -> Result<DType, String> {
    DType::from_name(name).ok_or_else(|| "choose q4_k, q4_0, q8_0, q6_k, f16, bf16 or f32".into())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    console::run(|| match (cli.command, cli.convert) {
        (Some(Command::Verify { model }), _) => verify(&model),
        (Some(Command::Inspect(show)), _) => inspect::run(&show),
        (Some(Command::Export { model, output }), _) => convert::export(&model, &output),
        (Some(Command::Synth(synth)), _) => synth.run(),
        (None, args) => convert(&args),
    })
}

fn convert(args: &Convert) -> anyhow::Result<()> {
    let Some(input) = &args.input else { anyhow::bail!("give a checkpoint folder or a GGUF file") };
    let input = Input::open(input)?;
    let wishes = Wishes { lossless: args.lossless, ..args.types.wishes() };
    let job = convert::Job::new(&input, &wishes)?;
    for warning in job.warnings() {
        tell!("warning: {warning}");
    }
    if args.dry_run {
        return job.print_plan();
    }
    let Some(output) = &args.output else { anyhow::bail!("give the container to write with -o FILE") };
    job.run(output)
}

fn verify(model: &Path) -> anyhow::Result<()> {
    let container = Container::open(model)?;
    let bar = byte_bar(container.data_bytes(), "verify");
    container.verify(&|bytes| {
        bar.inc(bytes);
        !stopped()
    })?;
    bar.finish_and_clear();
    say!(
        "{}: {} tensors, {}, all as written",
        model.display(),
        container.tensors().len(),
        size(container.data_bytes())
    )?;
    Ok(())
}
