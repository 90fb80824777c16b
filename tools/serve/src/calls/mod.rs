//! Calls of a client's functions: which an answer may have, and how the model writes them.
//!
//! A model whose template tells it of functions writes calls in the form that it was trained on. Any other is told of them in words, in a form of our own.
//! In either case a grammar lets the answer be a call of a function that there is, with arguments that meet its schema, and nothing that is almost one;
//! and [`Parts`](crate::parts::Parts) finds the calls in the answer.

pub mod python;
pub mod tagged;

use std::sync::Arc;

use serde_json::{Value, json};
use yuan::{config::Family, grammar::Grammar, tokenizer::Tokenizer};

use crate::{constraint::lenient, problem::Problem};

/// Bytes of the longest name.
const LONGEST_NAME: usize = 64;

/// A function of the client.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// The JSON schema of its arguments, an object.
    pub parameters: Value,
}

/// Which calls a client wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// None.
    Nothing,
    /// As the model likes.
    #[default]
    Any,
    /// At least one.
    Needed,
    /// One of this function.
    Of(String),
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

/// How a model writes calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// Each between marks, as the prompt tells it to.
    Tagged,
    /// All as one list of Python's, of these functions.
    Python(Arc<[String]>),
}

impl Tool {
    /// A function with this schema of its arguments, or one with whatever arguments; what cannot be enforced of a schema is left to the model unless the
    /// client is `strict`.
    ///
    /// # Errors
    /// The name or the schema is none.
    pub fn new(
        name: &str,
        description: Option<String>,
        parameters: Option<Value>,
        strict: bool,
    ) -> Result<Self, Problem> {
        let wrong = |message: String| Err(Problem::field("tools", message));
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(allowed) {
            return wrong(format!(
                "{name:?} is no name of a function: give letters, digits, _ and -, up to {LONGEST_NAME}"
            ));
        }
        let mut parameters =
            parameters.filter(|p| !p.is_null()).unwrap_or_else(|| json!({ "properties": {} }));
        match parameters.as_object_mut() {
            Some(fields) => drop(fields.entry("type").or_insert_with(|| json!("object"))),
            None => return wrong(format!("the parameters of {name} are no JSON schema")),
        }
        if parameters["type"] != "object" {
            return wrong(format!(
                "the parameters of {name} are no object; give a schema with \"type\": \"object\""
            ));
        }
        let parameters = if strict { parameters } else { lenient(parameters) };
        Ok(Self { name: name.to_owned(), description, parameters })
    }

    /// As OpenAI writes it, for templates.
    pub fn json(&self) -> Value {
        let mut parameters = self.parameters.clone();
        parameters.as_object_mut().into_iter().for_each(|fields| drop(fields.shift_remove("x-guidance")));
        let mut function = json!({ "name": self.name });
        self.description.iter().for_each(|text| function["description"] = json!(text));
        function["parameters"] = parameters;
        json!({ "type": "function", "function": function })
    }
}

impl Calls {
    /// The calls of these functions that are wanted, if any are; `several` at once where that is not of one function.
    ///
    /// # Errors
    /// Two functions have the same name, or there is none of those that are wanted.
    pub fn new(mut tools: Vec<Tool>, choice: &Choice, several: bool) -> Result<Option<Self>, Problem> {
        if let Some(twice) = (1..tools.len()).find(|i| tools[..*i].iter().any(|t| t.name == tools[*i].name)) {
            let message =
                format!("there are two functions {:?}; give each a name of its own", tools[twice].name);
            return Err(Problem::field("tools", message));
        }
        let wrong = |message: String| Err(Problem::field("tool_choice", message));
        match choice {
            Choice::Nothing => return Ok(None),
            Choice::Any if tools.is_empty() => return Ok(None),
            Choice::Of(name) => {
                tools.retain(|tool| tool.name == *name);
                if tools.is_empty() {
                    return wrong(format!(
                        "tool_choice wants the function {name:?}, which is not among the tools"
                    ));
                }
            }
            Choice::Needed if tools.is_empty() => {
                return wrong("tool_choice wants a call, and there are no tools".into());
            }
            Choice::Any | Choice::Needed => {}
        }
        // One function is wanted once.
        let several = several && !matches!(choice, Choice::Of(_));
        Ok(Some(Self { tools, needed: *choice != Choice::Any, several }))
    }

    /// How a model writes them.
    pub fn form(&self, tokenizer: &Tokenizer) -> Form {
        match tokenizer.has_tools() && tokenizer.vocab().family == Family::Yuan3 {
            true => Form::Python(self.tools.iter().map(|tool| tool.name.clone()).collect()),
            false => Form::Tagged,
        }
    }
}

/// The rules of a grammar in which an answer is text, or calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The answer, as what is said of it in a rule.
    pub answer: String,
    /// Rules that it needs, a line each.
    pub others: String,
}

impl Rules {
    /// Of answers that are `form`.
    ///
    /// # Errors
    /// It is a grammar of its own.
    pub fn of(form: &Grammar) -> Result<Self, String> {
        let answer = match form {
            Grammar::JsonObject => "%json {\"type\": \"object\"}".to_owned(),
            Grammar::JsonSchema(schema) => format!("%json {}", Grammar::spaced(schema)),
            Grammar::Regex(_) | Grammar::Lark(_) => {
                return Err(
                    "a grammar cannot be combined with tools or thinking; give a JSON schema, or leave them out"
                        .into(),
                );
            }
        };
        Ok(Self { answer, others: String::new() })
    }

    /// The grammar.
    pub fn grammar(&self) -> Grammar {
        Grammar::Lark(format!("start: {}\n{}", self.answer, self.others))
    }
}

/// A text as a grammar quotes it.
fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
pub mod tests {
    use yuan::{
        grammar::{Guide, Words},
        vocab::{Piece, PieceKind, Vocab},
    };

    use super::*;

    /// How much of a text an answer may have, and whether it may end there.
    pub fn accepted(grammar: &Grammar, text: &str) -> (usize, bool) {
        accepted_with(grammar, text, &[])
    }

    /// The same of a text in which these strings are special tokens.
    pub fn accepted_with(grammar: &Grammar, text: &str, marks: &[&str]) -> (usize, bool) {
        let bytes = (0..=255).map(|b| (format!("<0x{b:02X}>"), PieceKind::Byte));
        let others =
            ["<eod>", "\u{2581}"].iter().chain(marks).map(|text| ((*text).to_owned(), PieceKind::Normal));
        let pieces = bytes.chain(others).map(|(text, kind)| Piece { text, score: 0.0, kind }).collect();
        let mut vocab = Vocab::from_pieces(pieces);
        vocab.special.extend(marks.iter().map(|mark| (*mark).to_owned()).zip(258..));
        let tokenizer = Tokenizer::new(vocab).unwrap();
        let words = Words::new(&tokenizer).unwrap();
        let constraint = words.constraint(grammar).unwrap();
        let (mut guide, eod) = (constraint.guide(false).unwrap(), tokenizer.eod().unwrap());
        let may = |guide: &mut Guide, token: u32| {
            let mut logits = vec![0.0; tokenizer.len()];
            guide.mask(&mut logits, &[eod]).unwrap();
            logits[token as usize] == 0.0
        };
        let (mut tokens, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let found =
                marks.iter().zip(258..).filter_map(|(mark, id)| Some((rest.find(mark)?, mark, id))).min();
            let end = found.map_or(rest.len(), |(at, ..)| at);
            tokens.extend(tokenizer.encode_inside(&rest.as_bytes()[..end]));
            rest = &rest[end..];
            if let Some((_, mark, id)) = found {
                tokens.push(id);
                rest = &rest[mark.len()..];
            }
        }
        let mut done = 0;
        for token in tokens {
            if guide.is_complete() || !may(&mut guide, token) {
                return (done, false);
            }
            guide.push(token).unwrap();
            done += tokenizer.bytes(token).len();
        }
        (done, guide.is_complete() || may(&mut guide, eod))
    }

    #[test]
    fn functions_that_make_no_sense_are_refused() {
        let refused = |name: &str, parameters: Value| Tool::new(name, None, Some(parameters), true).is_err();
        assert!(refused("", json!({})) && refused("a b", json!({})) && refused(&"a".repeat(65), json!({})));
        assert!(refused("a", json!([])) && refused("a", json!({ "type": "string" })));
        let tool = Tool::new("a", Some("x".into()), None, false).unwrap();
        assert_eq!(
            tool.json().to_string(),
            r#"{"type":"function","function":{"name":"a","description":"x","parameters":{"properties":{},"type":"object"}}}"#
        );
    }

    #[test]
    fn a_choice_says_which_calls_there_are() {
        let tools = |names: &[&str]| -> Vec<Tool> {
            names.iter().map(|name| Tool::new(name, None, None, true).unwrap()).collect()
        };
        let found = |choice: Choice| {
            let calls = Calls::new(tools(&["a", "b"]), &choice, true).map_err(|p| p.param.unwrap())?;
            Ok(calls.map(|c| (c.tools.len(), c.needed, c.several)))
        };
        assert_eq!(found(Choice::Any), Ok(Some((2, false, true))));
        assert_eq!(found(Choice::Needed), Ok(Some((2, true, true))));
        assert_eq!(found(Choice::Nothing), Ok(None));
        assert_eq!(found(Choice::Of("b".into())), Ok(Some((1, true, false))));
        assert_eq!(found(Choice::Of("c".into())), Err("tool_choice"));
        assert!(Calls::new(tools(&["a", "a"]), &Choice::Any, true).is_err());
        assert!(Calls::new(Vec::new(), &Choice::Needed, true).is_err());
        assert_eq!(Calls::new(Vec::new(), &Choice::Any, true).unwrap(), None);
    }
}
