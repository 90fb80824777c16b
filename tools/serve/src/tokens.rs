//! A token by itself, as clients are shown it.

use yuan::tokenizer::Tokenizer;

/// A token as a text. What is no text by itself is `bytes:\xe6`, as OpenAI writes it.
pub fn name(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8(tokenizer.bytes(id)).unwrap_or_else(|e| {
        e.as_bytes().iter().fold("bytes:".to_owned(), |name, byte| format!("{name}\\x{byte:02x}"))
    })
}

#[cfg(test)]
mod tests {
    use yuan::vocab::{Piece, PieceKind, Vocab};

    use super::*;

    #[test]
    fn a_token_has_a_name_that_is_text() {
        let piece = |text: &str, kind| Piece { text: text.into(), score: 0.0, kind };
        let pieces = vec![
            piece("<unk>", PieceKind::Unknown),
            piece("<0xE6>", PieceKind::Byte),
            piece("<0x41>", PieceKind::Byte),
            piece("\u{2581}诗\u{2581}", PieceKind::Normal),
            piece("<s>", PieceKind::Control),
            piece("", PieceKind::Control),
        ];
        let tokenizer = Tokenizer::new(Vocab::from_pieces(pieces)).unwrap();
        let names: Vec<_> = (0..7).map(|id| name(&tokenizer, id)).collect();
        assert_eq!(names, ["<unk>", "bytes:\\xe6", "A", " 诗 ", "<s>", "", ""]);
        assert_eq!(tokenizer.bytes(1), [0xe6]);
    }
}
