//! A conversation to a prompt, with what its answer has to be and how that is read: the same for all protocols.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use yuan::{
    config::Family,
    grammar::Grammar,
    tokenizer::{Chat, Message, Tokenizer},
};

use crate::{
    calls::{Calls, Form, Rules},
    constraint::Asked,
    messages::Turn,
    parts::{Parts, Start},
    problem::Problem,
    server::Loaded,
};

/// What a request says, by whatever protocol it came.
#[derive(Debug, Default)]
pub struct Conversation {
    /// What was said.
    pub turns: Vec<Turn>,
    /// The functions that the answer may call.
    pub calls: Option<Calls>,
    /// What the answer has to be.
    pub form: Option<Asked>,
    /// Whether the model thinks before it answers, where one can choose.
    pub thinking: Option<bool>,
}

/// Whether a model thinks before it answers, as clients of OpenAI, vLLM and llama-server say it. A model without a choice passes over it.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct Thinking {
    reasoning_effort: Option<String>,
    chat_template_kwargs: Option<TemplateArguments>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
struct TemplateArguments {
    enable_thinking: Option<bool>,
}

impl Thinking {
    /// What is wanted, if anything is said of it.
    pub fn wanted(&self) -> Option<bool> {
        let said = self.chat_template_kwargs.as_ref().and_then(|kwargs| kwargs.enable_thinking);
        said.or_else(|| self.reasoning_effort.as_deref().map(thinks_with))
    }
}

/// Whether a model thinks with this effort.
pub fn thinks_with(effort: &str) -> bool {
    !matches!(effort, "none" | "minimal")
}

/// What is made of it.
#[derive(Debug)]
pub struct Prepared {
    /// The tokens.
    pub prompt: Vec<u32>,
    /// What the answer has to be.
    pub form: Option<Asked>,
    /// Takes the answer apart.
    pub parts: Parts,
}

impl Conversation {
    /// The prompt, closed so that the model answers.
    ///
    /// # Errors
    /// The template refuses the messages; a grammar cannot be combined with what else is asked for.
    pub fn prepare(self, model: &Loaded) -> Result<Prepared, Problem> {
        let tokenizer = model.served.engine.tokenizer();
        let thinking = self.thinking.filter(|_| tokenizer.has_thinking());
        let calls = self.calls.as_ref().map(|calls| (calls, calls.form(tokenizer)));
        let form = answer_form(tokenizer, calls.as_ref(), self.form.as_ref(), thinking)?;
        let start = match thinking {
            None => Start::Open,
            Some(true) => Start::Reasoning,
            Some(false) => Start::Text,
        };
        let parts = Parts::new(calls.as_ref().map(|(_, form)| form.clone()), start);
        let prompt = prompt(tokenizer, self.turns, self.calls.as_ref(), thinking, true)?;
        Ok(Prepared { prompt, form, parts })
    }
}

/// The tokens of a conversation.
///
/// # Errors
/// The template refuses the messages.
pub fn prompt(
    tokenizer: &Tokenizer,
    mut turns: Vec<Turn>,
    calls: Option<&Calls>,
    thinking: Option<bool>,
    add_generation_prompt: bool,
) -> Result<Vec<u32>, Problem> {
    let mut tools: Vec<Value> = Vec::new();
    if let Some(calls) = calls {
        match calls.form(tokenizer) {
            Form::Tagged => turns = calls.told(turns),
            Form::Python(_) => tools.extend(calls.tools.iter().map(|tool| tool.json())),
        }
    }
    let mut messages: Vec<Message> = match tokenizer.has_tools() {
        true => turns.iter().map(Turn::message).collect::<Result<_, _>>()?,
        false => turns.into_iter().map(Turn::flat).collect(),
    };
    if tokenizer.vocab().family == Family::Yuan3 {
        messages = with_one_system(messages);
    }
    let chat = Chat { messages: &messages, add_generation_prompt, tools: &tools, thinking };
    Ok(tokenizer.prompt(&chat)?)
}

/// One message with all that was said as the system: the template of Yuan 3.0 shows the last one only, and clients send several.
fn with_one_system(messages: Vec<Message>) -> Vec<Message> {
    let (system, rest): (Vec<_>, Vec<_>) = messages.into_iter().partition(|m| m.role == "system");
    let said: Vec<&str> = system.iter().map(|message| message.content.as_str()).collect();
    let one = (!said.is_empty()).then(|| Message::new("system", said.join("\n\n")));
    one.into_iter().chain(rest).collect()
}

/// What an answer has to be: of a form that is asked for, with the calls that it may have and the reasoning that may stand before it.
fn answer_form(
    tokenizer: &Tokenizer,
    calls: Option<&(&Calls, Form)>,
    asked: Option<&Asked>,
    thinking: Option<bool>,
) -> Result<Option<Asked>, Problem> {
    let form = asked.map(|asked| &asked.grammar);
    let param = if calls.is_some() { "tools" } else { asked.map_or("", |asked| asked.param) };
    let wrong = |why: String| Problem::field(param, why);
    let rules = match calls {
        Some((calls, Form::Tagged)) => calls.tagged(form).map_err(wrong)?,
        Some((calls, Form::Python(_))) => calls.python(form).map_err(wrong)?,
        None if asked.is_none() => return Ok(None),
        None if thinks(tokenizer, thinking).is_empty() => return Ok(asked.cloned()),
        None => form.map(Rules::of).transpose().map_err(wrong)?.unwrap_or_default(),
    };
    Ok(Some(Asked { grammar: behind(thinks(tokenizer, thinking), rules), param }))
}

/// The reasoning before an answer, as a rule has it.
fn thinks(tokenizer: &Tokenizer, thinking: Option<bool>) -> &'static str {
    match thinking {
        _ if !tokenizer.has_thinking() => "",
        Some(false) => "",
        Some(true) => "thought ",
        None => "(<think> thought)? ",
    }
}

/// The grammar of answers behind that.
fn behind(before: &str, mut rules: Rules) -> Grammar {
    if !before.is_empty() {
        rules.answer = format!("{before}({})", rules.answer);
        rules.others.push_str("thought: /(.|\\n)*/ </think> /\\n*/\n");
    }
    rules.grammar()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::{
        Choice, Tool,
        tests::{accepted, accepted_with},
    };

    #[test]
    fn an_answer_of_a_form_stands_behind_its_reasoning() {
        let tool = Tool::new("f", None, None, true).unwrap();
        let calls = Calls::new(vec![tool], &Choice::Any, true).unwrap().unwrap();
        let json = Rules::of(&Grammar::JsonObject).unwrap();
        let marks = ["<think>", "</think>"];
        let called = behind("(<think> thought)? ", calls.python(None).unwrap());
        let (thought, open) = (behind("thought ", json.clone()), behind("(<think> thought)? ", json.clone()));
        for (grammar, text) in [
            (&thought, "a {1}\n</think>\n\n{\"a\": 1}"),
            (&open, "<think>a</think>{}"),
            (&open, "{}"),
            (&called, "<think>\n[f(\n</think>\n\n[f()]"),
            (&called, "[f()]"),
            (&called, "So"),
        ] {
            assert_eq!(accepted_with(grammar, text, &marks), (text.len(), true), "{text}");
        }
        assert_eq!(accepted_with(&thought, "</think>a", &marks), ("</think>".len(), false));
        assert_eq!(accepted_with(&open, "a", &marks).0, 0);
        assert_eq!(accepted(&behind("", json), "{}"), (2, true));
    }
}
