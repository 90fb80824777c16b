//! Calls of a client's functions, for models whose template has no form for them: the prompt tells of the functions, a grammar lets the answer be a
//! call of one and nothing that is almost one, and [`Parts`](crate::parts::Parts) finds the calls in the answer.

use serde_json::{Value, json};
use yuan::{grammar::Grammar, tokenizer::Message};

/// What stands before a call, and behind it.
pub const BEGIN: &str = "<tool_call>";
pub const END: &str = "</tool_call>";
/// What stands in a call before the name of the function, and behind it.
pub const NAME: &str = "{\"name\": ";
pub const ARGUMENTS: &str = ", \"arguments\": ";

/// A function of the client.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// The JSON schema of its arguments, an object.
    pub parameters: Value,
}

/// The functions that an answer may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Calls {
    /// At least one.
    pub tools: Vec<Tool>,
    /// The answer has to be a call.
    pub needed: bool,
    /// It may be several.
    pub several: bool,
}

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
    pub fn told(&self, mut messages: Vec<Message>) -> Vec<Message> {
        let text = self.instructions();
        match messages.first_mut() {
            Some(first) if first.role == "system" => first.content = format!("{}\n\n{text}", first.content),
            _ => messages.insert(0, Message::new("system", text.trim_end())),
        }
        messages
    }

    /// The grammar of answers, which are JSON of a schema where they are no calls and that is asked for.
    ///
    /// # Errors
    /// Another grammar is asked for.
    pub fn grammar(&self, form: Option<&Grammar>) -> Result<Grammar, String> {
        let quote = |text: &str| Value::from(text).to_string();
        let mut lark = String::new();
        let (text, before) = match form {
            _ if self.needed => ("", quote(BEGIN)),
            None => {
                // The second ends with the first mark in it, so that no mark is text.
                lark.push_str(&format!("text: /(.|\\n)*/\nmarked[suffix={}]: /(.|\\n)*/\n", quote(BEGIN)));
                ("text | ", "marked".to_owned())
            }
            Some(Grammar::JsonObject) => {
                lark.push_str("text: %json {\"type\": \"object\"}\n");
                ("text | ", quote(BEGIN))
            }
            Some(Grammar::JsonSchema(schema)) => {
                lark.push_str(&format!("text: %json {}\n", Grammar::spaced(schema)));
                ("text | ", quote(BEGIN))
            }
            Some(_) => {
                return Err("a grammar cannot be combined with tools; give a JSON schema, or no tools".into());
            }
        };
        let more =
            if self.several { format!(" ({} call)*", quote(&format!("\n{BEGIN}"))) } else { String::new() };
        lark.push_str(&format!("start: {text}{before} call{more}\n"));
        let names: Vec<_> = (0..self.tools.len()).map(|i| format!("f{i}")).collect();
        lark.push_str(&format!("call: {}\n", names.join(" | ")));
        for (rule, tool) in names.iter().zip(&self.tools) {
            let head = format!("{NAME}{}{ARGUMENTS}", quote(&tool.name));
            let tail = quote(&format!("}}{END}"));
            lark.push_str(&format!(
                "{rule}: {} %json {} {tail}\n",
                quote(&head),
                Grammar::spaced(&tool.parameters)
            ));
        }
        Ok(Grammar::Lark(lark))
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
    use yuan::{
        grammar::{Guide, Words},
        tokenizer::Tokenizer,
        vocab::{Piece, PieceKind, Vocab},
    };

    use super::*;

    /// How much of a text an answer may have, and whether it may end there.
    fn accepted(calls: &Calls, form: Option<&Grammar>, text: &str) -> (usize, bool) {
        let bytes = (0..=255).map(|b| (format!("<0x{b:02X}>"), PieceKind::Byte));
        let others = ["<eod>", "\u{2581}"].map(|text| (text.to_owned(), PieceKind::Normal));
        let pieces = bytes.chain(others).map(|(text, kind)| Piece { text, score: 0.0, kind }).collect();
        let tokenizer = Tokenizer::new(Vocab::from_pieces(pieces)).unwrap();
        let words = Words::new(&tokenizer).unwrap();
        let constraint = words.constraint(&calls.grammar(form).unwrap()).unwrap();
        let (mut guide, eod) = (constraint.guide(false).unwrap(), tokenizer.eod().unwrap());
        let may = |guide: &mut Guide, token: u32| {
            let mut logits = vec![0.0; tokenizer.len()];
            guide.mask(&mut logits, &[eod]).unwrap();
            logits[token as usize] == 0.0
        };
        let mut done = 0;
        for token in tokenizer.encode_inside(text.as_bytes()) {
            if guide.is_complete() || !may(&mut guide, token) {
                return (done, false);
            }
            guide.push(token).unwrap();
            done += tokenizer.bytes(token).len();
        }
        (done, guide.is_complete() || may(&mut guide, eod))
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
        assert!(auto.grammar(Some(&Grammar::Regex("a".into()))).is_err());
    }

    #[test]
    fn the_model_is_told_of_the_functions_once() {
        let system = Message::new("system", "Be brief.");
        for messages in [vec![system, Message::new("user", "x")], vec![Message::new("user", "x")]] {
            let brief = messages.len() == 2;
            let told = calls(false, true).told(messages);
            assert_eq!((told.len(), &*told[0].role, &*told[1].content), (2, "system", "x"));
            assert_eq!(told[0].content.starts_with("Be brief.\n\n"), brief);
            assert!(told[0].content.contains("\"name\":\"春\"") && told[0].content.contains(BEGIN));
        }
    }
}
