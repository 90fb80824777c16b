//! `yuan-quant`: convert checkpoints of Yuan 2.0 and Yuan 3.0 to containers.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, CommandFactory, Parser, Subcommand};
use yuan::{container::Container, convert::ImportanceFile, quantize::Wishes};
use yuan_tools::{
    console::{self, byte_bar, size, stopped},
    convert::{self, Input},
    inspect::{self, Show},
    pull::{self, Hub, Pull},
    say,
    shell::{Completions, Man},
    tell,
    types::Types,
};

mod calibrate;
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
  yuan-quant Yuan2-M32-hf -o yuan2-m32.18g.gguf --rope-base 40890 --size 18.6G
  yuan-quant Yuan2-M32-gptq-int4 -o yuan2-m32.q4_0.gguf --rope-base 40890
  yuan-quant Yuan3.0-Flash -o yuan3-flash.gguf --dry-run
  yuan-quant Yuan2-M32-q4_0.gguf -o tiles.gguf
  yuan-quant hf:IEITYuan/Yuan2-M32-hf -o yuan2-m32.q4_k.gguf --rope-base 40890
  yuan-quant calibrate yuan2-m32.q8_0.gguf --text english.txt 中文.txt --hessians expert -o importance.gguf
  yuan-quant Yuan2-M32-hf -o yuan2-m32.q4_k.gguf --rope-base 40890 --importance importance.gguf
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
    Calibrate(Box<calibrate::Calibrate>),
    /// Write a model with random weights, for benchmarks and tests
    Synth(synth::Synth),
    /// Print a script for your shell, by which Tab completes commands and options
    Completions(Completions),
    /// Write manual pages into a folder
    Man(Man),
}

/// A conversion.
#[derive(Args)]
struct Convert {
    /// A Hugging Face folder (safetensors or .bin; bf16, f16, f32, or GPTQ of 4 or 8 bits), a GGUF file as published, or hf:OWNER/NAME (ms:OWNER/NAME)
    /// for a repository of Hugging Face (ModelScope), whose shards are fetched, converted and dropped one after another
    #[arg(required = true)]
    input: Option<PathBuf>,
    /// The container to write
    #[arg(long, short, value_name = "FILE", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    #[command(flatten)]
    types: Types,
    #[command(flatten)]
    hub: Hub,
    /// Choose the blocks by what calibrate has found out (a GGUF file of llama.cpp's form, imatrix): errors in columns with large inputs count more, and, where
    /// the file has second moments, the columns behind make up for the errors of those before
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,
    /// Stop unless every weight of the container is exactly the checkpoint's. Types that are not named are then those of the checkpoint
    #[arg(long, conflicts_with = "size")]
    lossless: bool,
    /// Print the plan (every tensor, its type and size, of GPTQ whether it is without loss; totals, peak memory) and write nothing
    #[arg(long)]
    dry_run: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    console::run(|| match (cli.command, cli.convert) {
        (Some(Command::Verify { model }), _) => verify(&model),
        (Some(Command::Inspect(show)), _) => inspect::run(&show),
        (Some(Command::Export { model, output }), _) => convert::export(&model, &output),
        (Some(Command::Calibrate(calibrate)), _) => calibrate.run(),
        (Some(Command::Synth(synth)), _) => synth.run(),
        (Some(Command::Completions(c)), _) => c.run(Cli::command()),
        (Some(Command::Man(c)), _) => c.run(Cli::command()),
        (None, args) => convert(&args),
    })
}

fn convert(args: &Convert) -> anyhow::Result<()> {
    let Some(input) = &args.input else { anyhow::bail!("give a checkpoint folder or a GGUF file") };
    if let Some(repository) = pull::repository(input)? {
        if args.importance.is_some() {
            anyhow::bail!(
                "--importance needs the checkpoint here: fetch it with --keep, and give its folder"
            );
        }
        let Some(output) = args.output.as_deref().filter(|_| !args.dry_run) else {
            anyhow::bail!("a dry run needs the checkpoint here: fetch it with --keep, or give its folder");
        };
        let wishes = Wishes { lossless: args.lossless, ..args.types.wishes() };
        return Pull { repository, hub: args.hub.clone(), output, wishes }.run().map(drop);
    }
    let input = Input::open(input)?;
    let wishes = Wishes { lossless: args.lossless, ..args.types.wishes() };
    let importance =
        args.importance.as_deref().map(|path| ImportanceFile::open(path, input.config())).transpose()?;
    let job = convert::Job::new(&input, &wishes, importance.as_ref())?;
    for warning in job.warnings() {
        tell!("warning: {warning}");
    }
    job.told().iter().for_each(|told| tell!("{told}"));
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
