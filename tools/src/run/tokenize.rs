//! `yuan tokenize`: show the tokens of a text.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use yuan::{
    checkpoint::vocab::read_vocab,
    container::Container,
    tokenizer::{Special, Tokenizer},
};
use yuan_tools::{models::resolve, say};

/// Show the tokens of a text: ids and pieces
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan tokenize model.gguf 'Hello, world'
  yuan tokenize path/to/checkpoint --special --json '你好<sep>'")]
pub struct Tokenize {
    /// A container, a name of `yuan list`, or a folder with tokenizer.model
    model: PathBuf,
    /// The text
    text: String,
    /// Encode special strings, such as <sep>, as special tokens, which LlamaTokenizer always does
    #[arg(long)]
    special: bool,
    /// Print JSON: {"ids": […], "pieces": […]}
    #[arg(long)]
    json: bool,
}

impl Tokenize {
    pub fn run(self) -> anyhow::Result<()> {
        let model = resolve(&self.model)?;
        let vocab =
            if model.is_dir() { read_vocab(&model, None)? } else { Container::open(&model)?.vocab()? };
        let tokenizer = Tokenizer::new(vocab)?;
        let ids = tokenizer.encode(&self.text, if self.special { Special::Parse } else { Special::AsText });
        let pieces: Vec<&str> = ids.iter().map(|&id| tokenizer.piece(id)).collect();
        if self.json {
            say!("{}", json!({ "ids": ids, "pieces": pieces }))?;
        } else {
            for (id, piece) in ids.iter().zip(pieces) {
                say!("{id:>6}  {piece}")?;
            }
        }
        Ok(())
    }
}
