//! `yuan serve`: a model over HTTP.

use std::path::PathBuf;

use clap::Args;
use yuan::{config::ModelConfig, limits::MOST_CONTEXT, machine::budget::Budget, model::State};
use yuan_serve::{Bound, Options, Served};
use yuan_tools::{
    console::{self, Log, take_stop},
    draft::Drafting,
    models::name_of,
    numbers,
    open::RunArgs,
    tell,
};

use crate::demo;

/// Serve a model over HTTP, for clients of OpenAI, Anthropic, ollama and llama-server
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan serve --demo
  yuan serve model.gguf --sequences 16 --context 4096
  yuan serve m32
  yuan serve --config serve.toml
  yuan serve model.gguf --host 0.0.0.0 --port 80 --api-key-file keys.txt --memory 8G
  curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"写一首关于秋天的诗\"}]}'
A browser finds a page to chat on at http://127.0.0.1:8080/. Clients of OpenAI's interface take http://127.0.0.1:8080/v1 as their base URL, those of Anthropic's and ollama's http://127.0.0.1:8080, and any key unless there are keys. \
            /openapi.json lists all addresses. An answer does not depend \
            on who else is asking: the same seed gives the same text.
Every option can stand in a file (--config) and in the environment: YUAN_GPU_MEMORY for --gpu-memory.
The first Ctrl-C or SIGTERM lets running requests end (--drain), the second stops at once.")]
pub struct Serve {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    drafting: Drafting,
    /// Serve the demo model that comes with the source
    #[arg(long)]
    demo: bool,
    /// Tokens of one sequence, prompt and answer together (0: what the model was made for)
    #[arg(long, value_name = "N", env = "YUAN_CONTEXT", default_value_t = 0, hide_default_value = true, value_parser = numbers::tokens)]
    context: usize,
    /// Write a line for each request and each answer to stderr, without what is said in them; json is for programs. A request has the name of its header
    /// X-Request-Id, or one of the server's
    #[arg(long, value_name = "FORM", env = "YUAN_LOG")]
    log: Option<Log>,
    /// File with options by their names, such as `sequences = 16`; the command line and the environment go before it
    #[arg(long, value_name = "FILE", env = "YUAN_CONFIG")]
    config: Option<PathBuf>,
    /// Print all options as they are, in the form of such a file, and end
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    server: Options,
}

impl Serve {
    /// How requests are logged, if they are.
    pub fn log(&self) -> Option<Log> {
        self.log
    }

    pub fn run(mut self) -> anyhow::Result<()> {
        // First of all, so that whoever watches sees the server while its model is loaded.
        let bound = Bound::new(self.server.clone())?;
        if self.demo {
            self.run.model = demo::container()?.into();
        }
        let stopper = bound.stopper();
        console::on_stop(move || stopper.stop());
        let (address, sequences) = (bound.address(), self.server.sequences);
        bound.run(
            move || self.load(),
            move |served| {
                tell!(
                    "{} is served at http://{address}: {sequences} sequences at a time, {} tokens each; OpenAI's clients take http://{address}/v1",
                    served.name,
                    served.context
                );
            },
        )?;
        // It was asked to stop, and has.
        take_stop();
        Ok(())
    }

    fn load(&self) -> anyhow::Result<Served> {
        let mut context = self.context;
        let engine = self.run.open_shared(|_, config| {
            if context == 0 {
                context = config.context;
            }
            Ok((context, self.all(context, config)))
        })?;
        let (name, hint) = (name_of(&self.run.model.path()?), self.drafting.hint(engine.tokenizer())?);
        Ok(Served { engine, name, context, kv: self.run.kv, drafts: self.drafting.draft, hint })
    }

    /// Tokens of all sequences that memory is planned for: of all that may run, where that is no more than a quarter of the budget, and of one in
    /// any case. Sequences take memory as they fill, so more of them may run when they are short.
    fn all(&self, context: usize, config: &ModelConfig) -> usize {
        let quarter = Budget::of(self.run.paging.memory).bytes / 4;
        let room = quarter / (State::kv_bytes(config, self.run.kv) as u64).max(1);
        let wanted = context.saturating_mul(usize::try_from(self.server.sequences).unwrap_or(usize::MAX));
        wanted.min(usize::try_from(room).unwrap_or(usize::MAX)).max(context).min(MOST_CONTEXT)
    }
}
