//! Answers by a grammar: whatever the model wants to say, they meet it.
#![cfg(feature = "grammar")]

mod common;

use std::{ops::ControlFlow, sync::Arc, thread};

use common::sessions::*;
use serde::Deserialize;
use serde_json::{Value, json};
use yuan::{
    Error,
    grammar::Grammar,
    model::KvType,
    sampler::{Sampler, Settings},
    session::{Engine, Finish, Limits, Session, Token},
    tokenizer::Special,
};

const PROMPT: &str = "Psalms 151:1<sep>";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Person {
    name: String,
    age: u8,
    home: Option<String>,
    tags: Vec<Tag>,
    #[serde(rename = "住址")]
    address: String,
}

#[derive(Debug, Deserialize)]
enum Tag {
    #[serde(rename = "poet")]
    Poet,
    #[serde(rename = "李白")]
    LiBai,
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "age": { "type": "integer", "minimum": 0, "maximum": 150 },
            "home": { "anyOf": [{ "type": "null" }, { "$ref": "#/$defs/place" }] },
            "tags": { "type": "array", "items": { "enum": ["poet", "李白"] }, "minItems": 1, "maxItems": 3 },
            "住址": { "const": "绵州\u{2581}昌隆 <sep> \u{1F600}" },
        },
        "required": ["name", "age", "home", "tags", "住址"],
        "additionalProperties": false,
        "$defs": { "place": { "type": "string", "pattern": "^[A-Z][a-z]{2,6}$" } },
    })
}

/// What is said to a prompt: tokens, their text, and the end.
fn said(
    engine: &Arc<Engine>,
    prompt: &str,
    limits: &Limits,
    settings: &Settings,
) -> (Vec<Token>, String, Finish) {
    let prompt = engine.tokenizer().encode(prompt, Special::Parse);
    let mut session = Session::new(engine.clone(), 1000, KvType::F16).unwrap();
    session.sync(&prompt, go).unwrap();
    let (mut tokens, mut text) = (Vec::new(), String::new());
    let mut sampler = Sampler::new(settings.clone()).unwrap();
    let finish = session.generate_scored(&mut sampler, limits, None, |token, piece| {
        tokens.extend(token);
        text.push_str(piece);
        ControlFlow::Continue(())
    });
    let finish = finish.unwrap();
    let kept: Vec<_> = tokens.iter().filter(|t| !t.ends).map(|t| t.id).collect();
    assert_eq!(session.tokens(), [&prompt[..], &kept].concat());
    (tokens, text, finish)
}

fn by(engine: &Arc<Engine>, grammar: &Grammar, most: usize) -> Limits {
    Limits { constraint: Some(engine.constraint(grammar).unwrap()), ..Limits::tokens(most) }
}

fn random(temperature: f32, seed: u64) -> Settings {
    Settings { temperature, seed: Some(seed), ..Settings::default() }
}

#[test]
fn every_answer_meets_its_schema() {
    let folder = common::folder();
    for (engine, seeds) in [(demo(&folder), 40), (tiny(&folder, 5), 60)] {
        let limits = by(&engine, &Grammar::JsonSchema(person()), 400);
        for seed in 0..seeds {
            // At the highest temperature every token that is allowed is as likely as any other.
            let temperature = [0.0, 0.7, 1.5, 1e6][seed as usize % 4];
            let (tokens, text, finish) = said(&engine, PROMPT, &limits, &random(temperature, seed));
            assert_eq!(finish, Finish::Stop, "{text}");
            let person: Person = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert!(
                person.name.chars().count() <= 12 && person.age <= 150 && person.tags.len() <= 3,
                "{text}"
            );
            assert_eq!(person.address, "绵州\u{2581}昌隆 <sep> \u{1F600}");
            assert!(text.starts_with('{'), "the dummy prefix is not shown: {text}");
            let forced = tokens.iter().filter(|t| t.forced).count();
            assert!(forced > 10, "names and the constant are not chosen: {forced} of {}", tokens.len());
        }
    }
}

#[test]
fn forced_tokens_share_a_pass_and_are_those_that_a_scored_answer_has() {
    let folder = common::folder();
    let engine = demo(&folder);
    let grammar = Grammar::JsonSchema(person());
    let limits = by(&engine, &grammar, 400);
    let before = engine.counts();
    let (tokens, text, _) = said(&engine, PROMPT, &limits, &random(0.8, 3));
    let passes = engine.counts().passes - before.passes;
    let forced = tokens.iter().filter(|t| t.forced).count();
    assert!(
        passes <= 1 + (tokens.len() - forced) as u64,
        "{passes} passes, {forced} of {} forced",
        tokens.len()
    );

    let prompt = engine.tokenizer().encode(PROMPT, Special::Parse);
    let mut session = Session::new(engine.clone(), 1000, KvType::F16).unwrap();
    session.sync(&prompt, go).unwrap();
    let (mut scored, mut shown) = (Vec::new(), String::new());
    let mut sampler = Sampler::new(random(0.8, 3)).unwrap();
    let show = |token: Option<Token>, piece: &str| {
        scored.extend(token);
        shown.push_str(piece);
        ControlFlow::Continue(())
    };
    session.generate_scored(&mut sampler, &limits, Some(1), show).unwrap();
    assert_eq!(shown, text);
    assert_eq!(scored.len(), tokens.len());
    // Scores are those of the model, without the grammar.
    let whole: Vec<_> = prompt.iter().copied().chain(scored.iter().map(|t| t.id)).collect();
    let mut list = Session::new(engine, 1000, KvType::F16).unwrap();
    let mut wanted = Vec::new();
    let show = |score| {
        wanted.push(score);
        ControlFlow::Continue(())
    };
    list.score(&whole, prompt.len(), 1, show).unwrap();
    assert!(scored.iter().map(|t| t.score.clone().unwrap()).eq(wanted));
}

#[test]
fn company_changes_nothing() {
    let folder = common::folder();
    let engine = demo(&folder);
    let object = by(&engine, &Grammar::JsonObject, 60);
    let schema = by(&engine, &Grammar::JsonSchema(person()), 200);
    let free = Limits::tokens(40);
    let ask = |i: u64| {
        let limits = [&object, &schema, &free][i as usize % 3];
        said(&engine, PROMPT, limits, &random(0.9, i))
    };
    let alone: Vec<_> = (0..9).map(ask).collect();
    thread::scope(|scope| {
        for (i, alone) in (0..).zip(&alone) {
            let ask = &ask;
            scope.spawn(move || assert_eq!(&ask(i), alone, "{i}"));
        }
    });
}

#[test]
fn what_cannot_be_met_is_refused_with_a_reason_before_the_first_token() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let lark = |text: &str| Grammar::Lark(text.into());
    let deep = "(".repeat(100_000);
    for (grammar, reason) in [
        (Grammar::JsonSchema(json!({ "type": "integer", "minimum": 5, "maximum": 3 })), "minimum"),
        (
            Grammar::JsonSchema(json!({ "type": "object", "properties": { "a": false }, "required": ["a"] })),
            "Unsatisfiable",
        ),
        (Grammar::JsonSchema(json!({ "type": "wrong" })), "wrong"),
        (Grammar::JsonSchema(json!(false)), "nsatisfiable"),
        (Grammar::JsonSchema(json!(7)), "JSON schema"),
        (Grammar::JsonSchema(json!({ "$ref": "#/$defs/none" })), "none"),
        (Grammar::JsonSchema(json!({ "$ref": "https://example.org/x.json" })), "example.org"),
        (
            Grammar::JsonSchema(json!({ "type": "array", "items": { "not": { "type": "null" } } })),
            "[\"not\"], at #/items",
        ),
        (Grammar::JsonSchema(json!({ "type": "string", "pattern": "(" })), "unclosed group"),
        (Grammar::Regex("a(".into()), "regular expression"),
        (Grammar::Regex("(?=a)".into()), "regular expression"),
        (lark("root ::= \"a\""), "GBNF"),
        (lark("start: nothing"), "nothing"),
        (lark("start: \"a"), "grammar"),
        (lark(""), "grammar"),
        (lark("other: \"a\""), "start"),
        // It says "ab" for ever.
        (lark("start: \"ab\" start"), "grammar"),
        (lark(&format!("start: {deep}")), "grammar"),
        (Grammar::Regex(deep.clone()), "regular expression"),
        (Grammar::Regex("((a{1000}){1000}){1000}".into()), "too many"),
    ] {
        let error = engine.constraint(&grammar).map(|_| String::new()).unwrap_or_else(|e| {
            assert!(matches!(e, Error::Argument(_)), "{e:?}");
            e.to_string()
        });
        let shown: String = format!("{grammar:?}").chars().take(100).collect();
        assert!(error.contains(reason), "{shown} says {reason:?}: {error:?}");
        assert!(error.len() < 2000 && !error.contains("<state>") && !error.contains("backtrace"), "{error}");
    }
    assert!(Grammar::json_schema("{").is_err());
}

#[test]
fn texts_of_a_grammar_and_of_an_expression_are_whole() {
    let folder = common::folder();
    let engine = demo(&folder);
    let seeds = || (0..12).map(|seed| random([0.0, 1.0, 1e6][seed as usize % 3], seed));
    let all = |grammar: Grammar, prompt: &str, ok: &dyn Fn(&str) -> bool| {
        let limits = by(&engine, &grammar, 100);
        for settings in seeds() {
            let (_, text, finish) = said(&engine, prompt, &limits, &settings);
            assert!(
                finish == Finish::Stop && ok(&text),
                "{grammar:?} behind {prompt:?}: {text:?}, {finish:?}"
            );
        }
    };
    // A text begins behind <sep>: its dummy prefix is no part of what is shown, and a space of the grammar is.
    for prompt in [PROMPT, "In the beginning"] {
        all(Grammar::Regex("(yes|no|春山|李白)".into()), prompt, &|t| {
            ["yes", "no", "春山", "李白"].contains(&t)
        });
        all(Grammar::Regex(" [0-9]{3}".into()), prompt, &|t| t.len() == 4 && t.starts_with(' '));
        all(Grammar::Regex("[\u{1F600}-\u{1F64F}]{2}".into()), prompt, &|t| t.len() == 8);
        let lines = "start: line+\nline: WORD \" \" WORD \"\\n\"\nWORD: /[a-z春山日]{1,3}/\n";
        let line = |l: &str| {
            let words: Vec<_> = l.split(' ').collect();
            words.len() == 2 && words.iter().all(|w| (1..=3).contains(&w.chars().count()))
        };
        // It may go on for ever, or end at the end of any line.
        let limits = by(&engine, &Grammar::Lark(lines.into()), 60);
        for settings in seeds() {
            let (_, text, finish) = said(&engine, prompt, &limits, &settings);
            let whole = text.strip_suffix('\n').unwrap_or(&text);
            match finish {
                Finish::Stop => assert!(text.ends_with('\n') && whole.split('\n').all(line), "{text:?}"),
                finish => assert_eq!(finish, Finish::Length),
            }
        }
    }
}

#[test]
fn limits_stops_and_biases_still_count() {
    let folder = common::folder();
    let engine = demo(&folder);
    let grammar = Grammar::JsonSchema(person());
    let (tokens, text, _) = said(&engine, PROMPT, &by(&engine, &grammar, 400), &random(0.9, 1));
    // Also within what is forced.
    for most in [0, 1, 5, tokens.len() - 1] {
        let (found, part, finish) = said(&engine, PROMPT, &by(&engine, &grammar, most), &random(0.9, 1));
        assert_eq!((&found[..], finish), (&tokens[..most], Finish::Length));
        assert!(text.starts_with(part.trim_end_matches('\u{FFFD}')));
    }
    let stop = Limits { stop_texts: vec!["\"age\"".into()], ..by(&engine, &grammar, 400) };
    let (_, part, finish) = said(&engine, PROMPT, &stop, &random(0.9, 1));
    assert_eq!((part.as_str(), finish), (&text[..text.find("\"age\"").unwrap()], Finish::StopText(0)));
    // Without the end of a document it goes on until nothing can follow, and no longer.
    let digits = Grammar::Regex("[0-9]{1,30}".into());
    let limits = Limits { ignore_eod: true, ..by(&engine, &digits, 100) };
    let (_, text, finish) = said(&engine, PROMPT, &limits, &random(0.9, 1));
    assert_eq!((text.len(), finish), (30, Finish::Stop));

    let prompt = engine.tokenizer().encode(PROMPT, Special::Parse);
    let mut session = Session::new(engine.clone(), prompt.len() + 6, KvType::F16).unwrap();
    session.sync(&prompt, go).unwrap();
    let mut heard = Vec::new();
    let full = session.generate(&mut sampler(1), &by(&engine, &grammar, 400), |token, _| {
        heard.extend(token);
        ControlFlow::Continue(())
    });
    assert!(matches!(full, Err(Error::ContextFull { .. })));
    assert_eq!(session.tokens(), [prompt.clone(), heard].concat());
    session.sync(&prompt, go).unwrap();
    let cancel = session.cancel_token();
    let mut heard = 0;
    let finish = session.generate(&mut sampler(1), &by(&engine, &grammar, 400), |_, _| {
        heard += 1;
        if heard == 3 {
            cancel.cancel();
        }
        ControlFlow::Continue(())
    });
    assert_eq!((finish.unwrap(), heard), (Finish::Cancelled, 3));

    let all = (0..engine.tokenizer().len() as u32).map(|id| (id, f32::NEG_INFINITY)).collect();
    let mut biased = Sampler::new(Settings { logit_bias: all, ..random(0.9, 1) }).unwrap();
    session.sync(&prompt, go).unwrap();
    let refused = session.generate(&mut biased, &by(&engine, &digits, 9), |_, _| ControlFlow::Continue(()));
    assert!(refused.unwrap_err().to_string().contains("biases"));
    let mut empty = Session::new(engine.clone(), 20, KvType::F16).unwrap();
    let none = empty.generate(&mut sampler(1), &by(&engine, &grammar, 4), |_, _| ControlFlow::Continue(()));
    assert!(none.unwrap_err().to_string().contains("give a prompt"));
}
