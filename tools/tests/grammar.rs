//! Answers of a form, from the command line.

mod common;

use std::{fs, io::Write, process::Stdio};

use common::{Folder, complaint, json, program, text};
use serde_json::Value;

const SCHEMA: &str = r#"{"type":"object","properties":{"名":{"type":"string","maxLength":8},"n":{"type":"integer","maximum":99,"minimum":0}},"required":["名","n"],"additionalProperties":false}"#;

#[test]
fn an_answer_has_the_form_that_was_asked_for() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let file = folder.path("schema.json");
    fs::write(&file, SCHEMA).unwrap();
    let ask = ["generate", &model, "--chat", "-p", "Psalms 151:1", "--temp", "1", "--seed", "3", "-n", "200"];
    let with = |more: &[&str]| text("yuan", &[&ask[..], more].concat()).trim_end_matches('\n').to_owned();
    let by_file = with(&["--json-schema", &file]);
    let value: Value = serde_json::from_str(&by_file).unwrap();
    assert!(value["名"].is_string() && value["n"].as_u64().unwrap() < 100, "{by_file}");
    assert_eq!(with(&["--json-schema", SCHEMA]), by_file);
    let told = json("yuan", &[&ask[..], &["--json-schema", &file, "--json"]].concat());
    assert_eq!((told["text"].as_str().unwrap(), &told["finish"]), (&*by_file, &Value::from("stop")));
    assert_eq!(with(&["--regex", "春[山日]{3}"]).chars().count(), 4);
    let lark = folder.path("answer.lark");
    fs::write(&lark, "start: (\"yes\" | \"no\") \"!\"~3\n").unwrap();
    assert!(["yes!!!", "no!!!"].contains(&&*with(&["--grammar", &lark])));
    assert!(with(&["--json-object"]).starts_with('{'));

    let mut chat = program("yuan");
    chat.args(["chat", &model, "--regex", "[0-9]{2}"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut chat = chat.spawn().unwrap();
    chat.stdin.take().unwrap().write_all(b"Psalms\nPsalms\n").unwrap();
    let said = String::from_utf8(chat.wait_with_output().unwrap().stdout).unwrap();
    let lines: Vec<_> = said.lines().collect();
    assert!(lines.len() == 2 && lines.iter().all(|line| line.parse::<u8>().is_ok()), "{said}");
}

#[test]
fn a_form_that_cannot_be_had_is_refused() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let refused = |more: &[&str]| complaint("yuan", &[&["generate", &model, "-p", "x"], more].concat());
    assert!(refused(&["--json-schema", "no-such.json"]).contains("no-such.json"));
    assert!(refused(&["--json-schema", "{"]).contains("no JSON"));
    assert!(
        refused(&["--json-schema", r#"{"minimum": 3, "maximum": 1, "type": "number"}"#]).contains("minimum")
    );
    assert!(refused(&["--regex", "("]).contains("regular expression"));
    let gbnf = folder.path("answer.gbnf");
    fs::write(&gbnf, "root ::= \"yes\"").unwrap();
    assert!(refused(&["--grammar", &gbnf]).contains("GBNF"));
    let both = common::usage("yuan", &["generate", &model, "-p", "x", "--regex", "a", "--json-object"]);
    assert!(both.contains("cannot be used with"));
}
