//! Texts as clients send them: one or several, and messages with a role and a text or a list of parts.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use yuan::tokenizer::Message;

use crate::{asked::refuse, problem::Problem};

/// One text or several.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Texts {
    /// The text.
    One(String),
    /// All of them.
    Several(Vec<String>),
}

impl Texts {
    /// All of them.
    pub fn list(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Several(texts) => texts,
        }
    }
}

/// A message as clients send it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Said {
    role: String,
    content: Option<Content>,
    /// As ollama's clients send pictures.
    images: Option<Value>,
}

/// A text, or parts of one.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Content {
    /// The text.
    Text(String),
    /// Its parts.
    Parts(Vec<Part>),
}

/// A part of a message.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
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
    /// With this role.
    pub fn new(role: String, content: Option<Content>) -> Self {
        Self { role, content, images: None }
    }

    /// As the tokenizer takes it.
    ///
    /// # Errors
    /// A part that is no text.
    pub fn message(&self, param: &'static str) -> Result<Message, Problem> {
        refuse("images", self.images.as_ref(), "a message has images; this model reads text")?;
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
