//! A vocabulary as data: what `tokenizer.model`, a container's metadata and the tokenizer have in common.

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
