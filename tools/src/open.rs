//! Opening a model for a command: the options that all commands share.

use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::Args;
use yuan::{
    config::{ModelConfig, RopePrecision},
    container::Container,
    gpu,
    machine::{
        budget::{Budget, Limit},
        source::DirectIo,
    },
    model::{Arithmetic, KvType, Options, State},
    pager::{Paging, Settings},
    session::Engine,
    tokenizer::Tokenizer,
};

use crate::{
    console::{byte_bar, size, unless_stopped},
    models::Model,
    numbers, tell,
};

/// Options of every command that runs a model.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Which model
    #[command(flatten)]
    pub model: Model,
    /// Number of threads that compute; 0 means one for each physical core that the process may use
    #[arg(long, short = 't', default_value_t = 0, hide_default_value = true, value_name = "N", value_parser = numbers::threads)]
    pub threads: usize,
    /// Number of threads for several tokens at a time, as in a prompt; 0 means as many as --threads
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N", value_parser = numbers::threads)]
    pub threads_batch: usize,
    /// Number of tokens of prompts and answers that go through the model together at most; 0 means the usual number
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N", value_parser = numbers::batch)]
    pub batch_tokens: usize,
    /// Type of the key-value cache: f16, q8_0, q4_0 or f32, or KEYS:VALUES, as in q8_0:q4_0
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_type)]
    pub kv: KvType,
    /// Rotary convention to use instead of the container's: mixed, f32 or hfbf16
    #[arg(long, value_name = "KIND", value_parser = rope)]
    pub rope: Option<RopePrecision>,
    /// Widen 4- and 8-bit weights to f32 instead of multiplying in integers (slow; for comparisons)
    #[arg(long)]
    pub float: bool,
    /// How experts come into memory
    #[command(flatten)]
    pub paging: PagingArgs,
    /// Which GPU takes part
    #[command(flatten)]
    pub gpu: GpuArgs,
}

/// Options of the memory.
#[derive(Args, Clone, Debug, Default)]
pub struct PagingArgs {
    /// The most memory that the whole program may use: 8G, 6.5GiB, or 50% of what is free; by default what is free, less a reserve
    #[arg(help_heading = "Memory", long, value_name = "SIZE", value_parser = str::parse::<Limit>)]
    pub memory: Option<Limit>,
    /// How experts come into memory: mapped (from the file), streamed (read into slots), plain (mapped, and left to page
    /// faults), or auto (mapped if the container fits, otherwise streamed)
    #[arg(help_heading = "Memory", long, value_name = "HOW", default_value = "auto", value_parser = paging)]
    pub paging: Paging,
    /// Read streamed experts past the page cache: auto, on or off
    #[arg(help_heading = "Memory", long, value_name = "WHEN", default_value = "auto", value_parser = direct_io)]
    pub direct_io: DirectIo,
    /// When streaming, read what the next layer will probably want while the drive is idle
    #[arg(help_heading = "Memory", long)]
    pub look_ahead: bool,
    /// Number of threads that read experts; 0 means the usual number
    #[arg(help_heading = "Memory", long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = numbers::readers)]
    pub readers: usize,
}

/// Options of the GPU.
#[derive(Args, Clone, Debug, Default)]
pub struct GpuArgs {
    /// Which GPU to use: its number, auto (the first suitable one, if there is one), or off
    #[arg(help_heading = "GPU", long, value_name = "GPU", default_value = "auto", value_parser = str::parse::<gpu::Choice>)]
    pub gpu: gpu::Choice,
    /// The most memory of the GPU to use: 6G, or 50% of what is free; by default what is free, less a reserve
    #[arg(help_heading = "GPU", long, value_name = "SIZE", value_parser = str::parse::<Limit>)]
    pub gpu_memory: Option<Limit>,
}

impl GpuArgs {
    /// The library's settings.
    pub fn settings(&self) -> gpu::Settings {
        let mut settings = gpu::Settings::default();
        (settings.choice, settings.memory) = (self.gpu, self.gpu_memory);
        settings
    }
}

impl RunArgs {
    /// Opens the container and makes the model and its tokenizer, for sessions of `context` tokens.
    pub fn open(&self, context: usize) -> anyhow::Result<Arc<Engine>> {
        self.open_for(|_, _| Ok(context))
    }

    /// [`RunArgs::open`] where `context` needs the tokenizer or the model's shape to say how many tokens.
    pub fn open_for(
        &self,
        context: impl FnOnce(&Tokenizer, &ModelConfig) -> anyhow::Result<usize>,
    ) -> anyhow::Result<Arc<Engine>> {
        self.open_shared(|tokenizer, config| context(tokenizer, config).map(|context| (context, context)))
    }

    /// [`RunArgs::open_for`] several sessions at a time: `sizes` says how many tokens each may have, and how many all together are planned for.
    pub fn open_shared(
        &self,
        sizes: impl FnOnce(&Tokenizer, &ModelConfig) -> anyhow::Result<(usize, usize)>,
    ) -> anyhow::Result<Arc<Engine>> {
        self.open_container(Container::open(&self.model.path()?)?, sizes)
    }

    /// [`RunArgs::open_shared`] of a container that is open.
    pub fn open_container(
        &self,
        container: Container,
        sizes: impl FnOnce(&Tokenizer, &ModelConfig) -> anyhow::Result<(usize, usize)>,
    ) -> anyhow::Result<Arc<Engine>> {
        let vocab = container.vocab();
        let vocab = vocab.with_context(|| format!("the tokenizer of {}", container.path().display()))?;
        let tokenizer = Tokenizer::new(vocab)?;
        let ((context, all), trained) = (sizes(&tokenizer, container.config())?, container.config().context);
        let options = self.options(all);
        self.check_context(&container, context)?;
        if context > trained {
            tell!(
                "note: the model was made for a context of {trained} tokens, and may write worse behind them: \
                 there is room for {context}"
            );
        }
        // There is nothing to show before the total is known.
        let mut bar = None;
        let engine = Engine::with_tokenizer(container, tokenizer, &options, &mut |done, total| {
            bar.get_or_insert_with(|| byte_bar(total, "opening")).set_position(done);
            unless_stopped()
        });
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        Ok(engine?)
    }

    /// A context that is larger than all the memory would be filled until the system kills the program. (Where the usual one does not fit, the memory is
    /// too small, and the plan says so.)
    fn check_context(&self, container: &Container, context: usize) -> anyhow::Result<()> {
        let budget = Budget::of(self.paging.memory);
        let bytes = (State::kv_bytes(container.config(), self.kv) as u64).saturating_mul(context as u64);
        ensure!(
            context <= container.config().context || bytes <= budget.bytes,
            "a context of {context} tokens takes {} of keys and values, more than the {} that may be used ({}); ask for fewer tokens (-n, --context), \
             or for a smaller type (--kv q8_0)",
            size(bytes),
            size(budget.bytes),
            budget.set_by
        );
        Ok(())
    }

    /// The library's options, for sessions of `context` tokens.
    pub fn options(&self, context: usize) -> Options {
        let arithmetic = if self.float { Arithmetic::Float } else { Arithmetic::Integer };
        let PagingArgs { memory, paging, direct_io, look_ahead, readers } = self.paging.clone();
        let paging = Settings { mode: paging, memory, direct_io, look_ahead, readers, ..Settings::default() };
        Options {
            threads: self.threads,
            threads_batch: self.threads_batch,
            arithmetic,
            kernels: None,
            rope: self.rope,
            paging,
            context,
            kv: self.kv,
            gpu: self.gpu.settings(),
            batch: self.batch_tokens,
        }
    }
}

fn paging(name: &str) -> Result<Paging, String> {
    Paging::from_name(name).ok_or_else(|| "choose one of auto, mapped, streamed, plain".into())
}

fn direct_io(name: &str) -> Result<DirectIo, String> {
    DirectIo::from_name(name).ok_or_else(|| "choose one of auto, on, off".into())
}

/// Parses a type of the key-value cache.
pub fn kv_type(name: &str) -> Result<KvType, String> {
    KvType::from_name(name).ok_or_else(|| format!("choose {}", KvType::CHOICES))
}

/// Parses a rotary convention.
pub fn rope(name: &str) -> Result<RopePrecision, String> {
    RopePrecision::from_name(name).ok_or_else(|| "choose mixed, f32 or hfbf16".into())
}
