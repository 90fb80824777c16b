//! Messages as clients send them: a role, and a text or a list of parts.

use serde::Deserialize;
use yuan::tokenizer::Message;

use crate::problem::Problem;

/// A message as clients send it.
#[derive(Clone, Debug, Deserialize)]
pub struct Said {
    role: String,
    content: Option<Content>,
}

/// A text, or parts of one.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// The text.
    Text(String),
    /// Its parts.
    Parts(Vec<Part>),
}

/// A part of a message.
#[derive(Clone, Debug, Deserialize)]
pub struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

impl Content {
    /// All of it as one text; `param` is where it stands.
    ///
    /// # Errors
    /// A part that is no text.
    pub fn text(&self, param: &'static str) -> Result<String, Problem> {
        let part = |part: &Part| match (&*part.kind, &part.text) {
            ("text" | "input_text" | "output_text", Some(text)) => Ok(text.clone()),
            (kind, _) => Err(Problem::field(
                param,
                format!("a part of a message is of the type {kind:?}; this model reads text"),
            )),
        };
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::Parts(parts) => parts.iter().map(part).collect(),
        }
    }
}

impl Said {
    /// As the tokenizer takes it.
    ///
    /// # Errors
    /// A part that is no text.
    pub fn message(&self, param: &'static str) -> Result<Message, Problem> {
        let content = self.content.as_ref().map_or_else(|| Ok(String::new()), |c| c.text(param))?;
        // As newer clients call it.
        let role = if self.role == "developer" { "system" } else { &self.role };
        Ok(Message::new(role, content))
    }
}

/// Messages as the tokenizer takes them.
///
/// # Errors
/// A part that is no text.
pub fn messages(said: &[Said]) -> Result<Vec<Message>, Problem> {
    said.iter().map(|said| said.message("messages")).collect()
}
