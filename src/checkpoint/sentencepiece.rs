//! `tokenizer.model`: the pieces of a SentencePiece BPE model. Texts are matched by the rules of the tokenizer room, so
//! a model that asks for others is refused.

use std::{collections::HashSet, path::Path};

use super::protobuf::{Fields, Value};
use crate::{
    error::{Error, Result},
    vocab::{Piece, PieceKind},
};

/// `TrainerSpec.ModelType` of a BPE model; 1 is Unigram, the default.
const BPE: u64 = 2;

/// Reads the pieces of a SentencePiece model file; `path` is for messages.
///
/// # Errors
/// [`Error::BadFile`] for bytes that are no such message, pieces without a text, with a score that is not a number, or that
/// stand twice; [`Error::Unsupported`] for models that are not BPE or normalize their text.
pub fn parse_pieces(bytes: &[u8], path: &Path) -> Result<Vec<Piece>> {
    let bad = |place: String, problem: String| Error::bad_file(path, place, problem);
    let mut pieces = Vec::new();
    let mut model_type = 1;
    for field in Fields::new(bytes) {
        let (number, value) = field.map_err(|problem| bad(format!("piece {}", pieces.len()), problem))?;
        match (number, value) {
            (1, Value::Bytes(message)) => {
                let piece = parse_piece(message)
                    .map_err(|problem| bad(format!("piece {}", pieces.len()), problem))?;
                pieces.push(piece);
            }
            (2, Value::Bytes(message)) => {
                let spec = trainer_spec(message).map_err(|problem| bad("trainer_spec".into(), problem))?;
                model_type = spec.unwrap_or(model_type);
            }
            (3, Value::Bytes(message)) => {
                let asked = normalizer(message).map_err(|problem| bad("normalizer_spec".into(), problem))?;
                if let Some(what) = asked {
                    return Err(unsupported(path, what));
                }
            }
            (1..=3, _) => return Err(bad(format!("field {number}"), "it is not a message".into())),
            _ => {}
        }
    }
    if pieces.is_empty() {
        return Err(bad("the file".into(), "it has no pieces: this is not a SentencePiece model".into()));
    }
    if model_type != BPE {
        let name =
            ["none", "Unigram", "BPE", "word", "character"].get(model_type as usize).unwrap_or(&"unknown");
        return Err(unsupported(path, format!("a SentencePiece model of the type {model_type} ({name})")));
    }
    let mut seen = HashSet::with_capacity(pieces.len());
    match pieces.iter().find(|piece| !seen.insert(piece.text.as_str())) {
        Some(twice) => Err(bad(format!("piece {:?}", twice.text), "it stands twice".into())),
        None => Ok(pieces),
    }
}

fn unsupported(path: &Path, what: String) -> Error {
    let remedy = "use the tokenizer.model of a Yuan 2.0 model (BPE, identity normalizer)".into();
    Error::Unsupported { path: path.into(), what, remedy }
}

fn parse_piece(message: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    for field in Fields::new(message) {
        match field? {
            (1, Value::Bytes(text)) => {
                text_of(text)?.clone_into(&mut piece.text);
            }
            (2, Value::Fixed32(score)) => piece.score = f32::from_le_bytes(score),
            (3, Value::Varint(kind)) => piece.kind = kind_of(kind)?,
            (number @ 1..=3, value) => return Err(format!("field {number} is {value:?}")),
            _ => {}
        }
    }
    if piece.text.is_empty() {
        return Err("it has no text".into());
    }
    if piece.score.is_nan() {
        return Err("its score is not a number".into());
    }
    Ok(piece)
}

fn kind_of(kind: u64) -> Result<PieceKind, String> {
    PieceKind::from_number(kind).ok_or_else(|| format!("its type is {kind}"))
}

fn text_of(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "its text is not UTF-8".into())
}

/// The model type, if the message names one.
fn trainer_spec(message: &[u8]) -> Result<Option<u64>, String> {
    let mut model_type = None;
    for field in Fields::new(message) {
        if let (3, Value::Varint(value)) = field? {
            model_type = Some(value);
        }
    }
    Ok(model_type)
}

/// What a normalizer asks for beyond the rules of the tokenizer room: text as it is, one space put before it, spaces
/// kept and written as U+2581.
fn normalizer(message: &[u8]) -> Result<Option<String>, String> {
    let (mut name, mut map) = ("", 0);
    let (mut prefix, mut trim, mut escape) = (1, 1, 1);
    for field in Fields::new(message) {
        match field? {
            (1, Value::Bytes(text)) => name = text_of(text)?,
            (2, Value::Bytes(chars)) => map = chars.len(),
            (3, Value::Varint(flag)) => prefix = flag,
            (4, Value::Varint(flag)) => trim = flag,
            (5, Value::Varint(flag)) => escape = flag,
            _ => {}
        }
    }
    Ok(if map > 0 && name != "identity" {
        Some(format!("the normalizer {name:?}"))
    } else if prefix == 0 {
        Some("a tokenizer without add_dummy_prefix".to_owned())
    } else if trim != 0 {
        Some("a tokenizer with remove_extra_whitespaces".to_owned())
    } else if escape == 0 {
        Some("a tokenizer without escape_whitespaces".to_owned())
    } else {
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn piece(text: &str, score: f32, kind: Option<u8>) -> Vec<u8> {
        let mut message = field(1, text.as_bytes());
        message.push(0x15);
        message.extend(score.to_le_bytes());
        message.extend(kind.iter().flat_map(|kind| [0x18, *kind]));
        field(1, &message)
    }

    const BPE_SPEC: [u8; 4] = [0x12, 2, 0x18, 2];
    const IDENTITY: [u8; 16] = *b"\x1A\x0E\x0A\x08identity\x18\x01\x20\x00";

    fn parse(parts: &[&[u8]]) -> Result<Vec<Piece>> {
        parse_pieces(&parts.concat(), Path::new("tokenizer.model"))
    }

    #[test]
    fn pieces_have_text_score_and_kind_and_are_normal_by_default() {
        let (a, b) = (piece("<unk>", 0.0, Some(2)), piece("\u{2581}a", -1.5, None));
        let pieces = parse(&[&a, &b, &BPE_SPEC, &IDENTITY, &[0x28, 1]]).unwrap();
        assert_eq!(pieces[0], Piece { text: "<unk>".into(), score: 0.0, kind: PieceKind::Unknown });
        assert_eq!(pieces[1], Piece { text: "\u{2581}a".into(), score: -1.5, kind: PieceKind::Normal });
    }

    #[test]
    fn models_that_are_not_bpe_are_refused() {
        let a = piece("a", 0.0, None);
        for spec in [&[][..], &[0x12, 2, 0x18, 1], &[0x12, 0]] {
            let e = parse(&[&a, spec]).unwrap_err();
            assert!(matches!(e, Error::Unsupported { .. }) && e.to_string().contains("Unigram"), "{e}");
        }
    }

    #[test]
    fn normalizers_that_change_the_text_are_refused() {
        let a = piece("a", 0.0, None);
        for spec in [
            field(3, b"\x0A\x04nfkc\x12\x02xx\x20\x00"),
            field(3, b"\x18\x00\x20\x00"),
            field(3, b"\x20\x01"),
            field(3, b"\x20\x00\x28\x00"),
        ] {
            assert!(matches!(parse(&[&a, &BPE_SPEC, &spec]), Err(Error::Unsupported { .. })));
        }
    }

    #[test]
    fn broken_pieces_are_errors_that_name_their_number() {
        let a = piece("a", 0.0, None);
        for broken in [
            piece("a", 0.0, None),
            piece("", 0.0, None),
            piece("b", f32::NAN, None),
            piece("b", 0.0, Some(7)),
            field(1, b"\x0A\x01\xFF"),
            field(1, b"\x0A\x09b"),
            vec![0x08, 1],
        ] {
            let e = parse(&[&a, &broken, &BPE_SPEC]).unwrap_err();
            assert!(matches!(e, Error::BadFile { .. }), "{e}");
        }
        assert!(parse(&[]).is_err());
    }
}
