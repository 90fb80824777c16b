//! What an answer may be: a JSON schema, a grammar or a regular expression, over the tokens of a vocabulary.
//!
//! A [`Grammar`] says it, a [`Constraint`] is the same ready for use, and a [`Guide`] goes with one answer and says which tokens may come next.
//! The work is done by [llguidance](https://docs.rs/llguidance); without the cargo feature `grammar` every grammar is refused.

#[cfg(feature = "grammar")]
mod guide;
#[cfg(not(feature = "grammar"))]
#[path = "without.rs"]
mod guide;
#[cfg(feature = "grammar")]
mod place;
#[cfg(feature = "grammar")]
mod trie;

use serde_json::{Value, json};

use crate::error::{Error, Result};

pub use guide::{Constraint, Guide, Words};

/// Space between the parts of JSON: what models write, and an end of it, so that no answer is nothing else.
const WHITESPACE: &str = r" |\n[ \t]{0,20}";

/// What an answer has to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// JSON that meets this schema.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// A text of a grammar in Lark's notation, as llguidance reads it.
    Lark(String),
    /// A text that a regular expression matches as a whole.
    Regex(String),
}

impl Grammar {
    /// The grammar of a JSON schema as text.
    ///
    /// # Errors
    /// [`Error::Argument`] when it is no JSON.
    pub fn json_schema(text: &str) -> Result<Self> {
        let schema = serde_json::from_str(text)
            .map_err(|e| Error::Argument(format!("the JSON schema is no JSON: {e}")))?;
        Ok(Self::JsonSchema(schema))
    }

    /// A schema with the space that stands in JSON, unless it says what stands there: for grammars with a schema in them (`%json`). What is given as
    /// [`Grammar::JsonSchema`] has it already.
    pub fn spaced(schema: &Value) -> Value {
        let mut schema = match schema {
            Value::Bool(true) => json!({}),
            other => other.clone(),
        };
        if let Some(fields) = schema.as_object_mut() {
            let options = fields.entry("x-guidance").or_insert_with(|| json!({}));
            if let Some(options) = options.as_object_mut()
                && !options.contains_key("whitespace_flexible")
            {
                options.entry("whitespace_pattern").or_insert_with(|| json!(WHITESPACE));
            }
        }
        schema
    }

    /// As messages call it.
    fn name(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) | Self::JsonObject => "JSON schema",
            Self::Lark(_) => "grammar",
            Self::Regex(_) => "regular expression",
        }
    }
}
