//! Drafts by the options of the programs.

mod common;

use std::fs;

use common::{Folder, answers, complaint, json, text, usage};

const PROMPT: &str = "1 Chronicles 27:7-12<sep>";

#[test]
fn an_answer_is_the_same_however_it_is_drafted() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let args = [
        "generate",
        &model,
        "-p",
        PROMPT,
        "-n",
        "90",
        "--ignore-eod",
        "--json",
        "--temp",
        "0.6",
        "--seed",
        "3",
    ];
    let plain = json("yuan", &[&args[..], &["--draft", "off"]].concat());
    assert_eq!((&plain["drafted_tokens"], &plain["accepted_tokens"]), (&0.into(), &0.into()));
    let hint = folder.path("hint.txt");
    fs::write(&hint, plain["text"].as_str().unwrap()).unwrap();
    for options in [
        &["--draft", "auto"][..],
        &["--draft", "3"],
        &["--draft", "1", "--draft-from", &hint],
        &["--draft-from", &hint],
    ] {
        let drafted = json("yuan", &[&args[..], options].concat());
        assert_eq!((&drafted["tokens"], &drafted["text"]), (&plain["tokens"], &plain["text"]), "{options:?}");
    }
    let quoted = json("yuan", &[&args[..], &["--draft", "3", "--draft-from", &hint]].concat());
    assert_eq!(quoted["tokens"], plain["tokens"]);
    assert!(quoted["accepted_tokens"].as_u64().unwrap() > 40, "it says what its hint says");
    assert!(
        complaint("yuan", &[&args[..], &["--draft-from", "/no/such/file"]].concat()).contains("--draft-from")
    );
    for wrong in ["0", "4", "always"] {
        assert!(
            usage("yuan", &[&args[..], &["--draft", wrong]].concat()).contains("auto, off, or 1 to 3 tokens")
        );
    }

    let lines = ["Psalms 151:1", "Psalms 151:1"];
    let of = |draft: &str| answers(&model, &["-n", "40", "--draft", draft], &lines);
    let [off, on] = ["off", "3"].map(of);
    let said = |answers: &[serde_json::Value]| answers.iter().map(|a| a["text"].clone()).collect::<Vec<_>>();
    assert_eq!(said(&off), said(&on));
}

#[test]
fn a_benchmark_drafts_as_right_as_it_is_told() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let bench = ["bench", &model, "-p", "8", "-n", "61", "-r", "1"];
    for (part, passes) in [("0", 59), ("1", 15)] {
        let options = ["--draft", "3", "--draft-accept", part];
        let object = json("yuan", &[&bench[..], &options, &["--json"]].concat());
        let (draft, count) = (&object["draft"], |key: &str| object["draft"][key].as_u64().unwrap());
        assert!(
            draft["factor"].as_f64().unwrap() > 0.0 && draft["pairs"].as_array().unwrap().len() == 1,
            "{draft}"
        );
        let accepted = count("accepted_tokens");
        assert_eq!(accepted, if part == "0" { 0 } else { count("drafted_tokens") });
        // Sixty tokens behind the first, of which each pass gives one beside its drafts.
        assert!((passes..=passes + 1).contains(&(60 - accepted)), "{draft}");
    }
    let shown = text("yuan", &[&bench[..], &["--draft", "auto"]].concat());
    assert!(shown.contains("without drafts") && shown.contains("times as fast"), "{shown}");
    assert!(usage("yuan", &[&bench[..], &["--draft-accept", "0.5"]].concat()).contains("--draft"));
    assert!(
        usage("yuan", &[&bench[..], &["--draft", "3", "--draft-accept", "2"]].concat()).contains("0 to 1")
    );
}
