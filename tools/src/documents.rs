//! Texts of several documents.

use std::{path::Path, str::FromStr};

use anyhow::ensure;
use yuan::tokenizer::{Special, Tokenizer};

/// The documents of a text as tokens, each with the `<eod>` that ends it: they are divided by lines that say `<eod>`.
pub fn split(text: &str, tokenizer: &Tokenizer) -> Vec<Vec<u32>> {
    let mut documents = Vec::new();
    let mut rest = text;
    while let Some((document, tail)) = rest.split_once("\n<eod>\n") {
        let mut ids = tokenizer.encode(document, Special::Parse);
        ids.extend(tokenizer.eod());
        documents.push(ids);
        rest = tail;
    }
    if !rest.trim().is_empty() {
        documents.push(tokenizer.encode(rest, Special::Parse));
    }
    documents
}

/// Tokens of the longest document.
pub fn longest(documents: &[Vec<u32>]) -> usize {
    documents.iter().map(Vec::len).max().unwrap_or(0)
}

/// Which documents: `FIRST-LAST`, or one, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: usize,
    last: usize,
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |s: &str| s.parse::<usize>().ok().filter(|&n| n > 0);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = parse(first).zip(parse(last)).filter(|(first, last)| first <= last);
        range
            .map(|(first, last)| Self { first, last })
            .ok_or_else(|| "give FIRST-LAST, counted from 1".into())
    }
}

/// Those of the documents of `file` that are asked for.
///
/// # Errors
/// There are none, or not so many.
pub fn chosen<'d>(
    documents: &'d [Vec<u32>],
    range: Option<Range>,
    file: &Path,
) -> anyhow::Result<&'d [Vec<u32>]> {
    ensure!(!documents.is_empty(), "{} has no text: give a longer one", file.display());
    let Some(Range { first, last }) = range else { return Ok(documents) };
    ensure!(
        last <= documents.len(),
        "{} has {} documents: --documents {first}-{last} asks for others",
        file.display(),
        documents.len()
    );
    Ok(&documents[first - 1..last])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_counted_from_one() {
        let (all, file) = ([vec![1], vec![2, 2], vec![3]], Path::new("文.txt"));
        let of = |range: &str| chosen(&all, Some(range.parse().unwrap()), file).map(<[_]>::to_vec);
        assert_eq!(of("2-3").unwrap(), all[1..]);
        assert_eq!(of("2").unwrap(), all[1..2]);
        assert_eq!(chosen(&all, None, file).unwrap(), all);
        assert_eq!(longest(&all), 2);
        assert!(of("3-4").unwrap_err().to_string().contains("文.txt has 3 documents"));
        assert!(chosen(&[], None, file).unwrap_err().to_string().contains("no text"));
        for wrong in ["0", "0-1", "3-2", "-", "1-", "x", "", "1-2-3", "99999999999999999999999"] {
            assert!(wrong.parse::<Range>().is_err(), "{wrong}");
        }
    }
}
