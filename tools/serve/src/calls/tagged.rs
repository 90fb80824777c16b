//! Calls in a form of our own, for models whose template has none: the prompt tells of the functions, and of the form.

use serde_json::{Value, json};
use yuan::grammar::Grammar;

use super::{Calls, Rules, quote};
use crate::messages::Turn;

/// What stands before a call, and behind it.
pub const BEGIN: &str = "<tool_call>";
pub const END: &str = "</tool_call>";
/// What stands in a call before the name of the function, and behind it.
pub const NAME: &str = "{\"name\": ";
pub const ARGUMENTS: &str = ", \"arguments\": ";

impl Calls {
    /// What the model is told.
    pub fn instructions(&self) -> String {
        let mut text = format!(
            "You can call functions. To call one, write {BEGIN}{NAME}\"the name\"{ARGUMENTS}{{…}}}}{END}, and its result comes with the next message. The functions, with JSON schemas of their arguments:\n"
        );
        for tool in &self.tools {
            let told =
                json!({ "name": tool.name, "description": tool.description, "parameters": tool.parameters });
            text.push_str(&format!("{told}\n"));
        }
        text
    }

    /// The messages with what the model is told before them.
    pub fn told(&self, mut messages: Vec<Turn>) -> Vec<Turn> {
        let text = self.instructions();
        match messages.first_mut() {
            Some(first) if first.role == "system" => first.content = format!("{}\n\n{text}", first.content),
            _ => messages.insert(0, Turn::new("system", text.trim_end())),
        }
        messages
    }

    /// The rules of answers, which are `form` where they are no calls and that is asked for.
    ///
    /// # Errors
    /// The form is a grammar of its own.
    pub fn tagged(&self, form: Option<&Grammar>) -> Result<Rules, String> {
        let mut others = String::new();
        let (text, before) = match form {
            _ if self.needed => (String::new(), quote(BEGIN)),
            None => {
                // The second ends with the first mark in it, so that no mark is text.
                others.push_str(&format!("text: /(.|\\n)*/\nmarked[suffix={}]: /(.|\\n)*/\n", quote(BEGIN)));
                ("text | ".to_owned(), "marked".to_owned())
            }
            Some(form) => {
                others.push_str(&format!("text: {}\n", Rules::of(form)?.answer));
                ("text | ".to_owned(), quote(BEGIN))
            }
        };
        let more =
            if self.several { format!(" ({} call)*", quote(&format!("\n{BEGIN}"))) } else { String::new() };
        let names: Vec<_> = (0..self.tools.len()).map(|i| format!("f{i}")).collect();
        others.push_str(&format!("call: {}\n", names.join(" | ")));
        for (rule, tool) in names.iter().zip(&self.tools) {
            let head = format!("{NAME}{}{ARGUMENTS}", quote(&tool.name));
            let tail = quote(&format!("}}{END}"));
            let parameters = Grammar::spaced(&tool.parameters);
            others.push_str(&format!("{rule}: {} %json {parameters} {tail}\n", quote(&head)));
        }
        Ok(Rules { answer: format!("{text}{before} call{more}"), others })
    }
}

/// A call as it stands in an answer, for the messages before the next one.
pub fn written(name: &str, arguments: &str) -> String {
    format!("{BEGIN}{NAME}{}{ARGUMENTS}{arguments}}}{END}", Value::from(name))
}

/// The result of a call, for the messages.
pub fn result(content: &str) -> String {
    format!("<tool_response>{content}</tool_response>")
}

#[cfg(test)]
mod tests {
    use super::{super::Tool, *};

    /// How much of a text an answer may have, and whether it may end there.
    fn accepted(calls: &Calls, form: Option<&Grammar>, text: &str) -> (usize, bool) {
        super::super::tests::accepted(&calls.tagged(form).unwrap().grammar(), text)
    }

    fn calls(needed: bool, several: bool) -> Calls {
        let parameters = json!({
            "type": "object", "properties": { "n": { "type": "integer" } }, "required": ["n"], "additionalProperties": false,
        });
        let tool = |name: &str| Tool { name: name.into(), description: None, parameters: parameters.clone() };
        Calls { tools: vec![tool("春"), tool("b")], needed, several }
    }

    #[test]
    fn an_answer_is_text_or_calls_that_meet_their_schemas() {
        let call = written("春", "{\"n\": 12}");
        let two = format!("{call}\n{}", written("b", "{\"n\":-3}"));
        let whole = |text: &str| (text.len(), true);
        let (auto, needed, one) = (calls(false, true), calls(true, true), calls(false, false));
        for text in [
            "So, 春 < 3 <tool_ call>",
            "<tool",
            &call,
            &two,
            &format!("I ask: {two}"),
            &format!("<think>a</think>{call}"),
        ] {
            assert_eq!(accepted(&auto, None, text), whole(text), "{text}");
        }
        assert_eq!(accepted(&needed, None, &two), whole(&two));
        assert_eq!(accepted(&one, None, &call), whole(&call));
        assert_eq!(accepted(&one, None, &two), (call.len(), false));
        assert_eq!(accepted(&needed, None, "So").0, 0);
        assert_eq!(accepted(&needed, None, BEGIN), (BEGIN.len(), false));
        // What is almost a call ends where it is none any more.
        for (text, good) in [
            (written("c", "{\"n\": 12}"), format!("{BEGIN}{NAME}\"")),
            (written("b", "{\"n\": \"12\"}"), format!("{BEGIN}{NAME}\"b\"{ARGUMENTS}{{\"n\": ")),
            (format!("x{}", written("b", "{}")), format!("x{BEGIN}{NAME}\"b\"{ARGUMENTS}{{")),
        ] {
            assert_eq!(accepted(&auto, None, &text), (good.len(), false), "{text}");
        }
    }

    #[test]
    fn an_answer_may_be_json_or_calls() {
        let (auto, call) = (calls(false, true), written("b", "{\"n\": 1}"));
        let schema = Grammar::JsonSchema(json!({ "enum": ["x"] }));
        for (form, text) in [
            (&schema, "\"x\""),
            (&schema, &*call),
            (&Grammar::JsonObject, "{\"a\": []}"),
            (&Grammar::JsonObject, &call),
        ] {
            assert_eq!(accepted(&auto, Some(form), text), (text.len(), true), "{text}");
        }
        assert_eq!(accepted(&auto, Some(&schema), "So").0, 0);
        assert!(auto.tagged(Some(&Grammar::Regex("a".into()))).is_err());
    }

    #[test]
    fn the_model_is_told_of_the_functions_once() {
        let system = Turn::new("system", "Be brief.");
        for messages in [vec![system, Turn::new("user", "x")], vec![Turn::new("user", "x")]] {
            let brief = messages.len() == 2;
            let told = calls(false, true).told(messages);
            assert_eq!((told.len(), &*told[0].role, &*told[1].content), (2, "system", "x"));
            assert_eq!(told[0].content.starts_with("Be brief.\n\n"), brief);
            assert!(told[0].content.contains("\"name\":\"春\"") && told[0].content.contains(BEGIN));
        }
    }
}
