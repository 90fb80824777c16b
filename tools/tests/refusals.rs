//! What the programs refuse before they begin, and with which words.

mod common;

use common::{Folder, json, text, usage};

/// No number is taken that would bring the machine down or overflow: the message names the option and its limits.
#[test]
fn numbers_outside_their_limits_are_refused_before_anything_is_done() {
    let nothing = "no-such-model.gguf";
    for option in ["--threads", "--threads-batch", "--readers", "--context", "--context-shift", "--tokens"] {
        for value in ["100000000", "-7", "x", "99999999999999999999999", "1.5"] {
            let said = usage("yuan", &["generate", nothing, "-p", "x", option, value]);
            assert!(said.contains(option) && said.contains("error: "), "{option} {value}: {said}");
        }
    }
    let most = yuan::limits::most_threads();
    for command in [&["bench"][..], &["plan"], &["chat"], &["perplexity", "--file", "x"]] {
        let said = usage("yuan", &[command, &[nothing, "--threads", "100000"]].concat());
        assert!(said.contains(&format!("from 0 to {most}")), "{said}");
    }
    for args in [
        &["bench", nothing, "-p", "18446744073709551615", "-n", "1"][..],
        &["bench", nothing, "-r", "0"],
        &["bench", nothing, "--depth", "100000000"],
        &["bench", nothing, "--throttle", "0"],
        &["plan", nothing, "--context", "100000000"],
        &["plan", nothing, "--memory", "0"],
        &["plan", nothing, "--memory", "101%"],
        &["plan", nothing, "--gpu-memory", "1E"],
        &["demo", "-n", "100000000"],
        &["demo", "--threads", "100000"],
        &["trace", nothing, "-p", "x", "-o", "y", "-n", "100000000"],
        &["replay", nothing, "--drive", "0"],
        &["replay", nothing, "--compute", "-1"],
        &["replay", nothing, "--idle", "inf"],
        &["generate", nothing, "-p", "x", "--top-k", "100000000"],
        &["generate", nothing, "-p", "x", "--repeat-last-n", "-2"],
    ] {
        assert!(usage("yuan", args).contains("error: "), "{args:?}");
    }
}

#[test]
fn an_answer_of_minus_one_tokens_goes_on_until_the_context_is_full() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let generate = ["generate", &model, "-p", "Ruth 1:1<sep>", "--ignore-eod", "--json", "-n", "-1"];
    let short = json("yuan", &[&generate[..], &["--context", "40"]].concat());
    let count = |answer: &serde_json::Value, key: &str| answer[key].as_array().unwrap().len();
    // The last token of an answer is not run, and needs no room.
    assert_eq!(count(&short, "tokens"), 40 - count(&short, "prompt_tokens") + 1);
    assert_eq!(short["finish"], "length");
    // Without a number, and with 0, the context is what the model was made for.
    let whole = json("yuan", &generate);
    assert_eq!(count(&whole, "tokens"), 1024 - count(&whole, "prompt_tokens") + 1);
    let zero = json("yuan", &[&generate[..], &["--context", "0"]].concat());
    assert_eq!(zero["tokens"], whole["tokens"]);
    let told = common::run("yuan", &[&generate[..5], &["-n", "-1", "--context", "40"]].concat());
    assert!(common::err(&told).contains("(the context is full)"), "{}", common::err(&told));
    text("yuan", &["generate", &model, "-p", "Ruth 1:1<sep>", "-n", "0"]);
}
