//! Conversations and saved sessions, as a person or a script has them.

mod common;

use std::{
    fs,
    io::{BufRead, Read, Write},
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use common::{Folder, complaint, json, program, run, text};
use serde_json::Value;

/// A conversation with these lines on standard input.
fn chat(model: &str, options: &[&str], lines: &[&str]) -> Output {
    let mut child = program("yuan")
        .args(["chat", model])
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut input = child.stdin.take().unwrap();
    lines.iter().for_each(|line| writeln!(input, "{line}").unwrap());
    drop(input);
    child.wait_with_output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// The answers of a conversation that must succeed.
fn answers(model: &str, options: &[&str], lines: &[&str]) -> Vec<Value> {
    let output = chat(model, &[&["--json"], options].concat(), lines);
    assert!(output.status.success(), "{}", err(&output));
    out(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

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
        eprintln!("skipped: there is no script(1) to make a terminal");
        return;
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
    let output = chat(&model, &options, &["秋夜 杜甫", "Ruth 1:1", "/undo", "/reset", "Ruth 1:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(err(&output).matches("the context is full").count(), 2, "{}", err(&output));
    assert!(err(&output).contains("the context holds 24 tokens and"), "{}", err(&output));
    assert_eq!(out(&output).lines().count(), 2);
    let wrong = chat(&model, &[], &["/nonsense", "/save", "/load /no/such/file", "Ruth 1:1"]);
    for part in ["no command /nonsense", "/save FILE", "check the path", "lines that failed: 3"] {
        assert!(err(&wrong).contains(part), "no {part:?} in {}", err(&wrong));
    }
    assert!(!out(&wrong).is_empty());
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

#[test]
fn a_saved_generation_goes_on_as_if_it_had_not_stopped() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let file = folder.path("s.session");
    for prompt in ["1 Chronicles 27:7-12<sep>", "十五夜观灯 王维<sep>"] {
        for kv in ["f16", "q8_0"] {
            let args = |n, more: &[&'static str]| -> Vec<String> {
                let fixed = ["generate", &model, "--json", "--kv", kv, "--ignore-eod", "-n", n];
                fixed.iter().chain(more).map(|&s| s.to_owned()).collect()
            };
            let sampling = ["--temp", "0.8", "--top-p", "0.9", "--repeat-penalty", "1.1", "--seed", "3"];
            let run = |args: Vec<String>, more: &[&str]| {
                let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
                json("yuan", &args)
            };
            let whole = run(args("40", &sampling), &["-p", prompt]);
            let first = run(args("15", &sampling), &["-p", prompt, "--save", &file]);
            let second = run(args("25", &[]), &["--load", &file, "--save", &file]);
            let list = |v: &Value| v["tokens"].as_array().unwrap().clone();
            assert_eq!([list(&first), list(&second)].concat(), list(&whole));
            // And on, with another text in between.
            let third = run(args("5", &[]), &["--load", &file, "-p", "<sep>"]);
            assert_eq!(third["tokens"].as_array().unwrap().len(), 5);
            assert!(third["reused_tokens"].as_u64() >= Some(40));
        }
    }
    let conversation = chat(&model, &[], &[&format!("/load {file}")]);
    assert!(err(&conversation).contains("holds no conversation"));
}

#[test]
fn options_of_the_choice_reach_it() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let args = ["generate", &model, "-p", "Psalms 151:1-4<sep>", "-n", "30", "--ignore-eod", "--json"];
    let run = |more: &[&str]| json("yuan", &[&args[..], more].concat());
    let plain = run(&[]);
    let (tokens, plain_text) = (plain["tokens"].as_array().unwrap(), plain["text"].as_str().unwrap());
    let first = tokens[0].as_u64().unwrap();
    assert_ne!(run(&["--logit-bias", &format!("{first}-inf")])["tokens"][0], first);
    let favourite = run(&["--logit-bias", "300+1000"]);
    assert!(favourite["tokens"].as_array().unwrap().iter().all(|t| t == 300));
    let stop = run(&["--stop", "no such text 无", "--stop", " the "]);
    assert_eq!(stop["text"], plain_text.split(" the ").next().unwrap());
    assert_eq!(stop["finish"], "stop_text");
    for penalty in ["--repeat-penalty", "--presence-penalty", "--frequency-penalty"] {
        let punished = run(&[penalty, "5", "--repeat-last-n", "-1"]);
        assert_ne!(punished["tokens"], plain["tokens"], "{penalty}");
    }
    let greedy = run(&["--temp", "2", "--min-p", "1"]);
    assert_eq!(greedy["tokens"], plain["tokens"]);
    assert!(complaint("yuan", &[&args[..], &["--logit-bias", "4096+1"]].concat()).contains("4095"));
    assert!(complaint("yuan", &[&args[..], &["--min-p", "2"]].concat()).contains("min-p"));
    let short = ["--context", "20"];
    let file = folder.path("full.session");
    let full = complaint("yuan", &[&args[..], &short, &["--save", &file]].concat());
    assert!(full.contains("the context holds 20 tokens"), "{full}");
    let more = json("yuan", &["generate", &model, "--load", &file, "-n", "5", "--ignore-eod", "--json"]);
    let first = 21 - plain["prompt_tokens"].as_array().unwrap().len();
    assert_eq!(more["tokens"].as_array().unwrap()[..], tokens[first..first + 5]);
    let shifted = run(&[&short[..], &["--context-shift", "4"]].concat());
    assert_eq!(shifted["tokens"].as_array().unwrap().len(), 30);
}

/// Standard error of a run whose answer could not be saved.
fn refusal(args: &[&str]) -> String {
    let output = program("yuan").args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("error: ") && !out(&output).is_empty(), "{}", err(&output));
    err(&output)
}

/// Runs `yuan generate --save` in a namespace of its own, in which `mount` has made something of `folder`. `None` where the
/// system does not let us.
fn saved_in(mount: &str, folder: &str, model: &str) -> Option<Output> {
    let script = "mount -t tmpfs -o \"$1\" none \"$2\" || exit 99; shift 2; exec \"$@\"";
    let output = Command::new("unshare")
        .args(["-r", "-m", "sh", "-c", script, "sh", mount, folder, env!("CARGO_BIN_EXE_yuan")])
        .args([
            "generate",
            model,
            "-p",
            "Ruth 1:1<sep>",
            "-n",
            "30",
            "--save",
            &format!("{folder}/s.session"),
        ])
        .output()
        .ok()?;
    let refused = output.status.code() == Some(99) || err(&output).starts_with("unshare");
    if refused {
        eprintln!("skipped: no namespaces here: {}", err(&output));
    }
    (!refused).then_some(output)
}

#[test]
fn a_full_disk_and_a_read_only_folder_are_errors_with_a_remedy() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let mounted = folder.path("mounted");
    fs::create_dir(&mounted).unwrap();
    for (mount, words) in [
        ("size=64k", "make room or choose another folder"),
        ("nr_inodes=1", "make room or choose another folder"),
        ("ro", "choose another folder"),
    ] {
        let Some(output) = saved_in(mount, &mounted, &model) else { return };
        assert_eq!(output.status.code(), Some(1), "{mount}: {}", err(&output));
        assert!(err(&output).contains(words) && err(&output).contains("error: "), "{}", err(&output));
        assert!(!out(&output).is_empty(), "the answer is there all the same");
    }
}

/// The disk refuses in the midst of the file: the old one stays, and nothing is left beside it.
#[cfg(unix)]
#[test]
fn a_save_that_fails_half_way_keeps_the_old_file() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let file = folder.path("s.session");
    let generate = ["generate", &model, "-p", "Ruth 1:1<sep>", "--ignore-eod", "--save", &file];
    text("yuan", &[&generate[..], &["-n", "5"]].concat());
    let before = fs::read(&file).unwrap();
    let limited = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_yuan")])
        .args(generate)
        .args(["-n", "80"])
        .output()
        .unwrap();
    assert_eq!(limited.status.code(), Some(1));
    assert!(err(&limited).contains("error: cannot write"), "{}", err(&limited));
    assert_eq!(fs::read(&file).unwrap(), before);
    let mut left: Vec<_> = fs::read_dir(folder.0.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["m.gguf", "s.session"]);
}

/// As a session, so everything that the tools write.
#[cfg(unix)]
#[test]
fn outputs_that_fail_half_way_keep_the_old_file() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let (trace, logits, svg) = (folder.path("trace"), folder.path("l.npy"), folder.path("heat.svg"));
    let prompt = "In the beginning God created the heaven and the earth.<sep>";
    let ids = ["1910"; 40].join(",");
    text("yuan", &["trace", &model, "-p", prompt, "-n", "8", "-o", &trace]);
    fs::copy(&trace, folder.path("long")).unwrap();
    for (args, file) in [
        (vec!["trace", &model, "-p", prompt, "-n", "300", "--ignore-eod", "-o", &trace], &trace),
        (vec!["logits", &model, "--tokens", &ids, "-o", &logits], &logits),
        (vec!["replay", &trace, "--svg", &svg], &svg),
    ] {
        fs::write(file, "old").unwrap();
        if *file == svg {
            fs::copy(folder.path("long"), &trace).unwrap();
        }
        let limited = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_yuan")])
            .args(&args)
            .output()
            .unwrap();
        assert_eq!(limited.status.code(), Some(1), "{args:?}");
        assert!(err(&limited).contains("error: cannot write"), "{}", err(&limited));
        assert_eq!(fs::read_to_string(file).unwrap(), "old");
        assert!(partials(&folder).is_empty());
        let unlimited = run("yuan", &args);
        assert!(unlimited.status.success(), "{}", err(&unlimited));
        assert_ne!(fs::read(file).unwrap(), b"old");
        assert!(partials(&folder).is_empty());
    }
}

fn partials(folder: &Folder) -> Vec<String> {
    let names = fs::read_dir(folder.0.path()).unwrap().map(|e| e.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).filter(|name| name.ends_with(".partial")).collect()
}

/// Killed while it saves again and again: what is there can always be loaded, and the next save clears away what is beside it.
#[cfg(unix)]
#[test]
fn a_killed_save_leaves_the_old_file_or_the_new_one() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let file = folder.path("talk.session");
    let lines = ["Ruth 1:1".to_owned()].into_iter().chain((0..800).map(|_| format!("/save {file}")));
    let lines = lines.collect::<Vec<_>>().join("\n");
    for round in 0..8 {
        let mut child = program("yuan")
            .args(["chat", &model, "-n", "200", "--ignore-eod"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        // Less than a pipe holds.
        input.write_all(lines.as_bytes()).unwrap();
        let mut saved = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(saved.nth(round).unwrap().unwrap().contains("[saved: "));
        child.kill().unwrap();
        child.wait().unwrap();
        let loaded = answers(&model, &["-n", "1", "--ignore-eod", "--load", &file], &["Ruth 1:2"]);
        assert!(loaded[0]["reused_tokens"].as_u64() > Some(0));
    }
    text("yuan", &["generate", &model, "-p", "Ruth 1:1<sep>", "-n", "5", "--save", &file]);
    assert!(partials(&folder).is_empty(), "{:?}", partials(&folder));
}

/// Ctrl-C in the midst of an answer without end: what there is of it is shown and saved, and the status is that of an
/// interrupted program.
#[cfg(unix)]
#[test]
fn ctrl_c_stops_an_answer() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let file = folder.path("s.session");
    let endless = ["--ignore-eod", "--context", "200000", "-n", "199000"];
    let generate = ["generate", &model, "-p", "Ruth 1:1<sep>", "--save", &file];
    for args in [&generate[..], &["chat", &model]] {
        let mut child = program("yuan")
            .args(args)
            .args(endless)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"Ruth 1:1\nRuth 1:2\n").unwrap();
        let mut first = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", err(&output));
        assert!(err(&output).contains("stopped"), "{}", err(&output));
    }
    let more = json("yuan", &["generate", &model, "--load", &file, "-n", "3", "--ignore-eod", "--json"]);
    assert_eq!(more["tokens"].as_array().unwrap().len(), 3);
}

/// Waits until a program has a thread of this name.
#[cfg(target_os = "linux")]
fn wait_for_thread(id: u32, name: &str) {
    let is_there = || {
        let tasks = fs::read_dir(format!("/proc/{id}/task")).expect("the program runs");
        let mut names = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        names.any(|found| found.trim() == name)
    };
    while !is_there() {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Ctrl-C while a model is opened, while it reads a prompt and while it writes: the program ends soon, says why, and leaves nothing half done.
#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_ends_a_streamed_run_wherever_it_is() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let (prompt, saved, logits) = (folder.path("prompt"), folder.path("s.session"), folder.path("l.npy"));
    fs::write(&prompt, "In the beginning God created the heaven and the earth. ".repeat(3900)).unwrap();
    let plan = json(
        "yuan",
        &["plan", &model, "--json", "--context", "60000", "--paging", "streamed", "--memory", "8G"],
    );
    let memory = (plan["smallest"].as_u64().unwrap() + 3_000_000).to_string();
    let streamed = ["--paging", "streamed", "--memory", &memory];
    let ids = vec!["7"; 40_000].join(",");
    let generate = ["generate", &model, "--file", &prompt, "-n", "5", "--context", "60000", "--save", &saved];
    let write = ["generate", &model, "-p", "Ruth 1:1<sep>", "-n", "50000", "--ignore-eod"];
    let bench = ["bench", &model, "-p", "512", "-n", "0", "--throttle", "0.001"];
    let runs = [
        (&generate[..], "yuan-read-0", 0),
        (&generate[..], "yuan-read-0", 100),
        (&generate[..], "yuan-read-0", 1000),
        (&generate[..], "ctrl-c", 0),
        (&write[..], "yuan-read-0", 0),
        (&write[..], "yuan-read-0", 1000),
        (&bench[..], "yuan-compute-0", 300),
        (&["logits", &model, "--tokens", &ids, "-o", &logits][..], "yuan-read-0", 300),
        (&["perplexity", &model, "--file", &prompt][..], "yuan-read-0", 300),
    ];
    for (args, thread, pause) in runs {
        let child = program("yuan")
            .args(args)
            .args(streamed)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for_thread(child.id(), thread);
        std::thread::sleep(Duration::from_millis(pause));
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{args:?}: {}", err(&output));
        assert!(err(&output).contains("stopped"), "{args:?}: {}", err(&output));
        assert!(partials(&folder).is_empty() && !fs::exists(&logits).unwrap(), "{args:?}");
    }
    // What was read of the prompt before the end.
    if fs::exists(&saved).unwrap() {
        text(
            "yuan",
            &["generate", &model, "--load", &saved, "-n", "1", "--ignore-eod", "--context", "60000"],
        );
    }
}

#[test]
fn files_that_may_not_be_used_are_errors_with_a_remedy() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let file = folder.path("s.session");
    text("yuan", &["generate", &model, "-p", "Ruth 1:1<sep>", "-n", "5", "--save", &file]);
    let whole = fs::read(&file).unwrap();
    for path in ["/dev/full", "/dev/null", folder.0.path().to_str().unwrap()] {
        let args = ["generate", &model, "-p", "Ruth 1:1<sep>", "-n", "5", "--save", path];
        assert!(refusal(&args).contains("is no file"), "{path}");
    }
    let nowhere = folder.path("no/folder/s.session");
    let args = ["generate", &model, "-p", "Ruth 1:1<sep>", "-n", "5", "--save", &nowhere];
    assert!(refusal(&args).contains("check the path"));
    assert_eq!(fs::read(&file).unwrap(), whole);

    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    fs::write(&file, damaged).unwrap();
    let message = complaint("yuan", &["generate", &model, "--load", &file, "-n", "3"]);
    assert!(message.contains("save the session again"), "{message}");
    let other = folder.converted("other.gguf", &["--experts", "q4_0"]);
    fs::write(&file, whole).unwrap();
    assert!(complaint("yuan", &["generate", &other, "--load", &file, "-n", "3"]).contains("another model"));
    let float = ["generate", &model, "--load", &file, "-n", "3", "--float"];
    assert!(complaint("yuan", &float).contains("without --float"));
    not_for_others(&model, &file, folder.0.path());
}

/// A file that may not be read, by a user who is not root.
#[cfg(unix)]
fn not_for_others(model: &str, file: &str, folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(folder, 0o755);
    mode(Path::new(file), 0o000);
    let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout == b"0\n");
    let mut command = if root { Command::new("setpriv") } else { Command::new(env!("CARGO_BIN_EXE_yuan")) };
    if root {
        command.args(user).arg(env!("CARGO_BIN_EXE_yuan"));
    }
    let generate = ["generate", model, "-n", "3"];
    let Ok(output) = command.args(generate).args(["--load", file]).output() else { return };
    if err(&output).starts_with("setpriv") {
        eprintln!("skipped: no other user here: {}", err(&output));
        return;
    }
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("check who may use the file"), "{}", err(&output));
    mode(Path::new(file), 0o600);
}

#[cfg(not(unix))]
fn not_for_others(_: &str, _: &str, _: &Path) {}
