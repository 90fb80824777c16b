//! Texts as clients send them: one or several, and messages with a role and a text or a list of parts.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use yuan::tokenizer::Message;

use crate::{asked::refuse, calls, problem::Problem};

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
    tool_calls: Option<Vec<Called>>,
}

/// A call of a function in a message of the assistant.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Called {
    function: Function,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
struct Function {
    name: String,
    /// JSON, or a text of it.
    #[serde(default)]
    arguments: Value,
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
        Self { role, content, images: None, tool_calls: None }
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
        let (role, content) = with_calls(role, content, self.tool_calls.as_deref().unwrap_or_default());
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

/// A message with its calls, or with the result of one, as role and text.
fn with_calls(role: &str, mut content: String, called: &[Called]) -> (String, String) {
    if role == "tool" || role == "function" {
        // Templates know of questions and answers only.
        return ("user".to_owned(), calls::result(&content));
    }
    for Called { function: Function { name, arguments } } in called {
        let arguments = match arguments {
            Value::Null => String::new(),
            Value::String(text) => text.trim().to_owned(),
            json => json.to_string(),
        };
        let arguments = if arguments.is_empty() { "{}" } else { &arguments };
        content.push_str(if content.is_empty() { "" } else { "\n" });
        content.push_str(&calls::written(name, arguments));
    }
    (role.to_owned(), content)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn calls_and_results_stand_in_the_messages() {
        let called: Vec<Called> = serde_json::from_value(json!([
            { "id": "1", "type": "function", "function": { "name": "f", "arguments": "{\"a\": 1}" } },
            { "id": "2", "type": "function", "function": { "name": "g", "arguments": { "b": [2] } } },
        ]))
        .unwrap();
        let (role, text) = with_calls("assistant", "So:".into(), &called);
        assert_eq!(role, "assistant");
        assert_eq!(
            text,
            "So:\n<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>\n<tool_call>{\"name\": \"g\", \"arguments\": {\"b\":[2]}}</tool_call>"
        );
        assert_eq!(
            with_calls("tool", "7".into(), &[]),
            ("user".into(), "<tool_response>7</tool_response>".into())
        );
    }
}
