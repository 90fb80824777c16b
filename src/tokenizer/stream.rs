//! Ids to text, one at a time.

use std::{iter::repeat_n, str};

use super::{SPACE, Tokenizer, byte};
use crate::vocab::PieceKind;

/// A decoder that holds bytes back until they are a character.
#[derive(Clone, Debug)]
pub struct Stream<'t> {
    tokenizer: &'t Tokenizer,
    /// The beginning of one character, at most three bytes.
    bytes: Vec<u8>,
    /// Whether a text begins here, so that a dummy prefix would be dropped.
    start: bool,
}

impl<'t> Stream<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, bytes: Vec::new(), start: true }
    }

    /// Takes an id, and returns the text to show now. All such texts and that of [`finish`](Self::finish) together are
    /// [`Tokenizer::decode`] of the ids.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.push_to(id, &mut text);
        text
    }

    /// Returns what is left: one U+FFFD for every byte of an incomplete character.
    pub fn finish(mut self) -> String {
        let mut text = String::new();
        self.finish_to(&mut text);
        text
    }

    /// Whether a text begins here: the space at the beginning of the next token is then its dummy prefix, and is not shown.
    pub fn at_start(&self) -> bool {
        self.start
    }

    pub(super) fn push_to(&mut self, id: u32, text: &mut String) {
        if let Some(special) = self.tokenizer.special_text(id) {
            self.finish_to(text);
            text.push_str(special);
            // Behind a special token a new text begins, with its own dummy prefix.
            self.start = true;
            return;
        }
        let Some(piece) = self.tokenizer.get(id) else {
            self.finish_to(text);
            return;
        };
        match (piece.kind, byte(&piece.text)) {
            (PieceKind::Control, _) => self.finish_to(text),
            (PieceKind::Byte, Some(byte)) => self.push_byte(byte, text),
            _ => self.push_piece(&piece.text, text),
        }
    }

    fn push_piece(&mut self, piece: &str, text: &mut String) {
        self.finish_to(text);
        let shown = if self.start { piece.strip_prefix(SPACE).unwrap_or(piece) } else { piece };
        self.start &= piece.is_empty();
        text.extend(shown.chars().map(|c| if c == SPACE { ' ' } else { c }));
    }

    fn push_byte(&mut self, byte: u8, text: &mut String) {
        self.start = false;
        self.bytes.push(byte);
        loop {
            match str::from_utf8(&self.bytes) {
                Ok(complete) => {
                    text.push_str(complete);
                    self.bytes.clear();
                    return;
                }
                Err(error) => match error.error_len() {
                    // Only the last byte can begin another character: the ones before it continue what is broken now.
                    Some(invalid) => {
                        self.bytes.drain(..invalid);
                        text.extend(repeat_n(char::REPLACEMENT_CHARACTER, invalid));
                    }
                    None => return,
                },
            }
        }
    }

    pub(super) fn finish_to(&mut self, text: &mut String) {
        text.extend(repeat_n(char::REPLACEMENT_CHARACTER, self.bytes.len()));
        self.bytes.clear();
    }
}
