//! Lines from the user: edited on a terminal, with a history; else from standard input as they come.

use std::{
    env, fs,
    io::{self, BufRead, IsTerminal},
    path::PathBuf,
};

use anyhow::Context;
use rustyline::{CompletionType, Config, Editor, error::ReadlineError, history::FileHistory};
use yuan_tools::console;

use super::complete::Commands;

/// Lines of the history that are kept.
const HISTORY: usize = 1000;

/// The command that asks in place of the last question.
pub const EDIT: &str = "/edit ";

/// What a text of several lines stands between.
const QUOTES: &str = "\"\"\"";

/// What asks for more of a text.
const MORE: &str = ". ";

/// Where lines come from.
pub enum Input {
    /// A person at a terminal.
    Terminal { editor: Box<Editor<Commands, FileHistory>>, history: Option<PathBuf> },
    /// A file or another program.
    Pipe,
}

/// What came.
pub enum Line {
    Text(String),
    /// Ctrl-C at the prompt.
    Interrupted,
    End,
}

impl Input {
    /// A terminal where there is one on both sides; its history is in `history`, or else where the system keeps such.
    pub fn new(history: Option<PathBuf>) -> anyhow::Result<Self> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Ok(Self::Pipe);
        }
        let config = Config::builder().max_history_size(HISTORY)?.history_ignore_space(true);
        let config = config.completion_type(CompletionType::List).build();
        let mut editor = Box::new(Editor::with_config(config)?);
        editor.set_helper(Some(Commands::default()));
        let history = history.or_else(history_file);
        if let Some(file) = history.as_deref().filter(|f| f.exists())
            && let Err(e) = editor.load_history(file)
        {
            tracing::warn!("the history in {} cannot be read: {e}", file.display());
        }
        Ok(Self::Terminal { editor, history })
    }

    /// Whether a person is there to be prompted.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// The next line. A line that ends with a backslash goes on in the next one, and one that begins with `"""`, also behind a command, until the line that
    /// ends with them.
    pub fn line(&mut self) -> anyhow::Result<Line> {
        self.whole("")
    }

    /// The next line, which begins as `text` for a person to change.
    pub fn edited(&mut self, text: &str) -> anyhow::Result<Line> {
        self.whole(text)
    }

    fn whole(&mut self, begun: &str) -> anyhow::Result<Line> {
        let mut whole = String::new();
        loop {
            let (prompt, begun) = if whole.is_empty() { ("> ", begun) } else { (MORE, "") };
            let line = match self.one_line(prompt, begun)? {
                Line::Text(line) => line,
                Line::End if !whole.is_empty() => String::new(),
                other => return Ok(other),
            };
            if let Some((before, first)) = quoted(&line).filter(|_| whole.is_empty()) {
                let text = match self.up_to_quotes(first)? {
                    Line::Text(text) => text,
                    other => return Ok(other),
                };
                self.remember(&format!("{before}{QUOTES}{text}{QUOTES}"));
                // What stands between quotes is no command.
                let slash = if before.is_empty() && text.trim_start().starts_with('/') { "/" } else { "" };
                return Ok(Line::Text(format!("{before}{slash}{}", text.trim())));
            }
            match line.strip_suffix('\\') {
                Some(part) => whole.extend([part, "\n"]),
                None => {
                    whole.push_str(&line);
                    self.remember(&whole);
                    return Ok(Line::Text(whole));
                }
            }
        }
    }

    /// The text that begins with `first` and ends before the next quotes, or where nothing comes any more.
    fn up_to_quotes(&mut self, first: &str) -> anyhow::Result<Line> {
        let mut text = first.to_owned();
        loop {
            if let Some(whole) = text.trim_end().strip_suffix(QUOTES) {
                return Ok(Line::Text(whole.to_owned()));
            }
            match self.one_line(MORE, "")? {
                Line::Text(line) => text.extend(["\n", &line]),
                Line::End => return Ok(Line::Text(text)),
                Line::Interrupted => return Ok(Line::Interrupted),
            }
        }
    }

    fn one_line(&mut self, prompt: &str, begun: &str) -> anyhow::Result<Line> {
        let Self::Terminal { editor, .. } = self else {
            let mut line = String::new();
            let read = console::idle(|| io::stdin().lock().read_line(&mut line));
            return Ok(match read.context("standard input is not UTF-8 text")? {
                0 => Line::End,
                _ => Line::Text(line.trim_end_matches(['\n', '\r']).to_owned()),
            });
        };
        match console::idle(|| editor.readline_with_initial(prompt, (begun, ""))) {
            Ok(line) => Ok(Line::Text(line)),
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(error) => Err(error).context("cannot read from the terminal"),
        }
    }

    fn remember(&mut self, line: &str) {
        let Self::Terminal { editor, history } = self else { return };
        if !matches!(editor.add_history_entry(line), Ok(true)) {
            return;
        }
        let Some(file) = history else { return };
        let folder = file.parent().map_or(Ok(()), fs::create_dir_all);
        if let Err(e) = folder.map_err(ReadlineError::from).and_then(|()| editor.append_history(file)) {
            tracing::warn!("the history cannot be kept in {}: {e}", file.display());
            *history = None;
        }
    }
}

/// What stands before the quotes, which is nothing or a command, and behind them.
fn quoted(line: &str) -> Option<(&str, &str)> {
    let (before, first) = line.split_once(QUOTES)?;
    let is_command = before.starts_with('/') && !before.starts_with("//") && before.ends_with(' ');
    (before.trim().is_empty() || is_command).then(|| (before.trim_start(), first))
}

/// `$XDG_STATE_HOME/yuan/history`, or the like.
fn history_file() -> Option<PathBuf> {
    let named = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    // Some shells of Windows have a HOME, but programs there keep what is theirs elsewhere.
    let local = || named("LOCALAPPDATA").filter(|_| cfg!(windows));
    named("XDG_STATE_HOME")
        .or_else(local)
        .or_else(|| named("HOME").map(|home| home.join(".local/state")))
        .map(|folder| folder.join("yuan/history"))
}
