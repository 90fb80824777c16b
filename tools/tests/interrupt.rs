//! Programs that are stopped or killed in the midst of their work.
#![cfg(unix)]

mod common;

use std::{
    fs,
    io::{BufRead, Read, Write},
    process::{Command, Stdio},
    time::Duration,
};

use common::{Folder, answers, err, json, partials, program, text};

/// Killed while it saves again and again: what is there can always be loaded, and the next save clears away what is beside it.
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
        let lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
        let mut saved = lines.map(Result::unwrap).filter(|line| line.contains("[saved: "));
        saved.nth(round).expect("it saves");
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
    let table = [&bench[..], &["-o", "json"]].concat();
    let runs = [
        (&generate[..], "yuan-read-0", 0),
        (&generate[..], "yuan-read-0", 100),
        (&generate[..], "yuan-read-0", 1000),
        (&generate[..], "ctrl-c", 0),
        (&write[..], "yuan-read-0", 0),
        (&write[..], "yuan-read-0", 1000),
        (&bench[..], "yuan-compute-0", 300),
        (&table[..], "yuan-compute-0", 300),
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
