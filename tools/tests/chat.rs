//! Conversations, as a person or a script has them.

mod common;

use common::{Folder, answers, chat, err, json, out};
use serde_json::Value;

#[test]
fn a_conversation_is_the_models_chat_form_turn_by_turn() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let options = ["-n", "20", "--ignore-eod"];
    for questions in
        [["Psalms 151:1", "Genesis 1:1", "Ruth 2:3"], ["春日山中 李白", "秋夜 杜甫", "月夜 王维"]]
    {
        let found = answers(&model, &options, &questions);
        assert_eq!(found.len(), 3);
        // The same by hand: all earlier messages, and the question, in the form of the template.
        let mut history = String::new();
        for (question, answer) in questions.iter().zip(&found) {
            history.push_str(question);
            let args = ["generate", &model, "-n", "20", "--ignore-eod", "--chat", "--json", "-p", &history];
            let wanted = json("yuan", &args);
            for key in ["prompt_tokens", "tokens", "text"] {
                assert_eq!(answer[key], wanted[key], "{question}: {key}");
            }
            history.push_str(&format!("<n>{}<n>", answer["text"].as_str().unwrap()));
        }
        let reused: Vec<u64> = found.iter().map(|a| a["reused_tokens"].as_u64().unwrap()).collect();
        assert!(reused[0] == 0 && reused[1] > 0 && reused[2] > reused[1] + 15, "{reused:?}");
        let streamed = out(&chat(&model, &options, &questions));
        let texts: Vec<&str> = found.iter().map(|a| a["text"].as_str().unwrap()).collect();
        assert_eq!(streamed, texts.join("\n") + "\n");
    }
}

#[test]
fn commands_of_a_conversation_do_what_they_say() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let file = folder.path("talk.session");
    let (save, load) = (format!("/save {file}"), format!("/load {file}"));
    let options = ["-n", "12", "--temp", "0.8", "--seed", "5"];
    let run = |lines: &[&str]| answers(&model, &options, lines);

    let plain = run(&["Psalms 151:1", "秋夜 杜甫"]);
    // Taken back, forgotten: as if it had not been asked.
    let undone = run(&["Psalms 151:1", "Ruth 1:1", "/undo", "秋夜 杜甫"]);
    assert_eq!(plain[1]["prompt_tokens"], undone[2]["prompt_tokens"]);
    let reset = run(&["Ruth 1:1", "/reset", "Psalms 151:1", "秋夜 杜甫"]);
    assert_eq!(plain[..], reset[1..].iter().map(without_speed(&plain)).collect::<Vec<_>>()[..]);
    // Saved, left, loaded by another run: as if it had gone on.
    run(&["Psalms 151:1", &save]);
    let loaded = run(&[&load, "秋夜 杜甫"]);
    assert_eq!(plain[1]["tokens"], loaded[0]["tokens"]);
    assert!(loaded[0]["reused_tokens"].as_u64() > Some(0));
    let begun = answers(&model, &[&options[..], &["--load", &file]].concat(), &["秋夜 杜甫"]);
    assert_eq!(plain[1]["tokens"], begun[0]["tokens"]);

    let system = run(&["/system Reply in verse.", "Ruth 1:1", "/reset", "Ruth 1:1", "/system", "Ruth 1:1"]);
    assert_eq!(system[0]["prompt_tokens"], system[1]["prompt_tokens"]);
    let given = answers(&model, &[&options[..], &["--system", "Reply in verse."]].concat(), &["Ruth 1:1"]);
    assert_eq!(system[0]["prompt_tokens"], given[0]["prompt_tokens"]);
    assert_ne!(system[0]["prompt_tokens"], run(&["Ruth 1:1"])[0]["prompt_tokens"]);

    // A literal slash, a line that goes on, an empty line, and nothing behind /exit.
    let odd = run(&["//help", "", "a\\", "b", "/exit", "not asked"]);
    assert_eq!(odd.len(), 2);
    let told = err(&chat(&model, &options, &["/help", "Ruth 1:1", "/stats", "/undo", "/undo"]));
    for part in
        ["/system TEXT", "1 questions", "tok/s", "experts used", "[taken back: Ruth 1:1]", "no question"]
    {
        assert!(told.contains(part), "no {part:?} in {told}");
    }
}

/// What does not depend on the clock, nor on what was there before.
fn without_speed(like: &[Value]) -> impl Fn(&Value) -> Value {
    let like = like.to_vec();
    move |answer| {
        let mut answer = answer.clone();
        let same = like.iter().find(|l| l["tokens"] == answer["tokens"]);
        let keys = ["prefill_tokens_per_second", "decode_tokens_per_second", "reused_tokens"];
        for key in keys.into_iter().chain(["token_ms", "paging", "prefill", "decode"]) {
            answer[key] = same.map_or(Value::Null, |same| same[key].clone());
        }
        answer
    }
}

/// At a terminal lines are edited, and kept for the next time.
#[cfg(target_os = "linux")]
#[test]
fn a_terminal_has_line_editing_and_a_history() {
    use std::{
        fs,
        io::{Read, Write},
        process::{Command, Stdio},
    };

    use common::skip;

    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let history = folder.path("state/history");
    let yuan = env!("CARGO_BIN_EXE_yuan");
    let command = format!("'{yuan}' chat '{model}' -n 8 --ignore-eod --history '{history}'");
    let script = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut script) = script else {
        return skip("there is no script(1) to make a terminal");
    };
    // Typed wrong and taken back with Ctrl-U and with the backspace key; the first line once more by arrow up.
    let (mut input, mut screen) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
    let mut shown = Vec::new();
    for (i, typed) in ["wrong\x15秋夜 杜甫王\x7f\r", "\x1b[A\r", "/stats\r", "/exit\r"].iter().enumerate()
    {
        // A prompt begins with the announcement that text may be pasted.
        let prompts = |shown: &[u8]| String::from_utf8_lossy(shown).matches("\x1b[?2004h").count();
        while prompts(&shown) <= i {
            let mut byte = [0];
            screen.read_exact(&mut byte).unwrap();
            shown.extend(byte);
        }
        input.write_all(typed.as_bytes()).unwrap();
    }
    screen.read_to_end(&mut shown).unwrap();
    let shown = String::from_utf8_lossy(&shown);
    assert!(script.wait().unwrap().success(), "{shown}");
    assert!(shown.contains("2 questions"), "{shown}");
    let kept = fs::read_to_string(&history).unwrap();
    assert_eq!(kept.lines().skip(1).collect::<Vec<_>>(), ["秋夜 杜甫", "/stats", "/exit"], "{kept}");
}

#[test]
fn a_full_context_is_said_and_the_conversation_lives() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let options = ["--context", "24", "--ignore-eod"];
    let questions = ["秋夜 杜甫", "Ruth 1:1", "Ruth 1:2", "Ruth 1:3", "/undo", "/reset", "Ruth 1:1"];
    let output = chat(&model, &options, &questions);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(err(&output).matches("the context is full").count(), 2, "{}", err(&output));
    for (part, times) in
        [("the context holds 24 tokens and", 1), ("error: the conversation is still too long", 2)]
    {
        assert_eq!(err(&output).matches(part).count(), times, "{part}: {}", err(&output));
    }
    assert_eq!(out(&output).lines().count(), 2);
    let wrong = chat(&model, &[], &["/nonsense", "/save", "/load /no/such/file", "Ruth 1:1"]);
    for part in ["no command /nonsense", "/save FILE", "check the path", "lines that failed: 3"] {
        assert!(err(&wrong).contains(part), "no {part:?} in {}", err(&wrong));
    }
    assert!(!out(&wrong).is_empty());
}

#[test]
fn an_answer_that_the_limit_has_cut_off_is_said_to_be() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let output = chat(&model, &["-n", "3", "--ignore-eod"], &["Ruth 1:1"]);
    assert!(output.status.success() && err(&output).contains("[cut off by -n 3]"), "{}", err(&output));
}

/// With --context-shift a conversation has no end: what is oldest goes, but for the system text and what was asked to stay.
#[test]
fn a_conversation_longer_than_the_context_drops_what_is_oldest_where_that_is_asked_for() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let system = "Answer in verses.";
    let options = ["--context", "64", "-n", "12", "--ignore-eod", "--context-shift", "0", "--system", system];
    let questions = ["Ruth 1:1", "秋夜 杜甫", "Psalms 3:2", "春日山中 李白", "Ruth 2:2", "Job 1:1"];
    let output = chat(&model, &options, &[&questions[..], &["/stats"]].concat());
    assert!(output.status.success(), "{}", err(&output));
    assert!(err(&output).contains("[the context was full: the oldest"), "{}", err(&output));
    let answers = answers(&model, &options, &questions);
    let beginning = &json("yuan", &["tokenize", &model, "--json", system])["ids"];
    for answer in &answers {
        let (prompt, tokens) =
            (answer["prompt_tokens"].as_array().unwrap(), answer["tokens"].as_array().unwrap());
        assert_eq!(tokens.len(), 12);
        assert!(prompt.len() <= 64);
        assert!(prompt.starts_with(beginning.as_array().unwrap()), "{prompt:?}");
    }
    // Half of the context is free again, and questions are read once.
    assert!(answers.iter().any(|a| a["reused_tokens"].as_u64() > Some(12)));

    let long = chat(
        &model,
        &["--context", "24", "--ignore-eod", "-n", "100", "--context-shift", "4"],
        &["Ruth 1:1"],
    );
    assert!(long.status.success(), "{}", err(&long));
    assert!(err(&long).contains("was dropped while this was written"), "{}", err(&long));
    let refused = chat(
        &model,
        &["--context", "8", "--context-shift", "0"],
        &["In the beginning God created the heaven and the earth"],
    );
    assert!(err(&refused).contains("the context holds 8 tokens"), "{}", err(&refused));
}
