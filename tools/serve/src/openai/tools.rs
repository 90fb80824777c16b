//! Calls of functions as OpenAI writes them.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    calls::{Calls, Tool},
    constraint::lenient,
    parts::Part,
    problem::Problem,
};

/// Bytes of the longest name.
const LONGEST_NAME: usize = 64;

/// Fields of a request.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct Tools {
    tools: Option<Vec<Listed>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
struct Listed {
    #[serde(rename = "type")]
    kind: String,
    function: Option<Function>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
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
        let mut tools = listed.iter().map(tool).collect::<Result<Vec<_>, _>>()?;
        if let Some(twice) = (1..tools.len()).find(|i| tools[..*i].iter().any(|t| t.name == tools[*i].name)) {
            let message =
                format!("there are two functions {:?}; give each a name of its own", tools[twice].name);
            return Err(Problem::field("tools", message));
        }
        let choice = self.tool_choice.as_ref().unwrap_or(&Value::Null);
        let needed = match (choice.as_str(), choice["function"]["name"].as_str()) {
            (Some("none"), _) => return Ok(None),
            (Some("auto"), _) => false,
            (Some("required"), _) => true,
            (None, Some(name)) => {
                tools.retain(|tool| tool.name == name);
                if tools.is_empty() {
                    let message =
                        format!("tool_choice wants the function {name:?}, which is not among the tools");
                    return Err(Problem::field("tool_choice", message));
                }
                true
            }
            (None, None) if choice.is_null() => false,
            _ => {
                let message = "tool_choice is auto, none, required or {\"type\": \"function\", \"function\": {\"name\": NAME}}";
                return Err(Problem::field("tool_choice", message));
            }
        };
        if tools.is_empty() {
            return match needed {
                true => {
                    Err(Problem::field("tool_choice", "tool_choice wants a call, and there are no tools"))
                }
                false => Ok(None),
            };
        }
        // One function is wanted once.
        let several = self.parallel_tool_calls.unwrap_or(true) && !choice.is_object();
        Ok(Some(Calls { tools, needed, several }))
    }
}

fn tool(listed: &Listed) -> Result<Tool, Problem> {
    let wrong = |message: String| Err(Problem::field("tools", message));
    let Some(function) = listed.function.as_ref().filter(|_| listed.kind == "function") else {
        return wrong(format!(
            "a tool is of the type {:?}; give {{\"type\": \"function\", \"function\": …}}",
            listed.kind
        ));
    };
    let name = &function.name;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(allowed) {
        return wrong(format!(
            "{name:?} is no name of a function: give letters, digits, _ and -, up to {LONGEST_NAME}"
        ));
    }
    let mut parameters =
        function.parameters.clone().filter(|p| !p.is_null()).unwrap_or_else(|| json!({ "properties": {} }));
    match parameters.as_object_mut() {
        Some(fields) => drop(fields.entry("type").or_insert_with(|| json!("object"))),
        None => return wrong(format!("the parameters of {name} are no JSON schema")),
    }
    if parameters["type"] != "object" {
        return wrong(format!(
            "the parameters of {name} are no object; give a schema with \"type\": \"object\""
        ));
    }
    let parameters = if function.strict == Some(true) { parameters } else { lenient(parameters) };
    Ok(Tool { name: name.clone(), description: function.description.clone(), parameters })
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

/// A whole message of these parts.
pub fn whole(parts: Vec<Part>, id: &str) -> Value {
    let (mut text, mut reasoning, mut listed) = (String::new(), String::new(), Vec::<Value>::new());
    let mut arguments = Vec::<String>::new();
    for part in parts {
        match part {
            Part::Text(more) => text.push_str(&more),
            Part::Reasoning(more) => reasoning.push_str(&more),
            Part::Call(name) => {
                let id = format!("call_{id}_{}", listed.len() + 1);
                listed.push(json!({ "id": id, "type": "function", "function": { "name": name } }));
                arguments.push(String::new());
            }
            Part::Arguments(more) => arguments.last_mut().into_iter().for_each(|a| a.push_str(&more)),
        }
    }
    listed.iter_mut().zip(arguments).for_each(|(call, a)| call["function"]["arguments"] = a.into());
    let content = if text.is_empty() && !listed.is_empty() { Value::Null } else { text.into() };
    let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
    if !reasoning.is_empty() {
        message["reasoning_content"] = reasoning.into();
    }
    if !listed.is_empty() {
        message["tool_calls"] = listed.into();
    }
    message
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
