//! Lines from the user: edited on a terminal, with a history; else from standard input as they come.

use std::{
    env, fs,
    io::{self, BufRead, IsTerminal},
    path::PathBuf,
};

use anyhow::Context;
use rustyline::{Config, DefaultEditor, error::ReadlineError};
use yuan_tools::console;

/// Lines of the history that are kept.
const HISTORY: usize = 1000;

/// Where lines come from.
pub enum Input {
    /// A person at a terminal.
    Terminal { editor: Box<DefaultEditor>, history: Option<PathBuf> },
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
        let config = Config::builder().max_history_size(HISTORY)?.history_ignore_space(true).build();
        let mut editor = Box::new(DefaultEditor::with_config(config)?);
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

    /// The next line. A line that ends with a backslash goes on in the next one.
    pub fn line(&mut self) -> anyhow::Result<Line> {
        let mut whole = String::new();
        loop {
            let prompt = if whole.is_empty() { "> " } else { ". " };
            let line = match self.one_line(prompt)? {
                Line::Text(line) => line,
                Line::End if !whole.is_empty() => String::new(),
                other => return Ok(other),
            };
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

    fn one_line(&mut self, prompt: &str) -> anyhow::Result<Line> {
        let Self::Terminal { editor, .. } = self else {
            let mut line = String::new();
            let read = console::idle(|| io::stdin().lock().read_line(&mut line));
            return Ok(match read.context("standard input is not UTF-8 text")? {
                0 => Line::End,
                _ => Line::Text(line.trim_end_matches(['\n', '\r']).to_owned()),
            });
        };
        match console::idle(|| editor.readline(prompt)) {
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
