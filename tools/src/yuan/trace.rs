//! `yuan trace`: write down which experts a run uses.

use std::path::PathBuf;

use clap::Args;
use yuan::{session::Session, tokenizer::Special};
use yuan_tools::open::RunArgs;

use crate::{answer::answer, sampling::Sampling};

/// Write down which experts a run uses, for `yuan replay`
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan trace model.gguf -p 'Write a poem about autumn<sep>' -n 256 -o poem.trace
  yuan replay poem.trace")]
pub struct Trace {
    #[command(flatten)]
    run: RunArgs,
    /// The prompt
    #[arg(long, short, value_name = "TEXT")]
    prompt: String,
    /// Tokens to generate at most
    #[arg(long = "tokens", short = 'n', value_name = "N", default_value_t = 256)]
    most: usize,
    #[command(flatten)]
    sampling: Sampling,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

impl Trace {
    pub fn run(self) -> anyhow::Result<()> {
        let mut prompt = Vec::new();
        let engine = self.run.open_for(|tokenizer, _| {
            anyhow::ensure!(!self.prompt.is_empty(), "the prompt is empty; give some text");
            prompt = tokenizer.encode(&self.prompt, Special::Parse);
            Ok(prompt.len() + self.most)
        })?;
        let model = engine.model();
        anyhow::ensure!(
            model.pager().tiles() > 0,
            "the experts of this model are not in tiles: convert it with yuan-quant"
        );
        let mut session = Session::new(engine.clone(), prompt.len() + self.most, self.run.kv)?;
        model.pager().record();
        let (mut sampler, limits) = (self.sampling.sampler(&engine)?, self.sampling.limits(self.most));
        let answer = answer(&mut session, &prompt, &limits, &mut sampler, |_| Ok(()))?;
        let trace = model.recorded();
        trace.write(&self.output)?;
        let (requests, tokens) = (trace.requests.len(), prompt.len() + answer.tokens.len());
        eprintln!("{}: {requests} requests of {tokens} tokens", self.output.display());
        Ok(())
    }
}
