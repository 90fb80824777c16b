//! The vocabulary of a checkpoint folder: the pieces of `tokenizer.model`, the strings that the authors' scripts add, and
//! filling up to the rows of the embedding.

use std::{collections::HashSet, io, path::Path};

use serde_json::Value;

use super::{
    config::{Parsed, parse_config},
    family::describe,
    file::{is_lfs_pointer, lfs_pointer, read, read_text},
    json::parse_object,
    sentencepiece::parse_pieces,
};
use crate::{
    config::{Family, ModelConfig},
    error::{Error, Result},
    vocab::{Piece, PieceKind, Vocab},
};

/// Larger than any tokenizer: the one of Yuan2.0-M32 has 2 MB.
const LARGEST_MODEL: u64 = 64 << 20;
const LARGEST_JSON: u64 = 16 << 20;

/// Reads the vocabulary of a checkpoint folder, that of the model `config`; without it the folder's `config.json` says which that is, and where
/// there is none either, it is of Yuan 2.0 and ends behind the added strings.
///
/// # Errors
/// As [`read_vocab_of`]; [`Error::BadFile`] when the folder's config has another id for the end of a document.
pub fn read_vocab(folder: &Path, config: Option<&ModelConfig>) -> Result<Vocab> {
    let beside = folder_config(folder);
    let config = config.or(beside.as_ref().map(|parsed| &parsed.config));
    let family = config.map_or(Family::default(), |config| config.family);
    let vocab = read_vocab_of(folder, family, config.map(|config| config.vocab))?;
    let said = beside.as_ref().and_then(|parsed| parsed.eod);
    match (said, vocab.eod) {
        (Some(said), Some(eod)) if family == Family::Yuan3 && said != eod as usize => Err(Error::BadFile {
            path: folder.join("tokenizer.model"),
            place: "the piece <eod>".into(),
            problem: format!("it is {eod}, and eod_token_id in config.json is {said}"),
            remedy: "fetch the tokenizer that belongs to the model",
        }),
        _ => Ok(vocab),
    }
}

/// Reads the vocabulary of a folder as one of `family` with `vocab` rows in the embedding; without a number it ends behind the added strings.
///
/// # Errors
/// When `tokenizer.model` is missing, damaged, of another kind, or has more pieces than `vocab`.
pub fn read_vocab_of(folder: &Path, family: Family, vocab: Option<usize>) -> Result<Vocab> {
    let path = folder.join("tokenizer.model");
    let bytes = read(&path, LARGEST_MODEL).map_err(missing)?;
    if is_lfs_pointer(&bytes) {
        return Err(lfs_pointer(&path));
    }
    let mut pieces = parse_pieces(&bytes, &path)?;
    if let Some(size) = vocab.filter(|size| *size < pieces.len()) {
        let problem = format!("{} pieces, but the model's vocabulary has {size}", pieces.len());
        return Err(Error::bad_file(path, "the pieces", problem));
    }
    complete(&mut pieces, family, vocab);

    let mut vocab = Vocab::of(family, pieces);
    if let Some(template) = chat_template(&folder.join("tokenizer_config.json"))? {
        // The one that Yuan 3.0's converter stores joins what users said; the model was trained on roles.
        if family != Family::Yuan3 || template.contains("<|Assistant|>") {
            vocab.chat_template = Some(template);
        }
    }
    Ok(vocab)
}

/// The remedy for a folder without a tokenizer.
fn missing(error: Error) -> Error {
    match error {
        Error::Io { path, source, .. } if source.kind() == io::ErrorKind::NotFound => Error::BadFile {
            path,
            place: "the file".into(),
            problem: "it is missing".into(),
            remedy: "fetch it from the checkpoint's page: it must lie in the folder of the weights",
        },
        other => other,
    }
}

/// The folder's config, if it has one that can be read.
fn folder_config(folder: &Path) -> Option<Parsed> {
    let path = folder.join("config.json");
    let text = read_text(&path, LARGEST_JSON).ok()?;
    parse_config(&text, &path).ok()
}

/// Appends the added strings of the family that are no pieces, as long as there is room, then pieces without a use up to `size`.
fn complete(pieces: &mut Vec<Piece>, family: Family, size: Option<usize>) {
    let known: HashSet<&str> = pieces.iter().map(|piece| piece.text.as_str()).collect();
    let mut added = (describe(family).added)();
    added.retain(|text| !known.contains(text.as_str()));
    drop(known);
    let room = size.map_or(usize::MAX, |size| size - pieces.len());
    pieces.extend(added.into_iter().take(room).map(|text| Piece {
        text,
        score: 0.0,
        kind: PieceKind::UserDefined,
    }));
    let fill = size.map_or(0, |size| size - pieces.len());
    pieces.extend((1..=fill).map(|i| Piece {
        text: format!("<dummy{i:05}>"),
        score: 0.0,
        kind: PieceKind::Unused,
    }));
}

/// The template of `tokenizer_config.json`: a text, or of several the one with the name `default`.
fn chat_template(path: &Path) -> Result<Option<String>> {
    let text = match read_text(path, LARGEST_JSON) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let map = parse_object(&text, path)?;
    match map.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(template)) => Ok(Some(template.clone())),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            Ok(default.and_then(|entry| entry["template"].as_str()).map(str::to_owned))
        }
        Some(_) => Err(Error::bad_file(path, "key chat_template", "it is not a text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str) -> Piece {
        Piece { text: text.into(), score: -1.0, kind: PieceKind::Normal }
    }

    fn texts(pieces: &[Piece]) -> Vec<&str> {
        pieces.iter().map(|piece| piece.text.as_str()).collect()
    }

    #[test]
    fn added_strings_stand_behind_the_pieces_and_dummies_fill_the_rest() {
        let mut pieces = vec![piece("a"), piece("<predict>")];
        complete(&mut pieces, Family::Yuan2, Some(8));
        let expected = [
            "a",
            "<predict>",
            "<mask>",
            "<FIM_SUFFIX>",
            "<FIM_PREFIX>",
            "<FIM_MIDDLE>",
            "<dummy00001>",
            "<dummy00002>",
        ];
        assert_eq!(texts(&pieces), expected);
        assert_eq!((pieces[1].kind, pieces[2].kind), (PieceKind::Normal, PieceKind::UserDefined));
        assert_eq!(pieces[7].kind, PieceKind::Unused);
    }

    #[test]
    fn added_strings_need_room() {
        let mut pieces = vec![piece("a")];
        complete(&mut pieces, Family::Yuan2, Some(3));
        assert_eq!(texts(&pieces), ["a", "<mask>", "<predict>"]);
        let mut pieces = vec![piece("a")];
        complete(&mut pieces, Family::Yuan2, None);
        assert_eq!(pieces.len(), 6);
    }

    #[test]
    fn a_folder_without_a_tokenizer_is_an_error_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let e = read_vocab(folder.path(), None).unwrap_err().to_string();
        assert!(e.contains("tokenizer.model") && e.contains("fetch it"), "{e}");
    }
}
