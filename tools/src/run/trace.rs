//! `yuan trace`: write down which experts a run uses.

use std::path::PathBuf;

use clap::Args;
use yuan::{files::check_output, gpu::Choice, session::Session, tokenizer::Special};
use yuan_tools::{numbers::Most, open::RunArgs, tell};

use crate::{answer::answer, sampling::Sampling};

/// Record which experts a run uses, for `yuan replay`
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
    /// The most tokens to generate (-1: what the context has room for)
    #[arg(long = "tokens", short = 'n', value_name = "N", default_value_t = Most::Tokens(256))]
    most: Most,
    #[command(flatten)]
    sampling: Sampling,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

impl Trace {
    pub fn run(mut self) -> anyhow::Result<()> {
        // A GPU keeps requests to itself.
        self.run.gpu.gpu = Choice::Off;
        check_output(&self.output, 0, &[self.run.model.path()?], "NAME.trace")?;
        let (mut prompt, mut context) = (Vec::new(), 0);
        let engine = self.run.open_for(|tokenizer, config| {
            anyhow::ensure!(!self.prompt.is_empty(), "the prompt is empty; give some text");
            prompt = tokenizer.encode(&self.prompt, Special::Parse);
            context = self.most.context(prompt.len(), config.context);
            Ok(context)
        })?;
        let model = engine.model();
        anyhow::ensure!(
            model.pager().tiles() > 0,
            "the experts of this model are not in tiles: convert it with yuan-quant"
        );
        let mut session = Session::new(engine.clone(), context, self.run.kv)?;
        model.pager().record();
        let most = self.most.within(prompt.len(), context);
        let (mut sampler, limits) = (self.sampling.sampler(&engine)?, self.sampling.limits(most));
        let answer = answer(&mut session, &prompt, &limits, &mut sampler, |_| Ok(()))?;
        let trace = model.recorded();
        trace.write(&self.output)?;
        let (requests, tokens) = (trace.requests.len(), prompt.len() + answer.tokens.len());
        tell!("{}: {requests} requests of {tokens} tokens", self.output.display());
        Ok(())
    }
}
