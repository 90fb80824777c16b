//! Calls of functions as OpenAI writes them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    calls::{Calls, Choice, Tool},
    messages::Call,
    parts::{Part, Whole},
    problem::Problem,
};

/// Fields of a request.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct Tools {
    tools: Option<Vec<Listed>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ChatTool")]
struct Listed {
    #[serde(rename = "type")]
    kind: String,
    function: Option<Function>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "FunctionDefinition")]
struct Function {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

impl Tools {
    /// The functions that the answer may call, if there are any.
    ///
    /// # Errors
    /// A field that makes no sense.
    pub fn calls(&self) -> Result<Option<Calls>, Problem> {
        let listed = self.tools.as_deref().unwrap_or_default();
        let tools = listed.iter().map(tool).collect::<Result<Vec<_>, _>>()?;
        let named = |choice: &Value| choice["function"]["name"].as_str().map(str::to_owned);
        Calls::new(
            tools,
            &choice(self.tool_choice.as_ref(), named)?,
            self.parallel_tool_calls.unwrap_or(true),
        )
    }
}

/// What `tool_choice` says; `named` finds the name of the one function that is wanted.
///
/// # Errors
/// It makes no sense.
pub fn choice(choice: Option<&Value>, named: impl Fn(&Value) -> Option<String>) -> Result<Choice, Problem> {
    let choice = choice.unwrap_or(&Value::Null);
    match choice.as_str() {
        Some("none") => Ok(Choice::Nothing),
        Some("auto") => Ok(Choice::Any),
        Some("required") => Ok(Choice::Needed),
        None if choice.is_null() => Ok(Choice::Any),
        _ => named(choice).map(Choice::Of).ok_or_else(|| {
            Problem::field(
                "tool_choice",
                "tool_choice is auto, none, required, or names a function of the tools",
            )
        }),
    }
}

fn tool(listed: &Listed) -> Result<Tool, Problem> {
    let Some(function) = listed.function.as_ref().filter(|_| listed.kind == "function") else {
        return Err(Problem::field(
            "tools",
            format!(
                "a tool is of the type {:?}; give {{\"type\": \"function\", \"function\": …}}",
                listed.kind
            ),
        ));
    };
    let (description, parameters) = (function.description.clone(), function.parameters.clone());
    Tool::new(&function.name, description, parameters, function.strict == Some(true))
}

/// An answer's parts as deltas of its message.
#[derive(Clone, Debug, Default)]
pub struct Deltas {
    /// Calls so far.
    calls: usize,
}

impl Deltas {
    /// The delta of a part; `id` is one of the answer.
    pub fn of(&mut self, part: Part, id: &str) -> Value {
        let call = |index: usize, fields: Value| {
            let mut call = json!({ "index": index });
            fields.as_object().into_iter().flatten().for_each(|(name, value)| call[name] = value.clone());
            json!({ "tool_calls": [call] })
        };
        match part {
            Part::Text(text) => json!({ "content": text }),
            Part::Reasoning(text) => json!({ "reasoning_content": text }),
            Part::Call(name) => {
                self.calls += 1;
                let id = format!("call_{id}_{}", self.calls);
                call(
                    self.calls - 1,
                    json!({ "id": id, "type": "function", "function": { "name": name, "arguments": "" } }),
                )
            }
            Part::Arguments(text) => {
                call(self.calls.saturating_sub(1), json!({ "function": { "arguments": text } }))
            }
        }
    }
}

/// A whole message.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AssistantMessage")]
pub struct Message {
    role: &'static str,
    content: Option<String>,
    refusal: (),
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reasoning_content: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ToolCall {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: Call,
}

impl Message {
    /// Of an answer with this name.
    pub fn of(whole: Whole, id: &str) -> Self {
        let Whole { text, reasoning, calls } = whole;
        let content = (!text.is_empty() || calls.is_empty()).then_some(text);
        let call = |(function, number): (Call, usize)| ToolCall {
            id: format!("call_{id}_{number}"),
            kind: "function",
            function,
        };
        let tool_calls = calls.into_iter().zip(1..).map(call).collect();
        Self { role: "assistant", content, refusal: (), reasoning_content: reasoning, tool_calls }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fields: Value) -> Result<Option<Calls>, &'static str> {
        serde_json::from_value::<Tools>(fields).unwrap().calls().map_err(|p| p.param.unwrap())
    }

    fn named(name: &str) -> Value {
        json!({ "type": "function", "function": { "name": name, "parameters": { "type": "object" } } })
    }

    #[test]
    fn a_choice_says_which_functions_there_are() {
        let with = |choice: Value| of(json!({ "tools": [named("a"), named("b-1")], "tool_choice": choice }));
        let found = |choice: Value| with(choice).unwrap().map(|c| (c.tools.len(), c.needed, c.several));
        assert_eq!(found(Value::Null), Some((2, false, true)));
        assert_eq!(found(json!("auto")), Some((2, false, true)));
        assert_eq!(found(json!("required")), Some((2, true, true)));
        assert_eq!(found(json!("none")), None);
        assert_eq!(
            found(json!({ "type": "function", "function": { "name": "b-1" } })),
            Some((1, true, false))
        );
        assert!(
            !of(json!({ "tools": [named("a")], "parallel_tool_calls": false })).unwrap().unwrap().several
        );
        assert_eq!(of(json!({})), Ok(None));
        assert_eq!(with(json!("any")), Err("tool_choice"));
        assert_eq!(with(json!({ "type": "function", "function": { "name": "c" } })), Err("tool_choice"));
        assert_eq!(of(json!({ "tool_choice": "required" })), Err("tool_choice"));
    }

    #[test]
    fn functions_that_make_no_sense_are_refused() {
        for tools in [
            json!([named("a"), named("a")]),
            json!([named("")]),
            json!([named("a b")]),
            json!([{ "type": "web_search" }]),
            json!([{ "type": "function", "function": { "name": "a", "parameters": [] } }]),
            json!([{ "type": "function", "function": { "name": "a", "parameters": { "type": "string" } } }]),
        ] {
            assert_eq!(of(json!({ "tools": tools })), Err("tools"), "{tools}");
        }
    }
}
