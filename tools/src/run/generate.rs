//! `yuan generate`: continue a prompt.

use std::{fs, io::Read, path::PathBuf, sync::Arc};

use anyhow::Context;
use clap::Args;
use yuan::{
    container::Container,
    files::check_output,
    grammar::Grammar,
    model::State,
    sampler::Sampler,
    session::{Engine, Finish, Limits, Restored, Session, Size},
    tokenizer::{Chat, Message, Special},
};
use yuan_tools::{
    draft::Drafting,
    numbers::{self, Most},
    open::RunArgs,
    pull::WhilePulling,
    say,
    say::print,
    stats, tell,
};

use crate::{
    answer::{Answer, answer, to_json},
    chat::check_thinking,
    grammar::{Form, constraint},
    sampling::Sampling,
};

/// Continue a prompt
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan generate model.gguf 'Write a poem about autumn<sep>' -n 200
  yuan generate model.gguf --chat -p '写一首关于秋天的诗' --temp 0.6 --top-p 0.95 --seed 7
  yuan generate model.gguf --file prompt.txt --json --stop 'THE END'
  yuan generate model.gguf -p 'In the beginning' --memory 8G --stats
  yuan generate model.gguf --chat -p 'Name a poet of the Tang' --json-schema poet.json
  yuan generate model.gguf --chat -p '李白是诗人吗？' --regex '(是|不是)'
  yuan generate model.gguf --file edit.txt --draft-from old.rs
  yuan generate model.gguf -p 'A long story:' -n 500 --save story.session
  yuan generate model.gguf --load story.session -n 500
  yuan generate OWNER/NAME --while-pulling --chat -p '写一首关于秋天的诗'
A question ends with <sep> (--chat adds it); the answer ends at <eod>. Special strings in the prompt become special \
            tokens unless --no-special or --chat is given.")]
pub struct Generate {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    pulling: WhilePulling,
    /// The prompt, behind the model
    #[arg(value_name = "PROMPT", conflicts_with_all = ["prompt", "file"])]
    text: Option<String>,
    /// The prompt
    #[arg(long, short, value_name = "TEXT", required_unless_present_any = ["text", "file", "load"])]
    prompt: Option<String>,
    /// Read the prompt from a file (- for standard input)
    #[arg(long, short, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// The most tokens to generate (-1: what the context has room for)
    #[arg(long = "tokens", short = 'n', value_name = "N", default_value_t = Most::Tokens(256))]
    most: Most,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    drafting: Drafting,
    #[command(flatten)]
    form: Form,
    /// Size of the context in tokens (0: what the model was made for); by default the prompt's plus -n
    #[arg(long, value_name = "N", value_parser = numbers::tokens)]
    context: Option<usize>,
    /// When the context is full, keep the first N tokens and drop the older half of the others, instead of ending with an error
    #[arg(long, value_name = "N", value_parser = numbers::tokens)]
    context_shift: Option<usize>,
    /// Treat the prompt as a question: put it into the model's chat template
    #[arg(long)]
    chat: bool,
    /// Whether the model thinks before it answers, where it can: on or off; by default it decides
    #[arg(long, value_name = "ON|OFF", requires = "chat", value_parser = numbers::switch)]
    thinking: Option<bool>,
    /// Treat special strings in the prompt, such as <sep>, as ordinary text
    #[arg(long, conflicts_with = "chat")]
    no_special: bool,
    /// Continue a saved session, with its random choices, and with its sampling settings unless others are given
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    /// Save the session at the end, so that --load can continue it
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Report on stderr how experts came into memory, and how long tokens took
    #[arg(long)]
    stats: bool,
    /// Print one JSON object at the end instead of streaming text
    #[arg(long)]
    json: bool,
}

impl Generate {
    pub fn run(self) -> anyhow::Result<()> {
        let text = match (self.prompt.as_ref().or(self.text.as_ref()), &self.file) {
            (Some(text), _) => text.clone(),
            (None, Some(file)) => read(file)?,
            (None, None) => String::new(),
        };
        let grammar = self.form.grammar()?;
        self.pulling.with(&self.run.model, |container| self.run_of(container, text, grammar.as_ref()))
    }

    fn run_of(&self, container: Container, text: String, grammar: Option<&Grammar>) -> anyhow::Result<()> {
        let model = container.path().to_owned();
        let (mut prompt, mut context) = (Vec::new(), 0);
        let engine = self.run.open_container(container, |tokenizer, config| {
            anyhow::ensure!(!text.is_empty() || self.load.is_some(), "the prompt is empty; give some text");
            prompt = match (self.chat, self.no_special) {
                (true, _) => {
                    check_thinking(tokenizer, self.thinking, grammar.is_some())?;
                    let messages = [Message::new("user", text)];
                    let thinking = self.thinking;
                    let chat = Chat {
                        messages: &messages,
                        add_generation_prompt: true,
                        thinking,
                        ..Chat::default()
                    };
                    tokenizer.prompt(&chat)?
                }
                (false, true) => tokenizer.encode(&text, Special::AsText),
                (false, false) => tokenizer.encode(&text, Special::Parse),
            };
            let before = self.load.as_deref().map(Size::of).transpose()?.map_or(0, |size| size.tokens);
            context = match self.context {
                Some(0) => config.context,
                Some(tokens) => tokens,
                None => self.most.context(before + prompt.len(), config.context),
            };
            if let Some(file) = &self.save {
                // What is known of the session already: the state of its prompt.
                let bytes = State::kv_bytes(config, self.run.kv) * (before + prompt.len());
                let inputs: Vec<_> = [model].into_iter().chain(self.file.clone()).collect();
                check_output(file, bytes as u64, &inputs, "NAME.session")?;
            }
            Ok((context, context))
        })?;
        let constraint = constraint(&engine, grammar)?;
        let (mut session, mut sampler) = self.begin(&engine, context)?;
        self.drafting.apply(&mut session)?;
        let timeline = [session.tokens(), &prompt].concat();
        // A context that loses its oldest tokens has room for ever.
        let most = match self.context_shift {
            Some(_) if self.most == Most::Room => usize::MAX,
            _ => self.most.within(timeline.len(), context),
        };
        let limits = Limits { shift: self.context_shift, constraint, ..self.sampling.limits(most) };
        let json = self.json;
        let answer =
            answer(
                &mut session,
                &timeline,
                &limits,
                &mut sampler,
                |text| {
                    if json { Ok(()) } else { print(&text) }
                },
            );
        // Also what was broken off, or did not fit: it can go on from there.
        let saved = self.save.as_deref().filter(|_| session.position() > 0);
        let saved = saved.map_or(Ok(()), |file| session.save(file, Some(&sampler)));
        let answer = answer?;
        if json {
            say!("{}", to_json(&answer, &prompt, engine.model()))?;
        } else {
            self.print_figures(&answer)?;
        }
        if self.stats && !json {
            let laps = [("prefill", &answer.laps[0]), ("decode", &answer.laps[1])];
            tell!("{}", stats::describe(engine.model(), &laps, &answer.times));
            tell!("{}", stats::describe_loop(&engine.counts()));
        }
        Ok(saved?)
    }

    /// The session and the sampler to begin with: new ones, or those of a file.
    fn begin(&self, engine: &Arc<Engine>, context: usize) -> anyhow::Result<(Session, Sampler)> {
        let Some(file) = &self.load else {
            return Ok((Session::new(engine.clone(), context, self.run.kv)?, self.sampling.sampler(engine)?));
        };
        let Restored { mut session, sampler, hot } = Session::restore(engine.clone(), file, Some(context))?;
        engine.warm(&hot);
        // It is no conversation any more.
        session.note.clear();
        Ok((session, self.sampling.resume(engine, sampler)?))
    }

    fn print_figures(&self, answer: &Answer) -> anyhow::Result<()> {
        say!()?;
        let (prefill, decode) = answer.rates();
        let reused = match answer.synced.reused {
            0 => String::new(),
            n => format!("{n} tokens reused, "),
        };
        tell!(
            "{reused}{} tokens of prompt at {prefill:.1} tok/s, {} generated at {decode:.1} tok/s{}{}{}",
            answer.synced.computed,
            answer.tokens.len(),
            stats::describe_drafts(answer.drafted),
            match answer.finish {
                Finish::Stop => "",
                Finish::StopText(_) => " (stopped by --stop)",
                Finish::Length if self.most == Most::Room => " (the context is full)",
                Finish::Length => " (stopped by -n)",
                Finish::Cancelled => " (stopped by Ctrl-C)",
            },
            answer.seed.map_or_else(String::new, |seed| format!(", seed {seed}"))
        );
        Ok(())
    }
}

fn read(file: &PathBuf) -> anyhow::Result<String> {
    if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input is not UTF-8 text")?;
        return Ok(text);
    }
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}
