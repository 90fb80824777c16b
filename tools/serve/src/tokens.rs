//! Tokens by themselves, as clients are shown them.

use yuan::{tokenizer::Tokenizer, vocab::PieceKind};

/// The bytes of a token: with a space at its beginning where it begins a word, and none of a marker without a text.
pub fn bytes(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let vocab = tokenizer.vocab();
    if let Some((text, _)) = vocab.special.iter().find(|(_, special)| *special == id) {
        return text.as_bytes().to_vec();
    }
    let Some(piece) = vocab.pieces.get(id as usize) else { return Vec::new() };
    let byte = || u8::from_str_radix(piece.text.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok();
    match piece.kind {
        PieceKind::Control => Vec::new(),
        PieceKind::Byte => byte().into_iter().collect(),
        _ => piece.text.replace('\u{2581}', " ").into_bytes(),
    }
}

/// A token as a text. What is no text by itself is `bytes:\xe6`, as OpenAI writes it.
pub fn name(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8(bytes(tokenizer, id)).unwrap_or_else(|e| {
        e.as_bytes().iter().fold("bytes:".to_owned(), |name, byte| format!("{name}\\x{byte:02x}"))
    })
}

#[cfg(test)]
mod tests {
    use yuan::vocab::{Piece, Vocab};

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
        assert_eq!(bytes(&tokenizer, 1), [0xe6]);
    }
}
