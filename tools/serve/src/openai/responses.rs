//! `/v1/responses`: an answer as a list of items, which the next request may go on from.

use axum::{
    Json,
    extract::{Path, State},
    response::{self, IntoResponse},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    output::{About, Answer, Response},
    tools,
};
use crate::{
    asked::{Asked, refuse},
    calls::{Calls, Tool},
    constraint::{self, constrain},
    conversation::{Conversation, Prepared, thinks_with},
    messages::{Call, Content, Said, Turn},
    problem::Problem,
    sampling::Sampling,
    server::{Shared, now},
    stream::{collect_one, stream},
    wanted::{self, Wanted, most},
    work::start,
};

/// What `include` calls the probabilities of tokens.
const LOGPROBS: &str = "message.output_text.logprobs";

/// The body of a request.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ResponseRequest")]
pub struct Request {
    model: Option<String>,
    #[serde(default)]
    input: Input,
    instructions: Option<String>,
    previous_response_id: Option<String>,
    store: Option<bool>,
    stream: Option<bool>,
    max_output_tokens: Option<i64>,
    top_logprobs: Option<u32>,
    include: Option<Vec<String>>,
    metadata: Option<Map<String, Value>>,
    text: Option<Value>,
    tools: Option<Vec<Listed>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    reasoning: Option<Reasoning>,
    background: Option<Value>,
    conversation: Option<Value>,
    prompt: Option<Value>,
    #[serde(flatten)]
    sampling: Sampling,
}

/// A function.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[schemars(rename = "ResponseTool")]
struct Listed {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

/// How much a model thinks.
#[derive(Debug, Deserialize, JsonSchema)]
struct Reasoning {
    effort: Option<String>,
}

/// A text, or items.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Input {
    Text(String),
    Items(Vec<Item>),
}

impl Default for Input {
    fn default() -> Self {
        Self::Items(Vec::new())
    }
}

/// An item; which of its fields there are is said by its type.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "InputItem")]
struct Item {
    #[serde(rename = "type")]
    kind: Option<String>,
    role: Option<String>,
    content: Option<Content>,
    name: Option<String>,
    arguments: Option<String>,
    output: Option<Content>,
}

impl Item {
    fn turn(self) -> Result<Turn, Problem> {
        match (self.kind.as_deref(), self.role, self.name, self.output) {
            (None | Some("message"), Some(role), ..) => Said::new(role, self.content).turn("input"),
            (Some("function_call"), _, Some(name), _) => {
                let calls = vec![Call { name, arguments: self.arguments.unwrap_or_default() }];
                Ok(Turn { calls, ..Turn::new("assistant", "") })
            }
            (Some("function_call_output"), .., Some(output)) => Ok(Turn::new("tool", output.text("input")?)),
            (Some("reasoning"), ..) => {
                let reasoning = self.content.map(|content| content.text("input")).transpose()?;
                Ok(Turn {
                    reasoning: reasoning.filter(|text| !text.is_empty()),
                    ..Turn::new("assistant", "")
                })
            }
            (kind, ..) => Err(Problem::field(
                "input",
                format!(
                    "an item of the input is of the type {:?}; give messages with a role and a content, or calls of functions and their outputs",
                    kind.unwrap_or("none")
                ),
            )),
        }
    }
}

impl Input {
    /// Items of an answer that belong together are one turn.
    fn turns(self) -> Result<Vec<Turn>, Problem> {
        let items = match self {
            Self::Text(text) => return Ok(vec![Turn::new("user", text)]),
            Self::Items(items) => items,
        };
        let mut turns: Vec<Turn> = Vec::with_capacity(items.len());
        for item in items {
            let turn = item.turn()?;
            match turns.last_mut() {
                Some(last) if last.role == "assistant" && last.goes_on_with(&turn) => {
                    last.content.push_str(&turn.content);
                    last.calls.extend(turn.calls);
                }
                _ => turns.push(turn),
            }
        }
        Ok(turns)
    }
}

/// Answers.
///
/// # Errors
/// What cannot be answered.
pub async fn create(
    State(server): State<Shared>,
    Asked(model, request): Asked<Request>,
) -> Result<response::Response, Problem> {
    let none = "there is none of it here; leave it out";
    for (name, value) in [
        ("background", &request.background),
        ("conversation", &request.conversation),
        ("prompt", &request.prompt),
    ] {
        refuse(name, value.as_ref(), &format!("{name}: {none}"))?;
    }
    let format = request.text.as_ref().and_then(|text| text.get("format")).filter(|f| !f.is_null()).cloned();
    let form = format.as_ref().map(|format| constraint::openai("text.format", format)).transpose()?.flatten();
    let top = wanted::top(request.top_logprobs)?;
    let scored = top > 0 || request.include.iter().flatten().any(|name| name == LOGPROBS);
    let calls = calls(request.tools.as_deref(), request.tool_choice.as_ref(), request.parallel_tool_calls)?;
    let mut said = match &request.previous_response_id {
        None => Vec::new(),
        Some(id) => server.responses().said(id).ok_or_else(|| previous(id))?.to_vec(),
    };
    said.extend(request.input.turns()?);
    if said.is_empty() {
        return Err(Problem::field("input", "there is no input; give a text or messages"));
    }
    let instructions = request.instructions.iter().map(|text| Turn::new("system", &**text));
    let turns = instructions.chain(said.iter().cloned()).collect();
    let effort = request.reasoning.and_then(|reasoning| reasoning.effort);
    let thinking = effort.as_deref().map(thinks_with);
    let Prepared { prompt, form, parts } = Conversation { turns, calls, form, thinking }.prepare(&model)?;
    let wanted = Wanted {
        most: most("max_output_tokens", request.max_output_tokens, &[])?,
        top: scored.then_some(top),
        ..Wanted::one(&request.sampling)
    };
    let mut jobs = wanted.jobs(&model, vec![prompt])?;
    constrain(&mut jobs, &model, form.as_ref())?;
    let settings = jobs[0].settings.clone();
    let answers = start(&server, &model, server.gate.enter()?, jobs);
    let id = server.request("resp");
    let about = About {
        created: now().as_secs(),
        name: model.name(request.model.as_deref()),
        instructions: request.instructions,
        previous: request.previous_response_id,
        most: request.max_output_tokens,
        metadata: request.metadata.unwrap_or_default(),
        format: format.unwrap_or_else(|| json!({ "type": "text" })),
        tools: json!(request.tools.unwrap_or_default()),
        tool_choice: request.tool_choice.unwrap_or_else(|| json!("auto")),
        several: request.parallel_tool_calls.unwrap_or(true),
        effort,
        store: request.store.unwrap_or(true),
        settings,
    };
    let writer = Answer::new(id, about, said, parts, scored, server, model);
    if request.stream.unwrap_or(false) {
        return Ok(stream(answers, writer));
    }
    let (one, mut writer) = (collect_one(answers).await?, writer);
    Ok(Json(writer.whole(&one)).into_response())
}

/// The functions that the answer may call, if there are any.
fn calls(
    tools: Option<&[Listed]>,
    choice: Option<&Value>,
    several: Option<bool>,
) -> Result<Option<Calls>, Problem> {
    let tool = |listed: &Listed| match (&*listed.kind, &listed.name) {
        ("function", Some(name)) => {
            let (description, parameters) = (listed.description.clone(), listed.parameters.clone());
            Tool::new(name, description, parameters, listed.strict != Some(false))
        }
        (kind, _) => {
            let message =
                format!("a tool is of the type {kind:?}; give {{\"type\": \"function\", \"name\": …}}");
            Err(Problem::field("tools", message))
        }
    };
    let tools = tools.unwrap_or_default().iter().map(tool).collect::<Result<Vec<_>, _>>()?;
    let named = |choice: &Value| choice["name"].as_str().map(str::to_owned);
    Calls::new(tools, &tools::choice(choice, named)?, several.unwrap_or(true))
}

/// Tells of a response that was kept.
///
/// # Errors
/// It is not there, or no more.
pub async fn get(State(server): State<Shared>, Path(id): Path<String>) -> Result<Json<Response>, Problem> {
    server.responses().response(&id).cloned().map(Json).ok_or_else(|| missing(&id))
}

/// What is told of a response that was forgotten.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Deleted {
    id: String,
    object: &'static str,
    deleted: bool,
}

/// Forgets a response.
///
/// # Errors
/// It is not there, or no more.
pub async fn delete(State(server): State<Shared>, Path(id): Path<String>) -> Result<Json<Deleted>, Problem> {
    match server.responses().forget(&id) {
        true => Ok(Json(Deleted { id, object: "response", deleted: true })),
        false => Err(missing(&id)),
    }
}

const GONE: &str = "it was not stored, was deleted, or went to make room for newer ones";

fn missing(id: &str) -> Problem {
    Problem { message: format!("there is no response {id}: {GONE}"), ..Problem::not_found() }
}

fn previous(id: &str) -> Problem {
    let message =
        format!("there is no response {id} to go on from: {GONE}; send the whole conversation as input");
    Problem { code: Some("previous_response_not_found"), ..Problem::field("previous_response_id", message) }
}
