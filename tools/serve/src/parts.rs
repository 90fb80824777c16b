//! What the text of an answer is made of: reasoning, text, and calls of functions. It comes piece by piece, and is told as soon as it is known.

use serde_json::Value;

use crate::calls::{ARGUMENTS, BEGIN, END, NAME};

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

/// Where in an answer it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At the beginning, where reasoning may begin.
    Start,
    Reasoning,
    /// Behind the reasoning, whose line breaks are no part of the text.
    Thought,
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
    /// Whether there may be calls.
    calls: bool,
    /// What is not known yet.
    held: String,
    /// Whether there was a call.
    called: bool,
}

impl Parts {
    /// Of an answer that may have calls, and reasoning.
    pub fn new(calls: bool, reasoning: bool) -> Self {
        let place = if reasoning { Place::Start } else { Place::Text };
        Self { place, calls, held: String::new(), called: false }
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
            Place::Start | Place::Text => vec![Part::Text(held)],
            Place::Thought | Place::Head | Place::Arguments { .. } | Place::Tail => Vec::new(),
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
                if THINK.starts_with(text) {
                    return false;
                }
                self.place = Place::Text;
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
                self.place = Place::Text;
                true
            }
            Place::Text if !self.calls => {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of a text that comes in pieces of so many characters; neighbours of one kind put together.
    fn of(text: &str, calls: bool, size: usize) -> Vec<Part> {
        let mut parts = Parts::new(calls, true);
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
        let call = crate::calls::written("f\"", "{\"a\": [\"}</tool_call>\", \"\\\"\", {}]}");
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
}
