//! A conversation as templates take it.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// One turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Who says it: "system", "user", "assistant", "tool", or what else the template knows.
    pub role: String,
    /// What is said; special strings in it stay text.
    pub content: String,
    /// What the assistant thought before it.
    pub reasoning: Option<String>,
    /// The functions that the assistant calls.
    pub calls: Vec<Call>,
}

impl Message {
    /// A message of `role` that is nothing but text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }
}

/// A call of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The function.
    pub name: String,
    /// Its arguments by name.
    pub arguments: Map<String, Value>,
}

/// What a prompt is made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chat<'a> {
    /// What was said.
    pub messages: &'a [Message],
    /// The prompt is closed so that the model answers.
    pub add_generation_prompt: bool,
    /// Functions that the model may call, as OpenAI writes them: `{"type": "function", "function": {"name", "description", "parameters"}}`.
    pub tools: &'a [Value],
    /// Whether the model is to think before it answers, where its template lets one choose.
    pub thinking: Option<bool>,
}

/// A conversation that came as JSON, as OpenAI's clients write it: `{"messages": […], "tools": […], "enable_thinking": true}`. With
/// `"add_generation_prompt": false` the prompt is not closed.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    messages: Vec<Message>,
    tools: Vec<Value>,
    thinking: Option<bool>,
    add_generation_prompt: bool,
}

impl Conversation {
    /// Reads the JSON. Contents are texts, lists of parts of the type `text`, or null; arguments of calls are objects, or texts of them. Other fields
    /// are passed over.
    ///
    /// # Errors
    /// [`Error::Argument`], which says what is not as it should be.
    pub fn parse(json: &str) -> Result<Self> {
        let wrong = |what: String| Error::Argument(format!("the conversation: {what}"));
        let whole: Value = serde_json::from_str(json).map_err(|e| wrong(e.to_string()))?;
        let messages =
            whole["messages"].as_array().ok_or_else(|| wrong("there is no list of messages".into()))?;
        let messages = messages
            .iter()
            .zip(1..)
            .map(|(said, number)| message(said).map_err(|what| wrong(format!("message {number}: {what}"))));
        let flag = |name: &str| match &whole[name] {
            Value::Null => Ok(None),
            Value::Bool(flag) => Ok(Some(*flag)),
            other => Err(wrong(format!("{name} is {other}; give true or false"))),
        };
        let tools = match &whole["tools"] {
            Value::Null => Vec::new(),
            Value::Array(tools) => tools.clone(),
            _ => return Err(wrong("tools is no list".into())),
        };
        Ok(Self {
            messages: messages.collect::<Result<_>>()?,
            tools,
            thinking: flag("enable_thinking")?,
            add_generation_prompt: flag("add_generation_prompt")?.unwrap_or(true),
        })
    }

    /// For [`Tokenizer::prompt`](super::Tokenizer::prompt).
    pub fn chat(&self) -> Chat<'_> {
        Chat {
            messages: &self.messages,
            add_generation_prompt: self.add_generation_prompt,
            tools: &self.tools,
            thinking: self.thinking,
        }
    }
}

fn message(said: &Value) -> Result<Message, String> {
    let role = said["role"].as_str().ok_or("it has no role")?;
    let part =
        |part: &Value| part["text"].as_str().map(str::to_owned).ok_or("a part of its content is no text");
    let content = match &said["content"] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(part).collect::<Result<_, _>>()?,
        _ => return Err("its content is no text".into()),
    };
    let call = |call: &Value| {
        let function = call.get("function").unwrap_or(call);
        let name = function["name"].as_str().ok_or("a call has no name")?;
        let arguments = match &function["arguments"] {
            Value::Null => Ok(Map::new()),
            Value::String(text) => serde_json::from_str(text).map_err(|e| e.to_string()),
            Value::Object(fields) => Ok(fields.clone()),
            _ => Err("they are of another type".to_owned()),
        };
        let arguments = arguments.map_err(|e| format!("the arguments of {name} are no JSON object: {e}"))?;
        Ok(Call { name: name.to_owned(), arguments })
    };
    let calls = said["tool_calls"].as_array().into_iter().flatten().map(call);
    Ok(Message {
        reasoning: said["reasoning_content"].as_str().map(str::to_owned),
        calls: calls.collect::<Result<_, String>>()?,
        ..Message::new(role, content)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_conversation_is_said() {
        for (json, part) in [
            ("{", "line 1"),
            ("{}", "no list of messages"),
            (r#"{"messages": [{}]}"#, "message 1: it has no role"),
            (r#"{"messages": [{"role": "user", "content": 3}]}"#, "no text"),
            (r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#, "no text"),
            (
                r#"{"messages": [{"role": "a", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}]}"#,
                "arguments of f",
            ),
            (r#"{"messages": [{"role": "a", "tool_calls": [{}]}]}"#, "no name"),
            (r#"{"messages": [], "tools": {}}"#, "tools is no list"),
            (r#"{"messages": [], "enable_thinking": "yes"}"#, "true or false"),
        ] {
            let error = Conversation::parse(json).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
    }
}
