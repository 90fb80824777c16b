//! The tokens of a vocabulary as the words of a grammar.

use std::collections::HashSet;

use llguidance::toktrie::{TokRxInfo, TokTrie, TokenizerEnv};

use crate::{
    error::{Error, Result},
    tokenizer::Tokenizer,
    vocab::PieceKind,
};

/// Bytes of the longest token that a grammar can choose.
const LONGEST: usize = 512;
/// Bytes of all: what the library has numbers for.
const MOST: usize = 1 << 22;

/// A vocabulary, with two tokens behind its last that stand for no token: the end of the text, and a space.
pub(super) struct Env {
    tokenizer: Tokenizer,
    trie: TokTrie,
    /// Whether a text can begin with a piece that is a space: then it does, and the space is the dummy prefix.
    pub has_prefix: bool,
}

impl Env {
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let count = tokenizer.len();
        let vocab = tokenizer.vocab();
        let special: HashSet<u32> = vocab.marked().collect();
        let mut has_prefix = false;
        let mut words: Vec<Vec<u8>> = Vec::with_capacity(count + 2);
        for (id, piece) in (0..).zip(&vocab.pieces) {
            let text = tokenizer.bytes(id);
            words.push(match piece.kind {
                // What a grammar can only ask for by name.
                _ if special.contains(&id) => marked(piece.text.as_bytes()),
                PieceKind::Control | PieceKind::Unknown | PieceKind::Unused => marked(piece.text.as_bytes()),
                // The first is no UTF-8, and marks special tokens here; the second would be shown where a dummy prefix is not.
                PieceKind::Byte if matches!(text[..], [0xff] | [b' ']) => Vec::new(),
                _ if text.len() > LONGEST => Vec::new(),
                _ => {
                    has_prefix |= text == b" ";
                    text
                }
            });
        }
        words.push(marked(b"<end of the text>"));
        words.push(b" ".to_vec());
        let bytes: usize = words.iter().map(Vec::len).sum();
        let info = u32::try_from(words.len()).ok().filter(|_| bytes < MOST);
        let info = info.map(|count| TokRxInfo::new(count, count - 2)).ok_or_else(|| {
            Error::Argument(format!(
                "a vocabulary of {count} pieces with {bytes} bytes is too large for grammars"
            ))
        })?;
        Ok(Self { tokenizer: tokenizer.clone(), trie: TokTrie::from(&info, &words), has_prefix })
    }

    /// The token that stands for a space of the prompt.
    pub fn space(&self) -> u32 {
        self.end() + 1
    }

    /// The token that stands for the end.
    pub fn end(&self) -> u32 {
        self.trie.eos_token()
    }
}

/// As the library writes special tokens.
fn marked(name: &[u8]) -> Vec<u8> {
    let name = &name[..name.len().min(LONGEST)];
    [&[TokTrie::SPECIAL_TOKEN_MARKER], name].concat()
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.tokenizer.encode_inside(bytes)
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.tokenizer.has_bytes()
    }
}
