//! The ids of many texts and conversations, for comparisons with other tokenizers (`tools/reference/check_texts.py`). A line of the input
//! is JSON: `{"text": "…", "special": true}`, or a conversation as OpenAI's clients write it; a line of the output the list of its ids, or a
//! text that says what is wrong.
//!
//! `cargo run --example tokens -- FOLDER [ROWS]`: with a number of rows the folder's vocabulary becomes that of Yuan 3.0.

use std::{
    env,
    error::Error,
    io::{BufRead, BufWriter, Write, stdin, stdout},
    path::PathBuf,
};

use serde_json::{Value, json};
use yuan::{
    checkpoint::vocab::{read_vocab, read_vocab_of},
    config::Family,
    tokenizer::{Conversation, Special, Tokenizer},
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("give the folder of a tokenizer.model")?);
    let rows = arguments.next().map(|rows| rows.to_string_lossy().parse()).transpose()?;
    let vocab = match rows {
        Some(rows) => read_vocab_of(&folder, Family::Yuan3, Some(rows))?,
        None => read_vocab(&folder, None)?,
    };
    let tokenizer = Tokenizer::new(vocab)?;
    let mut out = BufWriter::new(stdout().lock());
    for line in stdin().lock().lines() {
        writeln!(out, "{}", answer(&tokenizer, &line?)?)?;
    }
    Ok(out.flush()?)
}

fn answer(tokenizer: &Tokenizer, line: &str) -> Result<Value, serde_json::Error> {
    let asked: Value = serde_json::from_str(line)?;
    if let Some(text) = asked["text"].as_str() {
        let special = if asked["special"] == true { Special::Parse } else { Special::AsText };
        return Ok(json!(tokenizer.encode(text, special)));
    }
    let ids = Conversation::parse(line).and_then(|conversation| tokenizer.prompt(&conversation.chat()));
    Ok(ids.map_or_else(|error| json!(error.to_string()), |ids| json!(ids)))
}
