//! Texts as clients send them: one or several, and messages with a role and a text or a list of parts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use yuan::tokenizer::Message;

use crate::{asked::refuse, calls::tagged, problem::Problem};

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

    /// How many there are, and the bytes of all together.
    pub fn extent(&self) -> (usize, usize) {
        match self {
            Self::One(text) => (1, text.len()),
            Self::Several(texts) => (texts.len(), texts.iter().map(String::len).sum()),
        }
    }
}

/// A message as clients send it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ChatMessage")]
pub struct Said {
    role: String,
    content: Option<Content>,
    /// As ollama's clients send pictures.
    images: Option<Value>,
    tool_calls: Option<Vec<Called>>,
    /// What the assistant thought before the content.
    #[serde(alias = "reasoning_content", alias = "thinking")]
    reasoning: Option<String>,
}

/// A call of a function in a message of the assistant.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "MessageToolCall")]
pub struct Called {
    function: Function,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "MessageFunctionCall")]
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
        Self { role, content, images: None, tool_calls: None, reasoning: None }
    }

    /// As a turn.
    ///
    /// # Errors
    /// A part that is no text.
    pub fn turn(&self, param: &'static str) -> Result<Turn, Problem> {
        refuse("images", self.images.as_ref(), "a message has images; this model reads text")?;
        let content = self.content.as_ref().map_or_else(|| Ok(String::new()), |c| c.text(param))?;
        let called = self.tool_calls.as_deref().unwrap_or_default();
        let calls = called.iter().map(|Called { function: Function { name, arguments } }| Call {
            name: name.clone(),
            arguments: match arguments {
                Value::Null => String::new(),
                Value::String(text) => text.trim().to_owned(),
                json => json.to_string(),
            },
        });
        let reasoning = self.reasoning.clone().filter(|text| !text.is_empty());
        Ok(Turn { reasoning, calls: calls.collect(), ..Turn::new(&self.role, content) })
    }
}

/// Messages as turns.
///
/// # Errors
/// A part that is no text.
pub fn turns(said: &[Said]) -> Result<Vec<Turn>, Problem> {
    said.iter().map(|said| said.turn("messages")).collect()
}

/// A turn of a conversation, by whatever protocol it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// `tool` is the result of a call.
    pub role: String,
    pub content: String,
    /// What was thought before the content.
    pub reasoning: Option<String>,
    /// What the assistant calls.
    pub calls: Vec<Call>,
}

/// A call of a function in a turn of the assistant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "FunctionCall")]
pub struct Call {
    pub name: String,
    /// JSON, as it was written; nothing stands for no arguments.
    pub arguments: String,
}

impl Turn {
    /// One of text alone. Roles have several names.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        let role = match role {
            "developer" => "system",
            "function" => "tool",
            role => role,
        };
        Self { role: role.to_owned(), content: content.into(), ..Self::default() }
    }

    /// Bytes of its texts.
    pub fn bytes(&self) -> usize {
        let calls = self.calls.iter().map(|call| call.name.len() + call.arguments.len());
        self.role.len()
            + self.content.len()
            + self.reasoning.as_ref().map_or(0, String::len)
            + calls.sum::<usize>()
    }

    /// Whether that goes on with this answer, where the parts of one come as turns of their own: first reasoning, then text, then calls.
    pub fn goes_on_with(&self, next: &Self) -> bool {
        let is_new = next.reasoning.is_some() || !(self.content.is_empty() || next.content.is_empty());
        next.role == self.role && !is_new && (self.calls.is_empty() || next.content.is_empty())
    }

    /// For a template that knows of calls.
    ///
    /// # Errors
    /// The arguments of a call are no JSON object.
    pub fn message(&self) -> Result<Message, Problem> {
        let calls = self.calls.iter().map(|Call { name, arguments }| {
            let arguments = if arguments.is_empty() { "{}" } else { arguments };
            let arguments = serde_json::from_str(arguments).map_err(|e| {
                Problem::field(
                    "messages",
                    format!("the arguments of a call of {name} are no JSON object: {e}"),
                )
            })?;
            Ok(yuan::tokenizer::Call { name: name.clone(), arguments })
        });
        let calls = calls.collect::<Result<_, Problem>>()?;
        Ok(Message { reasoning: self.reasoning.clone(), calls, ..Message::new(&*self.role, &*self.content) })
    }

    /// For a template that knows of questions and answers only: calls and their results are text of our own form.
    pub fn flat(self) -> Message {
        if self.role == "tool" {
            return Message::new("user", tagged::result(&self.content));
        }
        let mut content = self.content;
        for Call { name, arguments } in &self.calls {
            let arguments = if arguments.is_empty() { "{}" } else { arguments };
            content.push_str(if content.is_empty() { "" } else { "\n" });
            content.push_str(&tagged::written(name, arguments));
        }
        Message { reasoning: self.reasoning, ..Message::new(self.role, content) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn calls_and_results_stand_in_the_messages() {
        let said: Said =
            serde_json::from_value(json!({ "role": "assistant", "content": "So:", "tool_calls": [
            { "id": "1", "type": "function", "function": { "name": "f", "arguments": "{\"a\": 1}" } },
            { "id": "2", "type": "function", "function": { "name": "g", "arguments": { "b": [2] } } },
            { "function": { "name": "h" } },
        ] }))
            .unwrap();
        let turn = said.turn("messages").unwrap();
        let message = turn.message().unwrap();
        assert_eq!(message.calls[0].arguments, json!({ "a": 1 }).as_object().cloned().unwrap());
        assert_eq!((message.calls.len(), message.calls[2].arguments.len()), (3, 0));
        let flat = turn.flat();
        assert_eq!((&*flat.role, flat.calls.len()), ("assistant", 0));
        assert_eq!(
            flat.content,
            "So:\n<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>\n<tool_call>{\"name\": \"g\", \"arguments\": {\"b\":[2]}}</tool_call>\n\
             <tool_call>{\"name\": \"h\", \"arguments\": {}}</tool_call>"
        );
        let result = Turn::new("function", "7");
        assert_eq!(result.message().unwrap(), Message::new("tool", "7"));
        assert_eq!(result.flat(), Message::new("user", "<tool_response>7</tool_response>"));
        let odd = Turn {
            calls: vec![Call { name: "f".into(), arguments: "[1]".into() }],
            ..Turn::new("assistant", "")
        };
        assert!(odd.message().unwrap_err().message.contains("no JSON object"));
    }
}
