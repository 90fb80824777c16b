//! JSON schemas, grammars and regular expressions: refused, or an answer goes by them, in bounded time and memory.

use std::sync::OnceLock;

use yuan::{
    config::Family,
    grammar::{Grammar, Words},
    tokenizer::Tokenizer,
};

use crate::{Seed, model::letters};

/// Tokens of the vocabulary.
const VOCAB: usize = 300;
/// Tokens of an answer.
const ANSWER: usize = 24;

/// The first byte says what the others are, the second which of the tokens that may follow is chosen.
pub fn run(data: &[u8]) {
    static WORDS: OnceLock<(Tokenizer, Words)> = OnceLock::new();
    let [form, step, text @ ..] = data else { return };
    let (tokenizer, words) = WORDS.get_or_init(|| {
        let tokenizer = Tokenizer::new(letters(Family::Yuan2, VOCAB)).expect("a vocabulary");
        let words = Words::new(&tokenizer).expect("a vocabulary for grammars");
        (tokenizer, words)
    });
    let text = String::from_utf8_lossy(text);
    let grammar = match form % 3 {
        0 => match Grammar::json_schema(&text) {
            Ok(grammar) => grammar,
            Err(_) => return,
        },
        1 => Grammar::Lark(text.into_owned()),
        _ => Grammar::Regex(text.into_owned()),
    };
    let Ok(constraint) = words.constraint(&grammar) else { return };
    let mut guide = constraint.guide(form & 4 == 0).expect("a guide");
    let ends: Vec<u32> = tokenizer.ends().collect();
    let mut answer = Vec::new();
    while answer.len() < ANSWER && !guide.is_complete() {
        let forced = guide.forced();
        if let Some(first) = forced.first() {
            assert_eq!(guide.allows(&forced), forced.len(), "what is forced is allowed");
            answer.push(*first);
            if guide.push(*first).is_err() {
                return;
            }
            continue;
        }
        let mut logits = vec![0.0; VOCAB];
        if guide.mask(&mut logits, &ends).is_err() {
            return;
        }
        let allowed: Vec<u32> = (0..).zip(&logits).filter(|(_, l)| l.is_finite()).map(|(id, _)| id).collect();
        let chosen = allowed[(usize::from(*step) * (answer.len() + 1)) % allowed.len()];
        if ends.contains(&chosen) {
            return;
        }
        answer.push(chosen);
        if guide.push(chosen).is_err() {
            return;
        }
    }
    tokenizer.decode(&answer);
}

/// Some of each kind.
pub fn seeds() -> Vec<Seed> {
    let of = |form: u8, text: &str| [&[form, 7], text.as_bytes()].concat();
    let schema = r##"{"type":"object","properties":{"a":{"type":"integer","minimum":3,"maximum":400},"b":{"type":"array","items":{"$ref":"#/$defs/x"},"minItems":1,
"maxItems":3},"c":{"enum":["春",null,1.5]},"d":{"type":"string","pattern":"^[a-c]{2,5}$","format":"date"}},"required":["a","b"],"additionalProperties":false,
"$defs":{"x":{"anyOf":[{"const":true},{"type":"string","maxLength":4},{"allOf":[{"type":"number"}]}]}}}"##;
    vec![
        of(0, schema),
        of(
            0,
            r#"{"type":"object","additionalProperties":{"type":"number","multipleOf":0.5},"minProperties":2}"#,
        ),
        of(1, "start: \"a\" rest{1,3} | /[0-9]+/ \"\\n\"\nrest: WORD \",\"?\nWORD: /[a-z]+/\n%ignore / /\n"),
        of(1, "start: \"{\" %json {\"type\": \"string\"} \"}\" &(/a+/) | <eod>"),
        of(2, "(a|春)+[0-9]{2,4}\\.?[^x]*"),
        of(6, "yes|no"),
    ]
}
