//! Options of drafts.

use std::{fs, path::PathBuf};

use anyhow::Context;
use clap::Args;
use yuan::{
    session::{Drafts, Hint, Session},
    tokenizer::{Special, Tokenizer},
};

/// Whether the next tokens of an answer are drafted, and from what.
#[derive(Args, Clone, Debug, Default)]
pub struct Drafting {
    /// Guess the next tokens of an answer from what was said before, and check up to 3 of them beside each token: auto (where that is faster), off, or a number
    /// of tokens; the answer is the same
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = str::parse::<Drafts>)]
    pub draft: Drafts,
    /// Guess from this text, too, which the answer will probably quote
    #[arg(long, value_name = "FILE")]
    pub draft_from: Option<PathBuf>,
}

impl Drafting {
    /// The text to guess from; an empty one where no file was named.
    pub fn hint(&self, tokenizer: &Tokenizer) -> anyhow::Result<Hint> {
        let Some(file) = &self.draft_from else { return Ok(Hint::default()) };
        let text = fs::read_to_string(file);
        let text =
            text.with_context(|| format!("cannot read {}, the file of --draft-from", file.display()))?;
        Hint::new(&tokenizer.encode(&text, Special::AsText)).context("--draft-from")
    }

    /// Makes a session draft so.
    pub fn apply(&self, session: &mut Session) -> anyhow::Result<()> {
        session.set_drafts(self.draft);
        session.draft_from(self.hint(session.engine().tokenizer())?);
        Ok(())
    }
}
