//! Opening a model for a command: the options that all commands share.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use clap::Args;
use yuan::{
    config::RopePrecision,
    container::Container,
    model::{Arithmetic, KvType, Model, Options},
    tokenizer::Tokenizer,
};

/// Options of every command that runs a model.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// The model: a container of yuan-quant, or a GGUF file as published
    pub model: PathBuf,
    /// Threads; all by default
    #[arg(long, short = 't', default_value_t = 0, hide_default_value = true, value_name = "N")]
    pub threads: usize,
    /// Type of the key-value cache: f16, q8_0, q4_0 or f32
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_type)]
    pub kv: KvType,
    /// Rotary convention in place of the container's: mixed, f32 or hfbf16
    #[arg(long, value_name = "KIND", value_parser = rope)]
    pub rope: Option<RopePrecision>,
    /// Widen 4- and 8-bit weights to f32 instead of multiplying in integers: slow, for comparisons
    #[arg(long)]
    pub float: bool,
}

/// An open model.
pub struct Opened {
    /// The file.
    pub container: Container,
    /// The weights, ready to run.
    pub model: Arc<Model>,
    /// The container's tokenizer.
    pub tokenizer: Tokenizer,
}

impl RunArgs {
    /// Opens the container and makes the model and its tokenizer.
    pub fn open(&self) -> anyhow::Result<Opened> {
        let container = Container::open(&self.model)?;
        let arithmetic = if self.float { Arithmetic::Float } else { Arithmetic::Integer };
        let options = Options { threads: self.threads, arithmetic, rope: self.rope, ..Default::default() };
        let model = Arc::new(Model::load(&container, &options)?);
        let vocab =
            container.vocab().with_context(|| format!("the tokenizer of {}", self.model.display()))?;
        Ok(Opened { model, tokenizer: Tokenizer::new(vocab)?, container })
    }
}

fn kv_type(name: &str) -> Result<KvType, String> {
    KvType::from_name(name).ok_or_else(|| "choose f16, q8_0, q4_0 or f32".into())
}

/// Parses a rotary convention.
pub fn rope(name: &str) -> Result<RopePrecision, String> {
    RopePrecision::from_name(name).ok_or_else(|| "choose mixed, f32 or hfbf16".into())
}
