//! A vocabulary as data: what `tokenizer.model`, a container's metadata and the tokenizer have in common.

use std::collections::HashMap;

use crate::config::Family;

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

/// Pieces that the authors' scripts make special in Yuan 2.0 and Yuan 3.0: `LlamaTokenizer` cuts them out of text before it encodes. Not `<n>`.
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

/// Those that are added for Yuan 3.0, beside the numbered ones ([`Vocab::symbols`]).
pub const SPECIAL_OF_YUAN3: [&str; 42] = [
    "<repo_name>",
    "<file_sep>",
    "<BOS>",
    "<IMAGE>",
    "</IMAGE>",
    "<grounding>",
    "<obj>",
    "</obj>",
    "<box>",
    "</box>",
    "<point>",
    "</point>",
    "<3dbox>",
    "</3dbox>",
    "<depth>",
    "</depth>",
    "<eop>",
    "<eog>",
    "<|begin_of_sentence|>",
    "<|end_of_sentence|>",
    "<|User|>",
    "<|Assistant|>",
    "<think>",
    "</think>",
    "<search_result>",
    "</search_result>",
    "<search_query>",
    "</search_query>",
    "<code_query>",
    "</code_query>",
    "<code_result>",
    "</code_result>",
    "<infer>",
    "</infer>",
    "<inferresult>",
    "</inferresult>",
    "<tool_calls>",
    "</tool_calls>",
    "<tool_response>",
    "</tool_response>",
    "<final_answer>",
    "</final_answer>",
];

/// The strings `s000` to `s999` of Yuan 3.0.
pub fn numbered() -> impl Iterator<Item = String> {
    (0..1000).map(|i| format!("s{i:03}"))
}

/// Chat as the authors' scripts have it: turns joined by `<n>`, the prompt closed by `<sep>`; the answer ends with `<eod>`.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ message['content'] }}\
    {% if not loop.last %}<n>{% endif %}{% endfor %}{% if add_generation_prompt %}<sep>{% endif %}";

/// Chat of Yuan 3.0: roles, thinking, functions and their results.
pub const YUAN3_CHAT_TEMPLATE: &str = include_str!("yuan3.jinja");

/// All that a tokenizer needs to know about a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vocab {
    /// The family of the model.
    pub family: Family,
    /// The pieces, by id.
    pub pieces: Vec<Piece>,
    /// Strings that `LlamaTokenizer` cuts out of text before it encodes, with their ids.
    pub special: Vec<(String, u32)>,
    /// Strings that are one token wherever they stand, in what people write too: they mean nothing, but the model has seen `rooms100`
    /// as `room` and `s100` only.
    pub symbols: Vec<(String, u32)>,
    /// End of document (`<eod>`), if there is one.
    pub eod: Option<u32>,
    /// End of an answer (`<|end_of_sentence|>` of Yuan 3.0) beside `<eod>`, if there is one.
    pub end: Option<u32>,
    /// End of prompt (`<sep>`), if there is one.
    pub sep: Option<u32>,
    /// Padding (`<pad>`), if there is one.
    pub pad: Option<u32>,
    /// The chat template (Jinja), if there is one.
    pub chat_template: Option<String>,
}

impl Vocab {
    /// The ids that must not come out of ordinary text by merging pieces.
    pub fn marked(&self) -> impl Iterator<Item = u32> {
        let strings = self.special.iter().chain(&self.symbols).map(|(_, id)| *id);
        strings.chain([self.eod, self.end, self.sep, self.pad].into_iter().flatten())
    }

    /// A vocabulary of Yuan 2.0 of these pieces.
    pub fn from_pieces(pieces: Vec<Piece>) -> Self {
        Self::of(Family::Yuan2, pieces)
    }

    /// A vocabulary of these pieces, in which special strings are found by their text and conversations have the authors' form, where they have
    /// one that is built.
    pub fn of(family: Family, pieces: Vec<Piece>) -> Self {
        let ids: HashMap<&str, u32> = pieces.iter().map(|p| p.text.as_str()).zip(0..).collect();
        let id = |text: &str| ids.get(text).copied();
        let found = |text: String| id(&text).map(|id| (text, id));
        let mut special: Vec<_> = SPECIAL.into_iter().map(str::to_owned).filter_map(found).collect();
        let (mut symbols, mut end, mut chat_template) = (Vec::new(), None, Some(CHAT_TEMPLATE.to_owned()));
        if family == Family::Yuan3 {
            special.extend(SPECIAL_OF_YUAN3.into_iter().map(str::to_owned).filter_map(found));
            symbols = numbered().filter_map(found).collect();
            end = id("<|end_of_sentence|>");
            chat_template = Some(YUAN3_CHAT_TEMPLATE.to_owned());
        }
        let (eod, sep, pad) = (id("<eod>"), id("<sep>"), id("<pad>"));
        drop(ids);
        Self { family, pieces, special, symbols, eod, end, sep, pad, chat_template }
    }
}
