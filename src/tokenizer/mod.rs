//! Text to ids and back, as `LlamaTokenizer` does it: byte-pair encoding by the scores of SentencePiece, with bytes for
//! characters that are no piece.
//!
//! A text begins with one U+2581 (the dummy prefix) and has U+2581 for every space; nothing else is normalized. With
//! [`Special::Parse`] it is first cut at the special strings, and every part between them is a text of its own.

mod chat;
mod merge;
mod message;
mod namespace;
mod special;
mod stream;
mod template;

use std::collections::HashSet;

use crate::{
    error::{Error, Result},
    vocab::{Piece, PieceKind, Vocab},
};
use merge::Merges;
use special::{Part, Specials};
use template::Asks;

pub use message::{Call, Chat, Conversation, Message};
pub use stream::Stream;

/// What stands for a space in pieces.
const SPACE: char = '\u{2581}';
const SPACE_TEXT: &str = "\u{2581}";

/// Whether special strings in a text become special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// They are text like any other: for what a user wrote.
    AsText,
    /// They become special tokens, as in `LlamaTokenizer`: for what a program composed.
    Parse,
}

/// What becomes of a character that is no piece.
#[derive(Clone, Debug)]
enum Fallback {
    /// The id of every byte; its UTF-8 bytes are encoded.
    Bytes(Box<[u32; 256]>),
    /// The unknown piece; a run of such characters is one of it.
    Unknown(u32),
}

/// A vocabulary that encodes and decodes.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    merges: Merges,
    specials: Specials,
    symbols: Specials,
    fallback: Fallback,
    /// What the chat template asks for.
    asks: Asks,
}

impl Tokenizer {
    /// A tokenizer of this vocabulary. Of pieces with the same text the first counts.
    ///
    /// # Errors
    /// [`Error::Argument`] when the vocabulary is empty, has neither all 256 bytes nor an unknown piece, a score that is not a
    /// number, a byte piece that is not named like `<0xAB>`, or a special id that it does not contain.
    pub fn new(vocab: Vocab) -> Result<Self> {
        let unusable = |why: String| {
            Error::Argument(format!("the vocabulary is unusable: {why}; convert the model again"))
        };
        let pieces = &vocab.pieces;
        if pieces.is_empty() {
            return Err(unusable("it is empty".into()));
        }
        let count = u32::try_from(pieces.len())
            .map_err(|_| unusable(format!("{} pieces are too many", pieces.len())))?;
        if let Some(id) = pieces.iter().position(|p| p.score.is_nan()) {
            return Err(unusable(format!("the score of piece {id} is not a number")));
        }
        let special: HashSet<u32> = vocab.marked().collect();
        if let Some(id) = special.iter().find(|id| **id >= count) {
            return Err(unusable(format!("it has no piece {id}, which is to be special")));
        }
        let fallback = fallback(pieces).map_err(unusable)?;
        // What is special must not come out of ordinary text, whatever the merges are.
        let merges = Merges::new(pieces, |id| !special.contains(&id));
        let (specials, symbols) = (Specials::new(&vocab.special), Specials::new(&vocab.symbols));
        let asks = vocab.chat_template.as_deref().map_or_else(Asks::default, Asks::of);
        Ok(Self { vocab, merges, specials, symbols, fallback, asks })
    }

    /// The ids of `text`, without any mark at its beginning or end. O(n log n) in the length of the text.
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        let mut ids = Vec::new();
        match special {
            Special::AsText => self.encode_part(text, &mut ids),
            Special::Parse => self.specials.cut(text).for_each(|part| match part {
                Part::Text(text) => self.encode_part(text, &mut ids),
                Part::Special(id) => ids.push(id),
            }),
        }
        ids
    }

    /// Appends the ids of a text without special strings. It is cut at symbols, and every part between them is a text of its own.
    fn encode_part(&self, text: &str, ids: &mut Vec<u32>) {
        self.symbols.cut(text).for_each(|part| match part {
            Part::Text(text) => self.encode_text(text, ids),
            Part::Special(id) => ids.push(id),
        });
    }

    fn encode_text(&self, text: &str, ids: &mut Vec<u32>) {
        let mut spaced = String::with_capacity(text.len() + text.len() / 4 + SPACE.len_utf8());
        spaced.push(SPACE);
        spaced.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        self.encode_pieces(&spaced, ids);
    }

    /// The ids of bytes in the middle of a text: no dummy prefix stands before them, and they decode to themselves behind any token of a text. What
    /// is no UTF-8 becomes byte pieces, and so does U+2581, which would be a space otherwise. Needs a vocabulary [with bytes](Self::has_bytes).
    pub fn encode_inside(&self, bytes: &[u8]) -> Vec<u32> {
        let mut ids = Vec::new();
        let Fallback::Bytes(single) = &self.fallback else { return ids };
        let by_bytes =
            |bytes: &[u8], ids: &mut Vec<u32>| ids.extend(bytes.iter().map(|b| single[usize::from(*b)]));
        for chunk in bytes.utf8_chunks() {
            for (i, part) in chunk.valid().split(SPACE).enumerate() {
                if i > 0 {
                    by_bytes(SPACE.encode_utf8(&mut [0; 4]).as_bytes(), &mut ids);
                }
                self.encode_pieces(&part.replace(' ', SPACE_TEXT), &mut ids);
            }
            by_bytes(chunk.invalid(), &mut ids);
        }
        ids
    }

    /// Whether there is a piece for every byte, so that every text has tokens.
    pub fn has_bytes(&self) -> bool {
        matches!(self.fallback, Fallback::Bytes(_))
    }

    /// Appends the ids of a text with U+2581 for its spaces.
    fn encode_pieces(&self, spaced: &str, ids: &mut Vec<u32>) {
        let mut after_unknown = false;
        self.merges.encode(spaced, |id, text| {
            match (id, &self.fallback) {
                (Some(id), _) => ids.push(id),
                (None, Fallback::Bytes(bytes)) => ids.extend(text.bytes().map(|b| bytes[usize::from(b)])),
                (None, Fallback::Unknown(_)) if after_unknown => {}
                (None, Fallback::Unknown(id)) => ids.push(*id),
            }
            after_unknown = id.is_none();
        });
    }

    /// The text of `ids`: the inverse of [`encode`](Self::encode). One dummy prefix is dropped at the beginning and after every
    /// special token, special tokens are shown as their strings, and every byte that is no part of a UTF-8 character becomes one
    /// U+FFFD. Ids outside the vocabulary are nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        let (mut text, mut stream) = (String::new(), self.stream());
        ids.iter().for_each(|&id| stream.push_to(id, &mut text));
        stream.finish_to(&mut text);
        text
    }

    /// The text of the ids that are not special, as if there were no others: a dummy prefix is dropped at the beginning only. So
    /// has it `skip_special_tokens` of `LlamaTokenizer`, which drops a second space at the beginning beside.
    pub fn decode_skipping_special(&self, ids: &[u32]) -> String {
        let ordinary: Vec<u32> = ids.iter().copied().filter(|&id| self.special_text(id).is_none()).collect();
        self.decode(&ordinary)
    }

    /// A decoder that takes one id at a time.
    pub fn stream(&self) -> Stream<'_> {
        Stream::new(self)
    }

    /// The piece as the vocabulary writes it; empty for an id outside it.
    pub fn piece(&self, id: u32) -> &str {
        self.get(id).map_or("", |p| p.text.as_str())
    }

    /// The bytes of one token by itself: with a space at its beginning where it begins a word, the string of a special token, and none of a
    /// control piece or an id outside the vocabulary.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        if let Some(special) = self.special_text(id) {
            return special.as_bytes().to_vec();
        }
        let Some(piece) = self.get(id) else { return Vec::new() };
        match piece.kind {
            PieceKind::Control => Vec::new(),
            PieceKind::Byte => byte(&piece.text).into_iter().collect(),
            _ => piece.text.replace(SPACE, " ").into_bytes(),
        }
    }

    /// The string of a token that was cut out of a text.
    fn special_text(&self, id: u32) -> Option<&str> {
        self.specials.text(id).or_else(|| self.symbols.text(id))
    }

    fn get(&self, id: u32) -> Option<&Piece> {
        self.vocab.pieces.get(usize::try_from(id).ok()?)
    }

    /// End of document, if there is such a token: it ends an answer.
    pub fn eod(&self) -> Option<u32> {
        self.vocab.eod
    }

    /// The tokens that end an answer.
    pub fn ends(&self) -> impl Iterator<Item = u32> {
        self.vocab.eod.into_iter().chain(self.vocab.end)
    }

    /// End of prompt, if there is such a token.
    pub fn sep(&self) -> Option<u32> {
        self.vocab.sep
    }

    /// Number of pieces, special ones included.
    pub fn len(&self) -> usize {
        self.vocab.pieces.len()
    }

    /// Whether there are no pieces: never, but for the sake of `len`.
    pub fn is_empty(&self) -> bool {
        self.vocab.pieces.is_empty()
    }

    /// The vocabulary.
    pub fn vocab(&self) -> &Vocab {
        &self.vocab
    }
}

/// The ids of the 256 byte pieces, or else the unknown piece.
fn fallback(pieces: &[Piece]) -> Result<Fallback, String> {
    let mut bytes = [None; 256];
    for (piece, id) in pieces.iter().zip(0..).filter(|(p, _)| p.kind == PieceKind::Byte) {
        let byte =
            byte(&piece.text).ok_or_else(|| format!("the byte piece {id} is named {:?}", piece.text))?;
        bytes[usize::from(byte)].get_or_insert(id);
    }
    if let Some(bytes) = bytes.into_iter().collect::<Option<Vec<u32>>>().and_then(|b| b.try_into().ok()) {
        return Ok(Fallback::Bytes(bytes));
    }
    let unknown = pieces.iter().zip(0..).find(|(p, _)| p.kind == PieceKind::Unknown);
    let (_, id) = unknown.ok_or("it has neither all 256 bytes nor an unknown piece")?;
    Ok(Fallback::Unknown(id))
}

/// The byte of a piece like `<0xAB>`.
fn byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    hex.then(|| u8::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, score: f32, kind: PieceKind) -> Piece {
        Piece { text: text.into(), score, kind }
    }

    fn unknown() -> Piece {
        piece("<unk>", 0.0, PieceKind::Unknown)
    }

    #[test]
    fn unusable_vocabularies_are_errors() {
        let fails =
            |pieces: &[Piece]| Tokenizer::new(Vocab::from_pieces(pieces.to_vec())).unwrap_err().to_string();
        assert!(fails(&[]).contains("empty"));
        assert!(
            fails(&[piece("a", 0.0, PieceKind::Normal)])
                .contains("neither all 256 bytes nor an unknown piece")
        );
        assert!(
            fails(&[unknown(), piece("a", f32::NAN, PieceKind::Normal)]).contains("piece 1 is not a number")
        );
        assert!(fails(&[unknown(), piece("<0x1>", 0.0, PieceKind::Byte)]).contains("<0x1>"));
        let outside = Vocab { eod: Some(7), ..Vocab::from_pieces(vec![unknown()]) };
        assert!(Tokenizer::new(outside).unwrap_err().to_string().contains("no piece 7"));
    }

    #[test]
    fn a_run_of_unknown_characters_without_bytes_is_one_unknown_piece() {
        let normal = |text| piece(text, 0.0, PieceKind::Normal);
        let pieces = vec![unknown(), normal("a"), normal("a"), normal("\u{2581}")];
        let tokenizer = Tokenizer::new(Vocab::from_pieces(pieces)).unwrap();
        assert_eq!(
            tokenizer.encode("xya z", Special::AsText),
            [3, 0, 1, 3, 0],
            "and of equal texts the first counts"
        );
    }

    #[test]
    fn special_strings_stay_text_though_merges_lead_to_them() {
        let texts = ["\u{2581}", "<", "s", ">", "<s", "e", "p", "ep", "ep>", "<sep>"];
        let pieces = texts.iter().map(|t| piece(t, t.len() as f32, PieceKind::Normal)).chain([unknown()]);
        let tokenizer = Tokenizer::new(Vocab::from_pieces(pieces.collect())).unwrap();
        assert_eq!(tokenizer.encode("<sep>", Special::AsText), [0, 4, 8]);
        assert_eq!(tokenizer.encode("<sep>", Special::Parse), [9]);
        assert_eq!(tokenizer.encode("a<sep>", Special::Parse), [0, 10, 9]);
    }
}
