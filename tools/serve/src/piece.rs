//! Texts and scores side by side: what a sequence says reaches the client as pieces, in which the scores of a text come with it and not before.

use yuan::{
    session::{Score, Token},
    tokenizer::{Stream, Tokenizer},
};

/// Tokens of the prompt that decide how the answer's text begins: more than the bytes of one character.
const BEFORE: usize = 8;

/// A part of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// The tokens of it, where scores were asked for.
    pub tokens: Vec<Scored>,
}

/// A token with its score.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// How likely it was.
    pub score: Score,
    /// It ended the answer.
    pub ends: bool,
    /// Bytes of the answer before it.
    begin: usize,
    /// Characters of the answer before it.
    pub offset: usize,
}

/// A text that goes on behind a prompt.
fn behind<'t>(tokenizer: &'t Tokenizer, prompt: &[u32]) -> Stream<'t> {
    let mut stream = tokenizer.stream();
    prompt[prompt.len().saturating_sub(BEFORE)..].iter().for_each(|&id| drop(stream.push(id)));
    stream
}

/// Holds scores back until their text is shown: a part of a character, or what may become a stop text, is not.
pub struct Pieces<'t> {
    stream: Stream<'t>,
    /// Bytes and characters of all tokens.
    bytes: usize,
    chars: usize,
    /// Bytes that were shown.
    shown: usize,
    held: Vec<Scored>,
}

impl<'t> Pieces<'t> {
    /// Of an answer to this prompt.
    pub fn new(tokenizer: &'t Tokenizer, prompt: &[u32]) -> Self {
        Self { stream: behind(tokenizer, prompt), bytes: 0, chars: 0, shown: 0, held: Vec::new() }
    }

    /// What can be shown once a session has told of this token and this text.
    pub fn push(&mut self, token: Option<Token>, text: &str) -> Piece {
        if let Some(Token { id, ends, score, .. }) = token {
            if let Some(score) = score {
                self.held.push(Scored { score, ends, begin: self.bytes, offset: self.chars });
            }
            if !ends {
                let text = self.stream.push(id);
                self.bytes += text.len();
                self.chars += text.chars().count();
            }
        }
        self.shown += text.len();
        let ready = self.held.iter().take_while(|t| t.begin < self.shown).count();
        Piece { text: text.to_owned(), tokens: self.held.drain(..ready).collect() }
    }

    /// What is left at the end. Tokens of a stop text are no part of the answer.
    pub fn finish(self, stop_text: bool) -> Piece {
        Piece { text: String::new(), tokens: if stop_text { Vec::new() } else { self.held } }
    }
}
