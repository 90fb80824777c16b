//! Texts of several documents.

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
