//! A vocabulary as data: what `tokenizer.model`, a container's metadata and the tokenizer have in common.

use std::collections::HashMap;

/// What a piece is for, with SentencePiece's numbers (also those of `tokenizer.ggml.token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PieceKind {
    /// Matches text.
    Normal = 1,
    /// Stands for text that has no piece; never matched.
    Unknown = 2,
    /// A marker without text; never matched.
    Control = 3,
    /// Added by the user.
    UserDefined = 4,
    /// A place in the numbering without a meaning.
    Unused = 5,
    /// One byte, written `<0xAB>`.
    Byte = 6,
}

impl PieceKind {
    /// The kind with this number.
    pub fn from_number(number: u64) -> Option<Self> {
        [Self::Normal, Self::Unknown, Self::Control, Self::UserDefined, Self::Unused, Self::Byte]
            .into_iter()
            .find(|kind| *kind as u64 == number)
    }
}

/// One entry of the vocabulary; its id is its index.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The text, with U+2581 for a space.
    pub text: String,
    /// The merge score: the higher, the earlier.
    pub score: f32,
    /// What it is for.
    pub kind: PieceKind,
}

/// Pieces that the authors' scripts make special: `LlamaTokenizer` cuts them out of text before it encodes. Not `<n>`.
pub const SPECIAL: [&str; 18] = [
    "<s>",
    "<unk>",
    "<eod>",
    "<sep>",
    "<pad>",
    "<mask>",
    "<predict>",
    "<FIM_SUFFIX>",
    "<FIM_PREFIX>",
    "<FIM_MIDDLE>",
    "<commit_before>",
    "<commit_msg>",
    "<commit_after>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<empty_output>",
];

/// Chat as the authors' scripts have it: turns joined by `<n>`, the prompt closed by `<sep>`; the answer ends with `<eod>`.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ message['content'] }}\
    {% if not loop.last %}<n>{% endif %}{% endfor %}{% if add_generation_prompt %}<sep>{% endif %}";

/// Chat of Yuan 3.0: roles, thinking, functions and their results.
pub const YUAN3_CHAT_TEMPLATE: &str = include_str!("yuan3.jinja");

/// All that a tokenizer needs to know about a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vocab {
    /// The pieces, by id.
    pub pieces: Vec<Piece>,
    /// Strings that `LlamaTokenizer` cuts out of text before it encodes, with their ids.
    pub special: Vec<(String, u32)>,
    /// End of document (`<eod>`), if there is one.
    pub eod: Option<u32>,
    /// End of prompt (`<sep>`), if there is one.
    pub sep: Option<u32>,
    /// Padding (`<pad>`), if there is one.
    pub pad: Option<u32>,
    /// The chat template (Jinja), if there is one.
    pub chat_template: Option<String>,
}

impl Vocab {
    /// A vocabulary of these pieces, in which special strings are found by their text and conversations have the
    /// authors' form.
    pub fn from_pieces(pieces: Vec<Piece>) -> Self {
        let ids: HashMap<&str, u32> = pieces.iter().map(|p| p.text.as_str()).zip(0..).collect();
        let id = |text: &str| ids.get(text).copied();
        let special = SPECIAL.iter().filter_map(|text| Some(((*text).to_owned(), id(text)?))).collect();
        let (eod, sep, pad) = (id("<eod>"), id("<sep>"), id("<pad>"));
        let has_roles = ["<|User|>", "<|Assistant|>"].iter().all(|role| ids.contains_key(role));
        drop(ids);
        let template = if has_roles { YUAN3_CHAT_TEMPLATE } else { CHAT_TEMPLATE };
        Self { pieces, special, eod, sep, pad, chat_template: Some(template.to_owned()) }
    }
}
