//! What the text of an answer is made of: reasoning, text, and calls of functions. It comes piece by piece, and is told as soon as it is known.

use serde_json::Value;

use crate::{
    calls::{
        Form, python,
        tagged::{ARGUMENTS, BEGIN, END, NAME},
    },
    messages::{Call, Turn},
};

const THINK: &str = "<think>";
const THOUGHT: &str = "</think>";

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text.
    Text(String),
    /// What the model thinks before it answers.
    Reasoning(String),
    /// A call of this function begins.
    Call(String),
    /// More of the arguments of the last call: JSON.
    Arguments(String),
}

/// How an answer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With text, or with the mark of reasoning.
    Open,
    /// With reasoning, whose mark the prompt has.
    Reasoning,
    /// With text.
    Text,
}

/// Where in an answer it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At the beginning, where reasoning may begin.
    Start,
    Reasoning,
    /// Behind the reasoning, whose line breaks are no part of the text.
    Thought,
    /// Before the text, which may be a list of calls.
    Before,
    /// In the list, behind a call or before the first.
    List,
    Text,
    /// Behind the mark of a call, before its arguments.
    Head,
    /// In the arguments, so deep in brackets, in a string, behind its backslash.
    Arguments {
        depth: usize,
        string: bool,
        escaped: bool,
    },
    /// Behind the arguments.
    Tail,
}

/// Takes an answer apart.
#[derive(Clone, Debug)]
pub struct Parts {
    place: Place,
    /// How calls are written, where there may be some.
    form: Option<Form>,
    /// What is not known yet.
    held: String,
    /// Whether there was a call.
    called: bool,
}

impl Parts {
    /// Of an answer that begins so, and whose calls are written so, if it may have some.
    pub fn new(form: Option<Form>, start: Start) -> Self {
        let mut parts = Self { place: Place::Start, form, held: String::new(), called: false };
        match start {
            Start::Open => {}
            Start::Reasoning => parts.place = Place::Reasoning,
            Start::Text => parts.place = parts.text(),
        }
        parts
    }

    /// The same without reasoning: its marks are text.
    pub fn plain(mut self) -> Self {
        self.place = self.text();
        self
    }

    /// Where the text begins.
    fn text(&self) -> Place {
        if matches!(self.form, Some(Form::Python(_))) { Place::Before } else { Place::Text }
    }

    /// Whether a call has begun.
    pub fn called(&self) -> bool {
        self.called
    }

    /// What is known once this text has come.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        parts
    }

    /// What is left at the end.
    pub fn finish(&mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        match self.place {
            _ if held.is_empty() => Vec::new(),
            Place::Reasoning => vec![Part::Reasoning(held)],
            Place::Start | Place::Before | Place::Text => vec![Part::Text(held)],
            Place::Thought | Place::List | Place::Head | Place::Arguments { .. } | Place::Tail => Vec::new(),
        }
    }

    /// Goes on by one place; whether it has.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.place {
            Place::Start => {
                let text = self.held.trim_start();
                if let Some(behind) = text.strip_prefix(THINK) {
                    self.held = behind.to_owned();
                    self.place = Place::Reasoning;
                    return true;
                }
                // A model that is not to think may say so.
                if let Some(behind) = text.strip_prefix(THOUGHT) {
                    self.held = behind.to_owned();
                    self.place = Place::Thought;
                    return true;
                }
                if [THINK, THOUGHT].iter().any(|mark| mark.starts_with(text)) {
                    return false;
                }
                self.place = self.text();
                true
            }
            Place::Reasoning => {
                let found = self.until(THOUGHT);
                push(parts, Part::Reasoning, found.0);
                if found.1 {
                    self.place = Place::Thought;
                }
                found.1
            }
            Place::Thought => {
                self.held = self.held.trim_start().to_owned();
                if self.held.is_empty() {
                    return false;
                }
                self.place = self.text();
                true
            }
            Place::Before => {
                let names = if let Some(Form::Python(names)) = &self.form { &names[..] } else { &[] };
                let begins = |name: &String| self.held.starts_with(&format!("[{name}("));
                if names.iter().any(begins) {
                    self.held.remove(0);
                    self.place = Place::List;
                    return true;
                }
                let may = |name: &String| format!("[{name}(").starts_with(&self.held);
                if self.held.is_empty() || names.iter().any(may) {
                    return false;
                }
                self.place = Place::Text;
                true
            }
            Place::List => {
                let Some((name, arguments, len)) = python::read(&self.held) else { return false };
                self.held.drain(..len);
                self.called = true;
                parts.extend([Part::Call(name), Part::Arguments(Value::from(arguments).to_string())]);
                true
            }
            Place::Text if self.form != Some(Form::Tagged) => {
                push(parts, Part::Text, std::mem::take(&mut self.held));
                false
            }
            Place::Text => {
                let found = self.until(BEGIN);
                push(parts, Part::Text, found.0);
                if found.1 {
                    self.place = Place::Head;
                }
                found.1
            }
            Place::Head => {
                // The grammar has it so.
                let Some((head, rest)) = self.held.split_once(ARGUMENTS) else { return false };
                let name = serde_json::from_str(head.strip_prefix(NAME).unwrap_or(head));
                let name = if let Ok(Value::String(name)) = name { name } else { head.to_owned() };
                self.held = rest.to_owned();
                self.place = Place::Arguments { depth: 0, string: false, escaped: false };
                self.called = true;
                parts.push(Part::Call(name));
                true
            }
            Place::Arguments { mut depth, mut string, mut escaped } => {
                let mut end = None;
                for (i, byte) in self.held.bytes().enumerate() {
                    match byte {
                        _ if escaped => escaped = false,
                        b'\\' if string => escaped = true,
                        b'"' => string = !string,
                        b'{' | b'[' if !string => depth += 1,
                        b'}' | b']' if !string => {
                            depth -= 1;
                            if depth == 0 {
                                end = Some(i + 1);
                                break;
                            }
                        }
                        _ => {}
                    }
                }
                let rest = self.held.split_off(end.unwrap_or(self.held.len()));
                push(parts, Part::Arguments, std::mem::replace(&mut self.held, rest));
                self.place = match end {
                    Some(_) => Place::Tail,
                    None => Place::Arguments { depth, string, escaped },
                };
                end.is_some()
            }
            Place::Tail => match self.held.find(BEGIN) {
                Some(at) => {
                    self.held.drain(..at + BEGIN.len());
                    self.place = Place::Head;
                    true
                }
                None => {
                    debug_assert!(self.held.len() <= END.len() + BEGIN.len() + 2);
                    false
                }
            },
        }
    }

    /// The text up to `mark`, which is taken out, and whether it is there; without it, what cannot be its beginning.
    fn until(&mut self, mark: &str) -> (String, bool) {
        if let Some(at) = self.held.find(mark) {
            let rest = self.held.split_off(at + mark.len());
            let mut text = std::mem::replace(&mut self.held, rest);
            text.truncate(at);
            return (text, true);
        }
        let begins = (1..mark.len()).rev().find(|n| self.held.ends_with(&mark[..*n])).unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - begins);
        (std::mem::replace(&mut self.held, rest), false)
    }
}

fn push(parts: &mut Vec<Part>, part: fn(String) -> Part, text: String) {
    if !text.is_empty() {
        parts.push(part(text));
    }
}

/// A whole answer, put together of its parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whole {
    pub text: String,
    pub reasoning: String,
    pub calls: Vec<Call>,
}

impl Whole {
    /// One more part.
    pub fn add(&mut self, part: Part) {
        match part {
            Part::Text(more) => self.text.push_str(&more),
            Part::Reasoning(more) => self.reasoning.push_str(&more),
            Part::Call(name) => self.calls.push(Call { name, arguments: String::new() }),
            Part::Arguments(more) => {
                self.calls.last_mut().into_iter().for_each(|call| call.arguments.push_str(&more));
            }
        }
    }

    /// Of a text that is all there.
    pub fn of(mut parts: Parts, text: &str) -> Self {
        let mut whole = Self::default();
        let all = parts.push(text).into_iter().chain(parts.finish());
        all.for_each(|part| whole.add(part));
        whole
    }

    /// For the conversation that goes on behind it.
    pub fn turn(&self) -> Turn {
        let reasoning = Some(self.reasoning.clone()).filter(|text| !text.is_empty());
        Turn { reasoning, calls: self.calls.clone(), ..Turn::new("assistant", &*self.text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of a text that comes in pieces of so many characters; neighbours of one kind put together.
    fn of(text: &str, calls: bool, size: usize) -> Vec<Part> {
        parts_of(text, Parts::new(calls.then_some(Form::Tagged), Start::Open), size)
    }

    fn parts_of(text: &str, mut parts: Parts, size: usize) -> Vec<Part> {
        let chars: Vec<char> = text.chars().collect();
        let mut all: Vec<Part> =
            chars.chunks(size).flat_map(|piece| parts.push(&piece.iter().collect::<String>())).collect();
        all.extend(parts.finish());
        let mut joined: Vec<Part> = Vec::new();
        for part in all {
            match (joined.last_mut(), part) {
                (Some(Part::Text(a)), Part::Text(b))
                | (Some(Part::Reasoning(a)), Part::Reasoning(b))
                | (Some(Part::Arguments(a)), Part::Arguments(b)) => a.push_str(&b),
                (_, part) => joined.push(part),
            }
        }
        joined
    }

    #[test]
    fn parts_are_the_same_however_the_text_is_cut() {
        let text = |text: &str| Part::Text(text.into());
        let call = crate::calls::tagged::written("f\"", "{\"a\": [\"}</tool_call>\", \"\\\"\", {}]}");
        let called =
            [Part::Call("f\"".into()), Part::Arguments("{\"a\": [\"}</tool_call>\", \"\\\"\", {}]}".into())];
        let cases = [
            ("春山 <th".to_owned(), vec![text("春山 <th")]),
            ("<think> a < b</think>\n\n春".into(), vec![Part::Reasoning(" a < b".into()), text("春")]),
            ("<think>a".into(), vec![Part::Reasoning("a".into())]),
            ("<thin".into(), vec![text("<thin")]),
            (" <tool_cal".into(), vec![text(" <tool_cal")]),
            (call.clone(), called.to_vec()),
            (format!("<think>t</think>so: {call}\n{call}"), {
                let mut all = vec![Part::Reasoning("t".into()), text("so: ")];
                all.extend([&called[..], &called].concat());
                all
            }),
            (
                call[..call.len() - 19].into(),
                vec![called[0].clone(), Part::Arguments("{\"a\": [\"}</tool_call>\", \"\\\"\"".into())],
            ),
        ];
        for (whole, wanted) in cases {
            for size in [1, 2, 3, 7, 1000] {
                assert_eq!(of(&whole, true, size), wanted, "{whole} by {size}");
            }
        }
        assert_eq!(of(&call, false, 3), [text(&call)], "no calls are asked for");
        assert_eq!(of("", true, 1), []);
    }

    #[test]
    fn a_list_of_calls_is_the_whole_answer() {
        let form = Some(Form::Python(["f".to_owned(), "get".to_owned()].into()));
        let text = |text: &str| Part::Text(text.into());
        let call = |name: &str, arguments: &str| [Part::Call(name.into()), Part::Arguments(arguments.into())];
        let two = [call("f", "{\"a\":\"春)]\",\"b\":-1}"), call("get", "{}")].concat();
        for (start, whole, wanted) in [
            (Start::Text, "[f(a=\"春)]\", b=-1), get()]", two.clone()),
            (Start::Open, "</think>[f(a=\"春)]\", b=-1), get()]", two.clone()),
            (Start::Reasoning, "t[f(]</think>\n\n[get()]", {
                let mut all = vec![Part::Reasoning("t[f(]".into())];
                all.extend(call("get", "{}"));
                all
            }),
            (Start::Text, "[get", vec![text("[get")]),
            (Start::Text, "[1] [f()]", vec![text("[1] [f()]")]),
            (Start::Text, "[f(a=1, b=", Vec::new()),
        ] {
            for size in [1, 2, 3, 7, 1000] {
                assert_eq!(
                    parts_of(whole, Parts::new(form.clone(), start), size),
                    wanted,
                    "{whole} by {size}"
                );
            }
        }
        let whole = Whole::of(Parts::new(form, Start::Open), "<think>a</think>[f(a=\"春)]\", b=-1), get()]");
        assert_eq!((&*whole.reasoning, &*whole.text, whole.calls.len()), ("a", "", 2));
        assert_eq!(whole.turn().calls[0].arguments, "{\"a\":\"春)]\",\"b\":-1}");
    }
}
