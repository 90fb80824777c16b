//! Saved sessions, the options of the choice, and outputs that cannot be written.

mod common;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use common::{Folder, chat, complaint, err, json, out, run, skip, text};
use serde_json::Value;

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
    assert!(err(&conversation).contains("holds a session without a conversation"));
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

/// Choices are random unless a seed is given; the one that was taken is shown, and gives the same text again.
#[test]
fn without_a_seed_every_text_is_another_one_that_can_be_had_again() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let args = ["generate", &model, "-p", "Psalms 151:1-4<sep>", "-n", "30", "--temp", "1.2", "--ignore-eod"];
    let of = |more: &[&str]| json("yuan", &[&args[..], &["--json"], more].concat());
    let texts = [of(&[]), of(&["--seed", "-1"]), of(&[]), of(&[])];
    assert!(texts.iter().any(|t| t["tokens"] != texts[0]["tokens"]), "{texts:?}");
    for text in &texts {
        let seed = text["seed"].as_u64().expect("it is shown").to_string();
        assert_eq!(of(&["--seed", &seed])["tokens"], text["tokens"]);
    }
    let told = err(&run("yuan", &args));
    let seed = told.trim_end().rsplit(' ').next().unwrap();
    assert!(told.contains("seed ") && seed.parse::<u32>().is_ok(), "{told}");
    // The best token always is no random choice.
    let best = [&args[..6], &["--temp", "0", "--json"]].concat();
    assert_eq!(json("yuan", &best)["seed"], Value::Null);
    assert_eq!(json("yuan", &best)["tokens"], json("yuan", &best)["tokens"]);
    assert!(!err(&run("yuan", &best[..6])).contains("seed"));

    let talk = |more: &[&str]| {
        let options = [&["--json", "-n", "20", "--temp", "1.2", "--ignore-eod"], more].concat();
        let output = chat(&model, &options, &["Ruth 1:1", "Ruth 1:2"]);
        out(&output).lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<Value>>()
    };
    let first = talk(&[]);
    let again = talk(&["--seed", &first[0]["seed"].to_string()]);
    assert!(first.iter().zip(&again).all(|(a, b)| a["tokens"] == b["tokens"]));
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
        skip(format!("no namespaces here: {}", err(&output)));
    }
    (!refused).then_some(output)
}

#[test]
fn a_full_disk_and_a_read_only_folder_are_errors_with_a_remedy() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let mounted = folder.path("mounted");
    fs::create_dir(&mounted).unwrap();
    for (mount, words, answered) in [
        ("size=64k", "make room or choose another folder", true),
        ("size=4k", "make room or choose another folder", false),
        ("nr_inodes=1", "make room or choose another folder", false),
        ("ro", "choose another folder", false),
    ] {
        let Some(output) = saved_in(mount, &mounted, &model) else { return };
        assert_eq!(output.status.code(), Some(1), "{mount}: {}", err(&output));
        assert!(err(&output).contains(words) && err(&output).contains("error: "), "{}", err(&output));
        // What cannot be known before the answer is found out behind it, and it is there all the same.
        assert_eq!(!out(&output).is_empty(), answered, "{mount}");
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
    use common::partials;

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

#[test]
fn files_that_may_not_be_used_are_errors_with_a_remedy() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let file = folder.path("s.session");
    text("yuan", &["generate", &model, "-p", "Ruth 1:1<sep>", "-n", "5", "--save", &file]);
    let whole = fs::read(&file).unwrap();
    // Wine has the devices of the machine that it runs on, where it is one of them to write to.
    let devices: &[&str] = if cfg!(unix) { &["/dev/full", "/dev/null"] } else { &[] };
    for &path in devices.iter().chain([&folder.0.path().to_str().unwrap()]) {
        let args = ["generate", &model, "-p", "Ruth 1:1<sep>", "-n", "5", "--save", path];
        let said = complaint("yuan", &args);
        let folder = path.ends_with(folder.0.path().file_name().unwrap().to_str().unwrap());
        assert!(said.contains(if folder { "NAME.session" } else { "is not a file" }), "{said}");
    }
    let nowhere = folder.path("no/folder/s.session");
    let args = ["generate", &model, "-p", "Ruth 1:1<sep>", "-n", "5", "--save", &nowhere];
    assert!(complaint("yuan", &args).contains("check the path"));
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
        return skip(format!("no other user here: {}", err(&output)));
    }
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("check who may use the file"), "{}", err(&output));
    mode(Path::new(file), 0o600);
}

#[cfg(not(unix))]
fn not_for_others(_: &str, _: &str, _: &Path) {}
