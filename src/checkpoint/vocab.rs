//! The vocabulary of a checkpoint folder: the pieces of `tokenizer.model`, the strings that the authors' scripts add, and
//! filling up to the rows of the embedding.

use std::{collections::HashSet, io, path::Path};

use serde_json::Value;

use super::{
    config::parse_config,
    file::{is_lfs_pointer, lfs_pointer, read, read_text},
    json::parse_object,
    sentencepiece::parse_pieces,
};
use crate::{
    error::{Error, Result},
    vocab::{Piece, PieceKind, Vocab, YUAN3_CHAT_TEMPLATE},
};

/// Larger than any tokenizer: the one of Yuan2.0-M32 has 2 MB.
const LARGEST_MODEL: u64 = 64 << 20;
const LARGEST_JSON: u64 = 16 << 20;

/// Special strings that the authors' scripts add behind the pieces, in their order.
const ADDED: [&str; 5] = ["<mask>", "<predict>", "<FIM_SUFFIX>", "<FIM_PREFIX>", "<FIM_MIDDLE>"];

/// Reads the vocabulary of a checkpoint folder. `vocab` is the number of rows of the embedding; without it the folder's
/// `config.json` says it, and where there is none either, the vocabulary ends behind the added strings.
///
/// # Errors
/// When `tokenizer.model` is missing, damaged, of another kind, or has more pieces than `vocab`.
pub fn read_vocab(folder: &Path, vocab: Option<usize>) -> Result<Vocab> {
    let path = folder.join("tokenizer.model");
    let bytes = read(&path, LARGEST_MODEL).map_err(missing)?;
    if is_lfs_pointer(&bytes) {
        return Err(lfs_pointer(&path));
    }
    let mut pieces = parse_pieces(&bytes, &path)?;
    let size = vocab.or_else(|| config_vocab(folder));
    if let Some(size) = size.filter(|size| *size < pieces.len()) {
        let problem = format!("{} pieces, but the model's vocabulary has {size}", pieces.len());
        return Err(Error::bad_file(path, "the pieces", problem));
    }
    complete(&mut pieces, size);

    let mut vocab = Vocab::from_pieces(pieces);
    if let Some(template) = chat_template(&folder.join("tokenizer_config.json"))? {
        // The one that Yuan 3.0's converter stores joins what users said; the model was trained on roles.
        let has_roles = vocab.chat_template.as_deref() == Some(YUAN3_CHAT_TEMPLATE);
        if !has_roles || template.contains("<|Assistant|>") {
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

/// The vocabulary that the folder's config names, if it has a config that can be read.
fn config_vocab(folder: &Path) -> Option<usize> {
    let path = folder.join("config.json");
    let text = read_text(&path, LARGEST_JSON).ok()?;
    Some(parse_config(&text, &path).ok()?.config.vocab)
}

/// Appends the added strings that are no pieces, as long as there is room, then pieces without a use up to `size`.
fn complete(pieces: &mut Vec<Piece>, size: Option<usize>) {
    let known: HashSet<&str> = pieces.iter().map(|piece| piece.text.as_str()).collect();
    let added: Vec<&str> = ADDED.into_iter().filter(|text| !known.contains(text)).collect();
    drop(known);
    let room = size.map_or(usize::MAX, |size| size - pieces.len());
    pieces.extend(added.into_iter().take(room).map(|text| Piece {
        text: text.to_owned(),
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
        complete(&mut pieces, Some(8));
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
        complete(&mut pieces, Some(3));
        assert_eq!(texts(&pieces), ["a", "<mask>", "<predict>"]);
        let mut pieces = vec![piece("a")];
        complete(&mut pieces, None);
        assert_eq!(pieces.len(), 6);
    }

    #[test]
    fn a_folder_without_a_tokenizer_is_an_error_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let e = read_vocab(folder.path(), None).unwrap_err().to_string();
        assert!(e.contains("tokenizer.model") && e.contains("fetch it"), "{e}");
    }
}
