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

use super::{
    Tokenizer,
    special::{Part, Specials},
    template,
};
use crate::error::{Error, Result};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it: "system", "user", "assistant", or what else the template knows.
    pub role: String,
    /// What is said; special strings in it stay text.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

impl Tokenizer {
    /// The ids of a conversation in the form of the vocabulary's template; with `add_generation_prompt` closed so that the model
    /// answers.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is no template, it does not compile, refuses the messages or runs without end, or when the
    /// messages contain every private-use character.
    pub fn chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<u32>> {
        let template = self.vocab.chat_template.as_deref().ok_or_else(|| {
            Error::Argument(
                "the model has no chat template; give it a prompt that is composed already".into(),
            )
        })?;
        let guard = Guard::new(&self.specials, messages, template)?;
        let guarded: Vec<Message> =
            messages.iter().map(|m| Message::new(guard.hide(&m.role), guard.hide(&m.content))).collect();
        let text =
            template::render(template, &guarded, add_generation_prompt, &self.marks()).map_err(|e| {
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
    fn new(specials: &Specials, messages: &[Message], template: &str) -> Result<Self> {
        let ends: BTreeSet<char> = specials
            .strings()
            .flat_map(|s| s.chars().next().into_iter().chain(s.chars().next_back()))
            .collect();
        let texts = messages.iter().flat_map(|m| [m.role.as_str(), m.content.as_str()]);
        let private = |c: &char| PRIVATE.iter().any(|range| range.contains(c));
        let used: BTreeSet<char> =
            texts.chain([template]).chain(specials.strings()).flat_map(str::chars).filter(private).collect();
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
}

fn replace(text: &str, by: &BTreeMap<char, char>) -> String {
    text.chars().map(|c| by.get(&c).copied().unwrap_or(c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        tokenizer::Special,
        vocab::{Piece, PieceKind, Vocab},
    };

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
