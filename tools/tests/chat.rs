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

#[test]
fn answers_are_asked_for_again_and_questions_changed() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let options = ["-n", "12", "--ignore-eod", "--temp", "1.5", "--seed", "5"];
    let run = |lines: &[&str]| answers(&model, &options, lines);
    let first = run(&["Psalms 151:1", "Ruth 1:1", "/regenerate", "/edit 秋夜 杜甫", "/regen"]);
    assert_eq!(first.len(), 5);
    // The same prompt, another answer; and each goes on behind what stood before the question alone.
    assert_eq!(first[1]["prompt_tokens"], first[2]["prompt_tokens"]);
    assert_ne!(first[1]["tokens"], first[2]["tokens"]);
    let edited = run(&["Psalms 151:1", "秋夜 杜甫"]);
    assert_eq!(first[3]["prompt_tokens"], edited[1]["prompt_tokens"]);
    assert_eq!(first[4]["prompt_tokens"], first[3]["prompt_tokens"]);

    let best = chat(&model, &["-n", "8"], &["Ruth 1:1", "/regenerate", "/undo", "/regenerate", "/edit"]);
    for part in [
        "the answer is the same: /set temp 0.7",
        "[there is no question to ask again]",
        "[there is no question to change]",
    ] {
        assert!(err(&best).contains(part), "no {part:?} in {}", err(&best));
    }
    let lines: Vec<String> = out(&best).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0], lines[1]);
    // A script says what to ask. A question that has no answer leaves the one before.
    let long = "In the beginning God created the heaven and the earth. ".repeat(20);
    let edit = format!("/edit {long}");
    let kept =
        chat(&model, &["-n", "8", "--context", "64"], &["Ruth 1:1", "/edit", &edit, "/stats", "/undo"]);
    for part in [
        "give the question: /edit TEXT",
        "context holds 64 tokens",
        "[1 questions;",
        "[taken back: Ruth 1:1]",
        "lines that failed: 2",
    ] {
        assert!(err(&kept).contains(part), "no {part:?} in {}", err(&kept));
    }
}

#[test]
fn settings_change_while_a_conversation_runs() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let lines = [
        "/set n 5",
        "Ruth 1:1",
        "/set temp 1.5",
        "/set parameter seed 7",
        "/set num_predict 9",
        "/undo",
        "Ruth 1:1",
        "/set system Reply in verse.",
        "Ruth 1:1",
    ];
    let found = answers(&model, &["--ignore-eod", "-n", "3"], &lines);
    let count = |answer: &Value| answer["tokens"].as_array().unwrap().len();
    assert_eq!(found.iter().map(count).collect::<Vec<_>>(), [5, 9, 9]);
    assert_eq!((&found[0]["seed"], &found[1]["seed"]), (&Value::Null, &Value::from(7)));
    let given = answers(&model, &["--ignore-eod", "-n", "9", "--temp", "1.5", "--seed", "7"], &["Ruth 1:1"]);
    assert_eq!(found[1]["tokens"], given[0]["tokens"]);
    assert!(
        found[2]["prompt_tokens"].as_array().unwrap().len()
            > found[1]["prompt_tokens"].as_array().unwrap().len()
    );

    let said = chat(
        &model,
        &[],
        &["/set temp 0.5", "/set", "/set temp hot", "/set colour red", "/set temp", "/set top_p 7", "/set"],
    );
    for part in [
        "[set]",
        "[temp 0.5]",
        "[tokens -1]",
        "[seed -1]",
        "invalid value 'hot'",
        "no setting \"colour\"",
        "give a value: /set temp VALUE",
        "[top_p 1]",
        "lines that failed: 4",
    ] {
        assert!(err(&said).contains(part), "no {part:?} in {}", err(&said));
    }
}

#[test]
fn a_text_of_several_lines_stands_between_quotes() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let run = |lines: &[&str]| answers(&model, &["-n", "4"], lines);
    let continued = run(&["秋夜\\", "杜甫", "/bye", "not asked"]);
    assert_eq!(continued.len(), 1);
    for quoted in
        [&["\"\"\"秋夜", "杜甫\"\"\""][..], &["\"\"\"", "秋夜", "杜甫", "\"\"\""], &["\"\"\"秋夜", "杜甫"]]
    {
        assert_eq!(run(quoted)[0]["prompt_tokens"], continued[0]["prompt_tokens"], "{quoted:?}");
    }
    let one = run(&["\"\"\"Ruth 1:1\"\"\"", "/reset", "Ruth 1:1"]);
    assert_eq!(one[0]["prompt_tokens"], one[1]["prompt_tokens"]);
    // Behind a command too; and what looks like one between quotes is none.
    let system = run(&[
        "/system \"\"\"Reply",
        "in verse.\"\"\"",
        "Ruth 1:1",
        "/reset",
        "/system Reply\\",
        "in verse.",
        "Ruth 1:1",
    ]);
    assert_eq!(system[0]["prompt_tokens"], system[1]["prompt_tokens"]);
    let slash = run(&["\"\"\"/help", "me\"\"\"", "/clear", "//help\\", "me"]);
    assert_eq!(slash[0]["prompt_tokens"], slash[1]["prompt_tokens"]);
}

#[cfg(unix)]
#[test]
fn a_file_may_lie_in_the_home_of_the_user() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let home = folder.path("家");
    std::fs::create_dir(&home).unwrap();
    let mut child = common::program("yuan")
        .args(["chat", &model, "-n", "4"])
        .env("HOME", &home)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = b"Ruth 1:1\n/save ~/talk.session\n/reset\n/load ~/talk.session\n";
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), lines).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && err(&output).contains("[loaded: 1 questions]"), "{}", err(&output));
    assert!(std::path::Path::new(&home).join("talk.session").exists());
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

/// What a terminal shows of a conversation in which each of `typed` is typed when there is a prompt for it: the text, and how many prompts there have to be.
#[cfg(target_os = "linux")]
fn at_a_terminal(command: &str, typed: &[(usize, &str)]) -> Option<String> {
    use std::{
        io::{Read, Write},
        process::{Command, Stdio},
    };

    let script = Command::new("script")
        .args(["-qec", command, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut script) = script else {
        common::skip("there is no script(1) to make a terminal");
        return None;
    };
    let (mut input, mut screen) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
    let mut shown = Vec::new();
    for (wanted, typed) in typed {
        // A prompt begins with the announcement that text may be pasted.
        let prompts = |shown: &[u8]| String::from_utf8_lossy(shown).matches("\x1b[?2004h").count();
        while prompts(&shown) < *wanted {
            let mut byte = [0];
            screen.read_exact(&mut byte).unwrap();
            shown.extend(byte);
        }
        input.write_all(typed.as_bytes()).unwrap();
    }
    screen.read_to_end(&mut shown).unwrap();
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(script.wait().unwrap().success(), "{shown}");
    Some(shown)
}

/// At a terminal lines are edited, and kept for the next time.
#[cfg(target_os = "linux")]
#[test]
fn a_terminal_has_line_editing_and_a_history() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let history = folder.path("state/history");
    let yuan = env!("CARGO_BIN_EXE_yuan");
    let command = format!("'{yuan}' chat '{model}' -n 8 --ignore-eod --history '{history}'");
    // Typed wrong and taken back with Ctrl-U and with the backspace key; the first line once more by arrow up.
    let typed = [(1, "wrong\x15秋夜 杜甫王\x7f\r"), (2, "\x1b[A\r"), (3, "/stats\r"), (4, "/exit\r")];
    let Some(shown) = at_a_terminal(&command, &typed) else { return };
    assert!(shown.contains("2 questions"), "{shown}");
    let kept = std::fs::read_to_string(&history).unwrap();
    assert_eq!(kept.lines().skip(1).collect::<Vec<_>>(), ["秋夜 杜甫", "/stats", "/exit"], "{kept}");
}

/// What is typed, or pasted, before it is asked for is not lost: neither whole lines nor the half of one. Tab completes, and `/edit` shows the question.
#[cfg(target_os = "linux")]
#[test]
fn a_terminal_keeps_what_is_typed_ahead_and_completes() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let (yuan, history) = (env!("CARGO_BIN_EXE_yuan"), folder.path("history"));
    let command = format!("'{yuan}' chat '{model}' -n 8 --ignore-eod --history '{history}'");
    let typed =
        [(1, "Ruth 1:1\rRuth 1:2\rRuth 1:3\r/sta"), (4, "\t\r"), (5, "/edit\r"), (6, "4\r"), (7, "/bye\r")];
    let Some(shown) = at_a_terminal(&command, &typed) else { return };
    assert!(shown.contains("[3 questions;"), "{shown}");
    let kept = std::fs::read_to_string(&history).unwrap();
    let wanted = ["Ruth 1:1", "Ruth 1:2", "Ruth 1:3", "/stats", "/edit", "/edit Ruth 1:34", "/bye"];
    assert_eq!(kept.lines().skip(1).map(str::trim_end).collect::<Vec<_>>(), wanted, "{kept}");
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
