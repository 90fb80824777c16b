//! `tokenizer.model`, and the vocabulary that it makes: every text becomes tokens of it, and those a text again.

use std::path::Path;

use yuan::{
    checkpoint::sentencepiece::parse_pieces,
    config::Family,
    tokenizer::{Special, Tokenizer},
    vocab::{Piece, PieceKind, Vocab},
};

use crate::{Seed, model::letters};

/// The first byte says the family, and how much of the end is a text; the others are the file.
pub fn run(data: &[u8]) {
    let Some((form, data)) = data.split_first() else { return };
    let (file, text) = data.split_at(data.len() - (usize::from(form / 2)).min(data.len()));
    let Ok(pieces) = parse_pieces(file, Path::new("tokenizer.model")) else { return };
    let family = [Family::Yuan2, Family::Yuan3][usize::from(form % 2)];
    let Ok(tokenizer) = Tokenizer::new(Vocab::of(family, pieces)) else { return };
    let own = String::from_utf8_lossy(text);
    for text in ["In the beginning \u{6625}\u{7720} \u{1F600}<eod>  a\n\0b", &own] {
        for special in [Special::Parse, Special::AsText] {
            let ids = tokenizer.encode(text, special);
            assert!(ids.iter().all(|id| (*id as usize) < tokenizer.len()));
            let whole = tokenizer.decode(&ids);
            let mut stream = tokenizer.stream();
            let mut parts: String = ids.iter().map(|id| stream.push(*id)).collect();
            parts += &stream.finish();
            assert_eq!(parts, whole, "in parts it is the same text");
            tokenizer.decode_skipping_special(&ids);
            // What a vocabulary with all bytes has taken apart comes back as it was, but for strings that are special or mean something here.
            if special == Special::AsText
                && tokenizer.has_bytes()
                && plain(&tokenizer)
                && !text.contains(['<', '\u{2581}'])
            {
                assert_eq!(whole, text);
            }
        }
        for id in tokenizer.encode_inside(text.as_bytes()) {
            assert!((id as usize) < tokenizer.len());
        }
    }
}

/// Whether all pieces but bytes are ordinary text.
fn plain(tokenizer: &Tokenizer) -> bool {
    tokenizer.vocab().pieces.iter().all(|piece| match piece.kind {
        PieceKind::Normal => !piece.text.contains(['<', '\n']),
        kind => kind == PieceKind::Byte,
    })
}

/// A SentencePiece model with these pieces.
pub fn sentencepiece(vocab: &Vocab) -> Vec<u8> {
    let message = |number: u8, bytes: &[u8]| {
        let mut out = vec![number << 3 | 2];
        let mut left = bytes.len();
        while left >= 128 {
            out.push(left as u8 | 128);
            left >>= 7;
        }
        out.push(left as u8);
        out.extend(bytes);
        out
    };
    let piece = |piece: &Piece| {
        let mut fields = message(1, piece.text.as_bytes());
        fields.push(2 << 3 | 5);
        fields.extend(piece.score.to_le_bytes());
        fields.extend([3 << 3, piece.kind as u8]);
        message(1, &fields)
    };
    let mut out: Vec<u8> = vocab.pieces.iter().flat_map(piece).collect();
    // BPE; the identity, one space before the text, none removed, all escaped.
    out.extend(message(2, &[3 << 3, 2]));
    let name = message(1, b"identity");
    out.extend(message(3, &[&name[..], &[3 << 3, 1, 4 << 3, 0, 5 << 3, 1]].concat()));
    out
}

/// A vocabulary without bytes, and one with them.
pub fn seeds() -> Vec<Seed> {
    let text = "a w1b 春\n<sep> a";
    let of = |size, family: u8| {
        let file = sentencepiece(&letters([Family::Yuan2, Family::Yuan3][usize::from(family)], size));
        [&[(text.len() as u8) * 2 + family], &file[..], text.as_bytes()].concat()
    };
    vec![of(7, 0), of(266, 0), of(270, 1)]
}
