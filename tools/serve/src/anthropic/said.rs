//! Messages and functions as Anthropic writes them.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    calls::{Calls, Choice, Tool},
    messages::{Call, Content, Turn},
    problem::Problem,
};

/// A message.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "AnthropicMessage")]
pub struct Said {
    role: String,
    content: Blocks,
}

/// A text, or blocks.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Blocks {
    Text(String),
    Blocks(Vec<Block>),
}

/// A block; which of its fields there are is said by its type.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
struct Block {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    thinking: Option<String>,
    name: Option<String>,
    input: Option<Value>,
    content: Option<Content>,
}

impl Said {
    /// As turns: the results of calls are turns of their own, in their order.
    ///
    /// # Errors
    /// A block that is neither text nor of calls.
    pub fn turns(self) -> Result<Vec<Turn>, Problem> {
        let wrong = |message: String| Problem::field("messages", message);
        let blocks = match self.content {
            Blocks::Text(text) => return Ok(vec![Turn::new(&self.role, text)]),
            Blocks::Blocks(blocks) => blocks,
        };
        let (mut turns, mut said) = (Vec::new(), Turn::new(&self.role, ""));
        for block in blocks {
            match (&*block.kind, block.text, block.name) {
                ("text", Some(text), _) => said.content.push_str(&text),
                ("thinking", ..) => {
                    said.reasoning.get_or_insert_default().push_str(&block.thinking.unwrap_or_default())
                }
                ("redacted_thinking", ..) => {}
                ("tool_use", _, Some(name)) => {
                    let arguments = block
                        .input
                        .filter(|input| !input.is_null())
                        .map_or_else(String::new, |i| i.to_string());
                    said.calls.push(Call { name, arguments });
                }
                ("tool_result", ..) => {
                    let result = block.content.map_or_else(|| Ok(String::new()), |c| c.text("messages"))?;
                    turns.push(Turn::new("tool", result));
                }
                (kind, ..) => {
                    return Err(wrong(format!(
                        "a block of a message is of the type {kind:?}; give text, tool_use or tool_result with their fields"
                    )));
                }
            }
        }
        if said != Turn::new(&self.role, "") || turns.is_empty() {
            turns.push(said);
        }
        Ok(turns)
    }
}

/// A function.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "AnthropicTool")]
pub struct Listed {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: String,
    description: Option<String>,
    input_schema: Option<Value>,
    strict: Option<bool>,
}

/// Which of them may be called.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "AnthropicToolChoice")]
pub struct ToolChoice {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

/// The functions that the answer may call, if there are any.
///
/// # Errors
/// A field that makes no sense.
pub fn calls(tools: Option<&[Listed]>, choice: Option<&ToolChoice>) -> Result<Option<Calls>, Problem> {
    let tool = |listed: &Listed| match listed.kind.as_deref() {
        None | Some("custom") => {
            let (description, schema) = (listed.description.clone(), listed.input_schema.clone());
            Tool::new(&listed.name, description, schema, listed.strict == Some(true))
        }
        Some(kind) => {
            let message = format!(
                "a tool is of the type {kind:?}; give functions of your own, with a name and an input_schema"
            );
            Err(Problem::field("tools", message))
        }
    };
    let tools = tools.unwrap_or_default().iter().map(tool).collect::<Result<Vec<_>, _>>()?;
    let several = choice.and_then(|choice| choice.disable_parallel_tool_use) != Some(true);
    let choice = match choice.map(|choice| (&*choice.kind, &choice.name)) {
        None | Some(("auto", _)) => Choice::Any,
        Some(("any", _)) => Choice::Needed,
        Some(("none", _)) => Choice::Nothing,
        Some(("tool", Some(name))) => Choice::Of(name.clone()),
        Some((kind, _)) => {
            let message =
                format!("tool_choice has the type {kind:?}; give auto, any, none, or tool with a name");
            return Err(Problem::field("tool_choice", message));
        }
    };
    Calls::new(tools, &choice, several)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn turns(said: Value) -> Result<Vec<Turn>, String> {
        serde_json::from_value::<Said>(said).unwrap().turns().map_err(|problem| problem.message)
    }

    #[test]
    fn blocks_are_turns() {
        let answer = turns(json!({ "role": "assistant", "content": [
            { "type": "thinking", "thinking": "hm", "signature": "" }, { "type": "text", "text": "So:" },
            { "type": "tool_use", "id": "1", "name": "f", "input": { "a": 1 } },
        ] }))
        .unwrap();
        let call = Call { name: "f".into(), arguments: "{\"a\":1}".into() };
        let wanted =
            Turn { reasoning: Some("hm".into()), calls: vec![call], ..Turn::new("assistant", "So:") };
        assert_eq!(answer, [wanted]);
        let results = turns(json!({ "role": "user", "content": [
            { "type": "tool_result", "tool_use_id": "1", "content": "7" },
            { "type": "tool_result", "tool_use_id": "2", "content": [{ "type": "text", "text": "8" }] },
            { "type": "tool_result", "tool_use_id": "3" }, { "type": "text", "text": "And?" },
        ] }));
        let tool = |text: &str| Turn::new("tool", text);
        assert_eq!(results.unwrap(), [tool("7"), tool("8"), tool(""), Turn::new("user", "And?")]);
        assert_eq!(turns(json!({ "role": "user", "content": [] })).unwrap(), [Turn::new("user", "")]);
        assert!(
            turns(json!({ "role": "user", "content": [{ "type": "image" }] })).unwrap_err().contains("image")
        );
    }

    #[test]
    fn functions_and_choices() {
        let tools: Vec<Listed> = serde_json::from_value(
            json!([{ "name": "a", "input_schema": { "type": "object" } }, { "name": "b" }]),
        )
        .unwrap();
        let found = |choice: Value| {
            let choice: Option<ToolChoice> = serde_json::from_value(choice).unwrap();
            calls(Some(&tools), choice.as_ref())
                .map(|c| c.map(|c| (c.tools.len(), c.needed, c.several)))
                .map_err(|p| p.param.unwrap())
        };
        assert_eq!(found(Value::Null), Ok(Some((2, false, true))));
        assert_eq!(
            found(json!({ "type": "auto", "disable_parallel_tool_use": true })),
            Ok(Some((2, false, false)))
        );
        assert_eq!(found(json!({ "type": "any" })), Ok(Some((2, true, true))));
        assert_eq!(found(json!({ "type": "none" })), Ok(None));
        assert_eq!(found(json!({ "type": "tool", "name": "b" })), Ok(Some((1, true, false))));
        assert_eq!(found(json!({ "type": "tool" })), Err("tool_choice"));
        let other: Vec<Listed> =
            serde_json::from_value(json!([{ "type": "bash_20250124", "name": "bash" }])).unwrap();
        assert!(calls(Some(&other), None).unwrap_err().message.contains("bash_20250124"));
    }
}
