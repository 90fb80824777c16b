//! `yuan chat`: talk with a model.

mod complete;
mod conversation;
mod input;
mod remote;
mod settings;
mod talk;

use std::path::PathBuf;

use clap::Args;
use yuan::{
    Error,
    container::Container,
    grammar::Grammar,
    session::{Finish, Limits, Size},
    tokenizer::Tokenizer,
};
use yuan_tools::{
    console::{stopped, take_stop},
    draft::Drafting,
    numbers::{self, Most},
    open::RunArgs,
    pull::WhilePulling,
    say,
    say::{end_line, print},
    tell,
};

use crate::grammar::{Form, constraint};
use conversation::Conversation;
use input::{EDIT, Input, Line};
use remote::Remote;
use settings::Settings;
use talk::Talk;

const COMMANDS: &str = "\
/help            this list
/system TEXT     give the model instructions, from the next question on (no text: remove them)
/set             show the settings; /set temp 0.7 changes one (tokens, temp, top_k, top_p, min_p, seed, stop, ...)
/regenerate      ask the last question again
/edit TEXT       ask this in place of the last question (without a text, change it in the line)
/undo            take the last question back
/reset           forget the conversation, but keep the instructions
/save FILE       write the conversation and its state to a file
/load FILE       continue the conversation of a file
/stats           tokens, speed, experts
/bye             leave (or /exit, or Ctrl-D)
A line that ends with \\ continues in the next one, and a text between \"\"\" and \"\"\" has as many lines as it likes. //text asks \"/text\". \
Ctrl-C stops an answer, and Tab completes commands.";

/// Hold a conversation with a model, in its chat template
#[derive(Args)]
#[command(after_help = format!("\
Examples:
  yuan chat model.gguf --temp 0.7 --top-p 0.9
  yuan chat model.gguf --system '用中文回答。' --load yesterday.session
  yuan chat OWNER/NAME --while-pulling
  yuan chat --server http://127.0.0.1:8080
  yuan chat model.gguf --json-schema '{{\"type\": \"array\", \"items\": {{\"type\": \"string\"}}}}'
  printf '%s\\n' '写一首关于秋天的诗' '再写一首' | yuan chat model.gguf
Commands in place of a question:
{COMMANDS}"))]
pub struct Chat {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    pulling: WhilePulling,
    /// Talk with the model of a running server instead, such as http://127.0.0.1:8080; YUAN_API_KEY holds its key
    #[arg(long, value_name = "URL", conflicts_with = "while_pulling")]
    server: Option<String>,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    drafting: Drafting,
    #[command(flatten)]
    form: Form,
    /// Size of the context in tokens; 0 means what the model was made for
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = numbers::tokens)]
    context: usize,
    /// When the context is full, keep the first N tokens and drop the oldest questions, and the older half of an answer that
    /// fills it alone, instead of ending the conversation
    #[arg(long, value_name = "N", value_parser = numbers::tokens)]
    context_shift: Option<usize>,
    /// Instructions to the model, which stand before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Whether the model thinks before it answers, where it can: on or off; by default it decides
    #[arg(long, value_name = "ON|OFF", value_parser = numbers::switch)]
    thinking: Option<bool>,
    /// Continue a saved conversation
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    /// File that keeps the lines that were typed; by default in the user's state folder
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Print one JSON object for each answer instead of streaming text
    #[arg(long)]
    json: bool,
}

/// Whether the conversation goes on, and how.
enum Next {
    Go,
    /// With this question, which the user changes first.
    Edit(String),
    Exit,
}

/// Whether one can choose that this model thinks, and have an answer of a form.
pub fn check_thinking(tokenizer: &Tokenizer, thinking: Option<bool>, form: bool) -> anyhow::Result<()> {
    anyhow::ensure!(
        thinking.is_none() || tokenizer.has_thinking(),
        "this model has no reasoning to choose; leave --thinking out"
    );
    anyhow::ensure!(
        thinking != Some(true) || !form,
        "the form of an answer holds from its first token on, so there is no room for reasoning: give --thinking off, or ask a server, which has both"
    );
    Ok(())
}

impl Chat {
    pub fn run(self) -> anyhow::Result<()> {
        let grammar = self.form.grammar()?;
        if let Some(url) = &self.server {
            let remote = Remote::new(url, &self.settings.sampling, grammar.as_ref(), self.thinking)?;
            let greeting = format!("{} at {url}. /help lists the commands.", remote.model());
            return self.talk(remote, &greeting);
        }
        self.pulling.with(&self.run.model, |container| self.run_of(container, grammar.as_ref()))
    }

    fn run_of(&self, container: Container, grammar: Option<&Grammar>) -> anyhow::Result<()> {
        let mut context = 0;
        let engine = self.run.open_container(container, |_, config| {
            let saved =
                self.load.as_deref().map(Size::of).transpose()?.map_or(0, |size| size.room.max(size.tokens));
            context = if self.context == 0 { config.context } else { self.context }.max(saved);
            Ok((context, context))
        })?;
        let sampling = self.settings.sampling.clone();
        let constraint = constraint(&engine, grammar)?;
        let limits = Limits { shift: self.context_shift, constraint, ..sampling.limits(0) };
        check_thinking(engine.tokenizer(), self.thinking, grammar.is_some())?;
        let talk = Conversation::new(engine, context, self.run.kv, sampling, limits, self.thinking)?;
        self.talk(
            talk.drafted(self.drafting.clone())?,
            &format!("{context} tokens of context. /help lists the commands."),
        )
    }

    fn talk(&self, mut talk: impl Talk, greeting: &str) -> anyhow::Result<()> {
        if let Some(file) = &self.load {
            talk.load(file)?;
        }
        if let Some(text) = &self.system {
            talk.set_system(text);
        }
        let mut input = Input::new(self.history.clone())?;
        if input.is_terminal() {
            tell!("{greeting}");
        }
        let mut settings = self.settings.clone();
        let (mut failed, mut was_full, mut edited) = (0, false, None::<String>);
        loop {
            let came = match edited.take() {
                Some(question) => input.edited(&question)?,
                None => input.line()?,
            };
            let line = match came {
                Line::Text(line) => line,
                Line::Interrupted => {
                    tell!("Leave with /exit or Ctrl-D.");
                    continue;
                }
                Line::End => break,
            };
            was_full = match self.obey(&line, &mut talk, &mut settings) {
                Ok(Next::Go) => false,
                Ok(Next::Edit(_)) if !input.is_terminal() => {
                    failed += 1;
                    tell!("error: give the question: /edit TEXT");
                    false
                }
                Ok(Next::Edit(question)) => {
                    edited = Some(format!("{EDIT}{question}"));
                    false
                }
                Ok(Next::Exit) => break,
                Err(error) if error.downcast_ref::<std::io::Error>().is_some() => return Err(error),
                Err(error) => {
                    failed += 1;
                    end_line()?;
                    // What can be done about it was said already.
                    let is_full = matches!(error.downcast_ref(), Some(Error::ContextFull { .. }));
                    if is_full && was_full {
                        tell!("error: the conversation is still too long");
                    } else {
                        tell!("error: {}", yuan_tools::console::explain(&error));
                    }
                    is_full
                }
            };
            // Ctrl-C has stopped the answer; the next one begins anew. With nobody there to ask, it stops the program.
            if stopped() && input.is_terminal() {
                take_stop();
            } else if stopped() {
                return Ok(());
            }
        }
        anyhow::ensure!(failed == 0 || input.is_terminal(), "lines that failed: {failed}");
        Ok(())
    }

    fn obey(&self, line: &str, talk: &mut impl Talk, settings: &mut Settings) -> anyhow::Result<Next> {
        let line = line.trim();
        let question = match line.strip_prefix('/') {
            Some(text) if text.starts_with('/') => text,
            Some(command) => return self.command(command, talk, settings),
            None => line,
        };
        if !question.is_empty() {
            self.ask(question, talk, settings.most)?;
        }
        Ok(Next::Go)
    }

    /// Asks, and says what came of it. Whether there is an answer: a question whose reading is stopped is taken back.
    fn ask(&self, question: &str, talk: &mut impl Talk, most: Most) -> anyhow::Result<bool> {
        let room = if let Most::Tokens(n) = most { n } else { usize::MAX };
        let reply = talk.ask(question, room, &mut |text| if self.json { Ok(()) } else { print(&text) });
        let reply = match reply {
            Err(error) if matches!(error.downcast_ref(), Some(Error::Cancelled)) => {
                tell!("[stopped; the question is taken back]");
                return Ok(false);
            }
            reply => reply?,
        };
        if self.json {
            say!("{}", reply.json)?;
        } else {
            say!()?;
        }
        if reply.dropped > 0 {
            tell!("[the context was full: the oldest {} questions are dropped]", reply.dropped);
        }
        if reply.shifted {
            tell!("[the context was full: the older half of it was dropped while this was written]");
        }
        if reply.full {
            tell!(
                "[the context is full, and the answer ends here: /undo or /reset, or start again with a larger --context, or with \
                 --context-shift 0, which drops what is oldest]"
            );
        } else if reply.finish == Finish::Cancelled {
            tell!("[stopped]");
        } else if reply.finish == Finish::Length {
            tell!("[cut off by -n {most}]");
        }
        Ok(true)
    }

    /// Asks the last question again, or another in its place. Where that has no answer, what was there stays.
    fn again(&self, question: Option<&str>, talk: &mut impl Talk, settings: &Settings) -> anyhow::Result<()> {
        let Some(turn) = talk.undo() else {
            tell!("[there is no question to ask again]");
            return Ok(());
        };
        if question.is_none() && !settings.sampling.is_random() {
            tell!("[the best token is always chosen, so the answer is the same: /set temp 0.7 makes others]");
        }
        let answered = self.ask(question.unwrap_or(turn.question()), talk, settings.most);
        if !matches!(answered, Ok(true)) {
            talk.redo(turn);
        }
        answered.map(|_| ())
    }

    /// Does what stands behind the slash.
    fn command(&self, command: &str, talk: &mut impl Talk, settings: &mut Settings) -> anyhow::Result<Next> {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        let file = || {
            anyhow::ensure!(!rest.is_empty(), "give a file: /{name} FILE");
            Ok(at_home(rest))
        };
        match name {
            "help" | "?" => tell!("{COMMANDS}"),
            "system" => system(rest, talk),
            "set" => match rest.split_once(char::is_whitespace) {
                // As in ollama.
                Some(("system", text)) => system(text.trim(), talk),
                _ if rest.is_empty() => settings.lines().iter().for_each(|line| tell!("[{line}]")),
                _ => {
                    let changed = settings.with(rest)?;
                    talk.set(&changed.sampling)?;
                    *settings = changed;
                    tell!("[set]");
                }
            },
            "regenerate" | "regen" => self.again(None, talk, settings)?,
            "edit" if !rest.is_empty() => self.again(Some(rest), talk, settings)?,
            "edit" => match talk.undo() {
                Some(turn) => {
                    let question = turn.question().to_owned();
                    talk.redo(turn);
                    return Ok(Next::Edit(question));
                }
                None => tell!("[there is no question to change]"),
            },
            "undo" => match talk.undo() {
                Some(turn) => tell!("[taken back: {}]", turn.question()),
                None => tell!("[there is no question to take back]"),
            },
            "reset" | "clear" => {
                talk.reset()?;
                tell!("[a new conversation]");
            }
            "save" => {
                talk.save(&file()?)?;
                tell!("[saved: {rest}]");
            }
            "load" => {
                talk.load(&file()?)?;
                tell!("[loaded: {} questions]", talk.questions());
            }
            "stats" => talk.stats().iter().for_each(|line| tell!("[{line}]")),
            "bye" | "exit" | "quit" => return Ok(Next::Exit),
            _ => {
                anyhow::bail!("there is no command /{name}; /help lists them, and //{name} asks \"/{name}\"")
            }
        }
        Ok(Next::Go)
    }
}

fn system(text: &str, talk: &mut impl Talk) {
    talk.set_system(text);
    tell!("[{}]", if text.is_empty() { "no system text" } else { "the system text is set" });
}

/// The path, in which `~/` stands for the user's home, as a shell has it.
fn at_home(path: &str) -> PathBuf {
    let home = || etcetera::home_dir().ok();
    match path.strip_prefix("~/").and_then(|rest| Some(home()?.join(rest))) {
        Some(path) => path,
        None if path == "~" => home().unwrap_or_else(|| path.into()),
        None => path.into(),
    }
}
