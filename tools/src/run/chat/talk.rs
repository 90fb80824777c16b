//! A conversation, wherever its model runs.

use std::path::Path;

use serde_json::Value;
use yuan::session::Finish;

use crate::sampling::Sampling;

/// Shows a piece of an answer.
pub type Show<'a> = &'a mut dyn FnMut(&str) -> anyhow::Result<()>;

/// What is told of an answer.
pub struct Told {
    /// For programs.
    pub json: Value,
    pub finish: Finish,
    /// It ended because the context was full.
    pub full: bool,
    /// Questions that were dropped, with their answers, to make room for this one.
    pub dropped: usize,
    /// Tokens were dropped while it was written.
    pub shifted: bool,
}

/// A question that was taken back, with what was said to it: who said it, and what.
pub struct Turn(pub Vec<(String, String)>);

impl Turn {
    /// The question.
    pub fn question(&self) -> &str {
        self.0.first().map_or("", |(_, text)| text)
    }
}

/// What the commands of `yuan chat` do.
pub trait Talk {
    /// Asks `question` for up to `most` tokens, and streams the answer to `show`. A question that does not fit, or whose reading is stopped, is as if it
    /// had not been asked.
    fn ask(&mut self, question: &str, most: usize, show: Show<'_>) -> anyhow::Result<Told>;

    /// Sets the text that stands before all questions; none when it is empty.
    fn set_system(&mut self, text: &str);

    /// Forgets all questions and answers.
    fn reset(&mut self) -> anyhow::Result<()>;

    /// Takes the last question back, with its answer, and returns both.
    fn undo(&mut self) -> Option<Turn>;

    /// Puts back what was taken back last.
    fn redo(&mut self, turn: Turn);

    /// Chooses tokens so from the next answer on.
    fn set(&mut self, sampling: &Sampling) -> anyhow::Result<()>;

    /// Writes the conversation to a file.
    fn save(&mut self, file: &Path) -> anyhow::Result<()>;

    /// Goes on with the conversation of a file; when that fails, with this one.
    fn load(&mut self, file: &Path) -> anyhow::Result<()>;

    /// Number of questions.
    fn questions(&self) -> usize;

    /// Figures for people, a line each.
    fn stats(&self) -> Vec<String>;
}
