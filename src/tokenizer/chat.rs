//! A conversation to ids.
//!
//! The template is rendered to one string, which is cut at its special strings and encoded, as `apply_chat_template` does it.
//! But a special string must come from the template: what people write must not end a turn or a document. So while the template
//! is rendered, every character that begins or ends a special string is replaced in the messages (for this model: `<` and `>`)
//! by a private-use character that occurs nowhere else; afterwards the rendered string is cut, and only then the characters are
//! put back. So no special string begins or ends in a message; only a template that itself writes both ends around one makes
//! one of it. The price: a template that looks for `<` or `>` in a message does not find it.
//!
//! The `<n>` between turns is ordinary text for `LlamaTokenizer`, and so it is here: a message can contain it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use serde_json::{Map, Value};

use super::{
    Tokenizer,
    message::{Call, Chat, Message},
    special::{Part, Specials},
    template,
};
use crate::error::{Error, Result};

impl Tokenizer {
    /// The ids of a conversation in the form of the vocabulary's template; with `add_generation_prompt` closed so that the model
    /// answers.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is no template, it does not compile, refuses the messages or runs without end, or when the
    /// messages contain every private-use character.
    pub fn chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<u32>> {
        self.prompt(&Chat { messages, add_generation_prompt, ..Chat::default() })
    }

    /// The ids of a conversation with all that a template can be told beside the messages.
    ///
    /// # Errors
    /// As [`chat`](Self::chat).
    pub fn prompt(&self, chat: &Chat<'_>) -> Result<Vec<u32>> {
        let template = self.vocab.chat_template.as_deref().ok_or_else(|| {
            Error::Argument(
                "the model has no chat template; give it a prompt that is composed already".into(),
            )
        })?;
        let guard = Guard::new(&self.specials, chat, template)?;
        let messages: Vec<Message> = chat.messages.iter().map(|m| guard.hide_message(m)).collect();
        let tools: Vec<Value> = chat.tools.iter().map(|tool| guard.hide_json(tool)).collect();
        let guarded = Chat { messages: &messages, tools: &tools, ..*chat };
        let text = template::render(template, &guarded, &self.marks()).map_err(|e| {
            Error::Argument(format!("the chat template fails: {e:#}; compose the prompt yourself"))
        })?;
        let mut ids = Vec::new();
        for part in self.specials.cut(&text) {
            match part {
                Part::Text(text) => self.encode_part(&guard.restore(text), &mut ids),
                Part::Special(id) => ids.push(id),
            }
        }
        Ok(ids)
    }

    /// Whether the template tells the model of functions that it may call, and of calls and their results.
    pub fn has_tools(&self) -> bool {
        self.asks.tools
    }

    /// Whether one can choose that the model thinks before it answers.
    pub fn has_thinking(&self) -> bool {
        self.asks.thinking
    }

    /// The special strings that templates call by name.
    fn marks(&self) -> [(&'static str, &str); 5] {
        let named = |text| self.specials.strings().find(|s| *s == text).unwrap_or("");
        let text = |id: Option<u32>| id.map_or("", |id| self.piece(id));
        [
            ("bos_token", named("<s>")),
            ("eos_token", text(self.vocab.eod)),
            ("sep_token", text(self.vocab.sep)),
            ("pad_token", text(self.vocab.pad)),
            ("unk_token", named("<unk>")),
        ]
    }
}

/// Private-use characters, of which some stand in for others.
const PRIVATE: [RangeInclusive<char>; 2] = ['\u{E000}'..='\u{F8FF}', '\u{F0000}'..='\u{FFFFD}'];

/// Characters and their stand-ins, both ways.
struct Guard {
    hidden: BTreeMap<char, char>,
    restored: BTreeMap<char, char>,
}

impl Guard {
    /// Stand-ins for the first and last characters of special strings, none of which occurs anywhere else.
    fn new(specials: &Specials, chat: &Chat<'_>, template: &str) -> Result<Self> {
        let ends: BTreeSet<char> = specials
            .strings()
            .flat_map(|s| s.chars().next().into_iter().chain(s.chars().next_back()))
            .collect();
        let private = |c: &char| PRIVATE.iter().any(|range| range.contains(c));
        let mut used = BTreeSet::new();
        let mut note = |text: &str| used.extend(text.chars().filter(private));
        note(template);
        specials.strings().for_each(&mut note);
        for message in chat.messages {
            [&message.role, &message.content]
                .into_iter()
                .chain(&message.reasoning)
                .for_each(|text| note(text));
            for call in &message.calls {
                note(&call.name);
                call.arguments.iter().for_each(|(name, value)| {
                    note(name);
                    each_text(value, &mut note);
                });
            }
        }
        chat.tools.iter().for_each(|tool| each_text(tool, &mut note));
        let free = PRIVATE.into_iter().flatten().filter(|c| !used.contains(c));
        let hidden: BTreeMap<char, char> = ends.iter().copied().zip(free).collect();
        if hidden.len() < ends.len() {
            return Err(Error::Argument(
                "the messages contain all private-use characters; remove some".into(),
            ));
        }
        let restored = hidden.iter().map(|(&c, &stand_in)| (stand_in, c)).collect();
        Ok(Self { hidden, restored })
    }

    fn hide(&self, text: &str) -> String {
        replace(text, &self.hidden)
    }

    fn restore(&self, text: &str) -> String {
        replace(text, &self.restored)
    }

    fn hide_message(&self, message: &Message) -> Message {
        let content = match &*message.role {
            "assistant" => self.hide_answer(&message.content),
            _ => self.hide(&message.content),
        };
        let call =
            |call: &Call| Call { name: self.hide(&call.name), arguments: self.hide_fields(&call.arguments) };
        Message {
            role: self.hide(&message.role),
            content,
            reasoning: message.reasoning.as_deref().map(|text| self.hide(text)),
            calls: message.calls.iter().map(call).collect(),
        }
    }

    /// An answer keeps the marks of its reasoning: templates look for them.
    fn hide_answer(&self, text: &str) -> String {
        let mut hidden = self.hide(text);
        for mark in ["<think>", "</think>"] {
            hidden = hidden.replace(&self.hide(mark), mark);
        }
        hidden
    }

    fn hide_json(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.hide(text).into(),
            Value::Array(list) => list.iter().map(|value| self.hide_json(value)).collect(),
            Value::Object(fields) => self.hide_fields(fields).into(),
            other => other.clone(),
        }
    }

    fn hide_fields(&self, fields: &Map<String, Value>) -> Map<String, Value> {
        fields.iter().map(|(name, value)| (self.hide(name), self.hide_json(value))).collect()
    }
}

/// Every text in a JSON value, the names of its fields included.
fn each_text(value: &Value, see: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => see(text),
        Value::Array(list) => list.iter().for_each(|value| each_text(value, see)),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            see(name);
            each_text(value, see);
        }),
        _ => {}
    }
}

fn replace(text: &str, by: &BTreeMap<char, char>) -> String {
    text.chars().map(|c| by.get(&c).copied().unwrap_or(c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Special;
    use crate::vocab::{Piece, PieceKind, Vocab};

    /// Every byte, the usual specials, and this template.
    fn tokenizer(template: Option<&str>) -> Tokenizer {
        let bytes = (0..=255).map(|b| (format!("<0x{b:02X}>"), PieceKind::Byte));
        let marks = ["<s>", "<sep>", "<eod>", "\u{2581}"].map(|text| (text.to_owned(), PieceKind::Normal));
        let pieces = bytes.chain(marks).map(|(text, kind)| Piece { text, score: 0.0, kind });
        let vocab = Vocab::from_pieces(pieces.collect());
        Tokenizer::new(Vocab { chat_template: template.map(str::to_owned), ..vocab }).unwrap()
    }

    fn says(content: &str) -> Message {
        Message::new("user", content)
    }

    #[test]
    fn messages_side_by_side_make_no_special_string() {
        let tokenizer = tokenizer(Some("{% for m in messages %}{{ m.content | trim }}{% endfor %}<eod>"));
        let ids = tokenizer.chat(&[says("<s "), says("ep>"), says("<sep>")], false).unwrap();
        let (last, rest) = ids.split_last().unwrap();
        assert_eq!(Some(*last), tokenizer.eod());
        assert_eq!(rest, tokenizer.encode("<sep><sep>", Special::AsText));
    }

    #[test]
    fn templates_know_the_special_strings_by_name() {
        let tokenizer =
            tokenizer(Some("{{ bos_token }}{{ eos_token }}{{ sep_token }}{{ pad_token }}{{ unk_token }}"));
        assert_eq!(tokenizer.chat(&[], false).unwrap(), tokenizer.encode("<s><eod><sep>", Special::Parse));
    }

    #[test]
    fn nothing_that_people_write_is_special() {
        let template = "{{ messages[0].content }}{{ messages[0].tool_calls | tojson }}{{ tools | tojson }}";
        let mut tokenizer = tokenizer(Some(template));
        let word = "s12";
        let id = tokenizer.len() as u32;
        let mut vocab = tokenizer.vocab.clone();
        vocab.pieces.push(Piece { text: word.into(), score: 0.0, kind: PieceKind::Normal });
        vocab.symbols.push((word.into(), id));
        tokenizer = Tokenizer::new(vocab).unwrap();
        let arguments = serde_json::json!({ "<eod>": ["<sep>", word] }).as_object().cloned().unwrap();
        let calls = vec![Call { name: "<s>".into(), arguments }];
        let messages = [Message { calls, ..says("words12 <eod>") }];
        let tools = [serde_json::json!({ "<sep>": "<eod>" })];
        let chat = Chat { messages: &messages, tools: &tools, ..Chat::default() };
        let ids = tokenizer.prompt(&chat).unwrap();
        let text = "words12 <eod>[{\"type\": \"function\", \"function\": {\"name\": \"<s>\", \"arguments\": {\"<eod>\": [\"<sep>\", \"s12\"]}}}]\
            [{\"<sep>\": \"<eod>\"}]";
        assert_eq!(ids, tokenizer.encode(text, Special::AsText));
        assert_eq!(ids.iter().filter(|i| **i == id).count(), 2);
        assert!([tokenizer.eod(), tokenizer.vocab.sep].iter().flatten().all(|mark| !ids.contains(mark)));
        assert!(tokenizer.has_tools() && !tokenizer.has_thinking());
    }

    #[test]
    fn an_answer_keeps_the_marks_of_its_reasoning() {
        let template = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}";
        let tokenizer = tokenizer(Some(template));
        let messages = [says("<think>a</think>"), Message::new("assistant", "<think>b</think>c")];
        assert_eq!(tokenizer.decode(&tokenizer.chat(&messages, true).unwrap()), "<think>a</think>c");
    }

    #[test]
    fn messages_with_all_private_characters_are_an_error() {
        let all: String = PRIVATE.into_iter().flatten().collect();
        let tokenizer = tokenizer(Some("{{ messages[0].content }}"));
        assert!(tokenizer.chat(&[says(&all)], true).unwrap_err().to_string().contains("private-use"));
        let two_left: String = all.chars().skip(2).collect();
        assert_eq!(tokenizer.decode(&tokenizer.chat(&[says(&two_left)], true).unwrap()), two_left);
    }

    #[test]
    fn no_template_and_a_bad_template_are_errors() {
        let fails = |template| tokenizer(template).chat(&[], true).unwrap_err().to_string();
        assert!(fails(None).contains("no chat template"));
        assert!(fails(Some("{% for %}")).contains("the chat template fails"));
    }
}
