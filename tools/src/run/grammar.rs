//! Options of what an answer has to be.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use yuan::{
    grammar::{Constraint, Grammar},
    session::Engine,
};

/// What the answer has to be: at most one of these.
#[derive(Args, Clone, Debug)]
#[group(multiple = false)]
pub struct Form {
    /// Answer with JSON that meets this JSON schema: a file, or the schema itself
    #[arg(long, value_name = "FILE|SCHEMA", alias = "json-schema-file")]
    json_schema: Option<String>,
    /// Answer with a JSON object
    #[arg(long)]
    json_object: bool,
    /// Answer by the grammar in this file, in Lark's notation (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md)
    #[arg(long, value_name = "FILE", alias = "grammar-file")]
    grammar: Option<PathBuf>,
    /// Answer with a text that this regular expression matches as a whole
    #[arg(long, value_name = "REGEX")]
    regex: Option<String>,
}

impl Form {
    /// The grammar, if one is asked for. Its file is read now.
    pub fn grammar(&self) -> anyhow::Result<Option<Grammar>> {
        Ok(match (&self.json_schema, &self.grammar, &self.regex) {
            (Some(schema), ..) if schema.trim_start().starts_with('{') => Some(Grammar::json_schema(schema)?),
            (Some(file), ..) => {
                let schema = read(Path::new(file), "--json-schema")?;
                Some(Grammar::json_schema(&schema).with_context(|| file.clone())?)
            }
            (_, Some(file), _) => Some(Grammar::Lark(read(file, "--grammar")?)),
            (_, _, Some(regex)) => Some(Grammar::Regex(regex.clone())),
            _ => self.json_object.then_some(Grammar::JsonObject),
        })
    }
}

/// The grammar, ready for this model.
pub fn constraint(engine: &Engine, grammar: Option<&Grammar>) -> anyhow::Result<Option<Constraint>> {
    Ok(grammar.map(|grammar| engine.constraint(grammar)).transpose()?)
}

fn read(file: &Path, option: &str) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("{option}: cannot read {}", file.display()))
}
