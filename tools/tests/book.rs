//! Every command of the README and of the book (`docs/src`) runs, on the demo model in place of the real one.
//!
//! A command is an indented line. Those of a block run in one shell, one after another; blocks of a page share a folder. Before a block may stand what makes it
//! another case: `<!-- parsed: WHY -->`, of which the options are read and no more, or `<!-- elsewhere: STAGE -->`, which that stage of `.ci/run` runs.
#![cfg(target_os = "linux")]

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use common::{Folder, demo_model, text};

/// What is done with the commands of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mark {
    Run,
    Parsed,
    Elsewhere(String),
}

/// The blocks of indented lines outside of fenced ones, each with what stands before it.
fn blocks(page: &str) -> Vec<(Mark, Vec<String>)> {
    let (mut blocks, mut mark, mut is_fenced, mut is_open) = (Vec::new(), Mark::Run, false, false);
    for line in page.lines() {
        is_fenced ^= line.starts_with("```");
        match line.strip_prefix("    ").filter(|_| !is_fenced) {
            Some(command) => {
                if !is_open {
                    blocks.push((mark.clone(), Vec::new()));
                }
                blocks.last_mut().expect("pushed").1.push(command.to_owned());
                (is_open, mark) = (true, Mark::Run);
            }
            None => {
                is_open = false;
                let comment = line.trim().strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->"));
                match comment.map(|comment| comment.split_once(": ").unwrap_or((comment, ""))) {
                    Some(("parsed", why)) => {
                        assert!(!why.is_empty(), "say why: {line}");
                        mark = Mark::Parsed;
                    }
                    Some(("elsewhere", stage)) => mark = Mark::Elsewhere(stage.to_owned()),
                    Some(("run", _)) => mark = Mark::Run,
                    // A mark is for what follows it.
                    _ if !line.trim().is_empty() => mark = Mark::Run,
                    _ => {}
                }
            }
        }
    }
    blocks
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A folder in which the names that pages use are there: models are the demo model.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.converted("yuan2-m32.gguf", &[]);
    symlink(root().join("assets"), folder.path("assets")).unwrap();
    symlink(demo_model(), folder.path("Yuan2-M32-hf")).unwrap();
    fs::create_dir(folder.path("models")).unwrap();
    for (name, experts) in
        [("bf16", "bf16"), ("q8_0", "q8_0"), ("q4_k", "q4_k"), ("q3_k", "q3_k"), ("yuan2-m32.q8_0", "q8_0")]
    {
        folder.converted(&format!("{name}.gguf"), &["--experts", experts]);
    }
    let heldout = fs::read_to_string(demo_model().join("heldout.txt")).unwrap();
    let part = |from: usize, count: usize| heldout.chars().skip(from).take(count).collect::<String>();
    for (name, from, count) in
        [("english.txt", 0, 2000), ("中文.txt", 40_000, 1000), ("edit.txt", 0, 200), ("old.rs", 0, 400)]
    {
        fs::write(folder.path(name), part(from, count)).unwrap();
    }
    folder
}

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether the server there has its model.
fn is_ready(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut answer = String::new();
    let request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).and_then(|()| stream.read_to_string(&mut answer)).is_ok()
        && answer.starts_with("HTTP/1.1 200")
}

/// A shell in the folder, in which our programs are found first.
fn shell(folder: &Folder, script: &str) -> Command {
    let programs = Path::new(env!("CARGO_BIN_EXE_yuan")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]).current_dir(folder.0.path());
    command.env("PATH", path).env("HOME", folder.0.path()).env("YUAN_MODELS", folder.path("models"));
    command.env_remove("YUAN_MODEL").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A line without its comment.
fn plain(line: &str) -> &str {
    line.split(" #").next().unwrap_or(line).trim_end()
}

/// Runs the lines of a block; the first that fails is a panic. A server serves the lines behind it.
fn run(folder: &Folder, page: &str, lines: &[String]) {
    let mut port = None;
    let mut servers = Vec::new();
    for line in lines.iter().map(|line| plain(line)) {
        if line.starts_with("yuan serve") && !line.contains("--print-config") {
            let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let child =
                shell(folder, &format!("exec {line} --port {free}")).stderr(Stdio::null()).spawn().unwrap();
            servers.push(Server(child));
            while !is_ready(free) {
                let child = &mut servers.last_mut().expect("pushed").0;
                assert!(child.try_wait().unwrap().is_none(), "{page}: {line} has ended");
                thread::sleep(Duration::from_millis(50));
            }
            port = Some(free);
            continue;
        }
        let line = port.map_or(line.to_owned(), |port| line.replace("8080", &port.to_string()));
        let mut child = shell(folder, &line).spawn().unwrap();
        let mut complaint = child.stderr.take().unwrap();
        let complaint = thread::spawn(move || {
            let mut bytes = Vec::new();
            complaint.read_to_end(&mut bytes).map(|_| String::from_utf8_lossy(&bytes).into_owned())
        });
        let output = child.wait_with_output().unwrap();
        let complaint = complaint.join().unwrap().unwrap();
        assert!(output.status.success(), "{page}: {line}: {}\n{complaint}", output.status);
        if line.starts_with("curl") {
            assert!(
                String::from_utf8_lossy(&output.stdout).contains("choices"),
                "{page}: {line}: {output:?}"
            );
        }
    }
}

/// Has our programs read the options of a line, and do nothing: they come to `--help` at its end when all before it is known to them.
fn parse(folder: &Folder, page: &str, line: &str) -> bool {
    let line = plain(line);
    let is_ours = ["yuan ", "yuan-quant "].iter().any(|name| line.starts_with(name));
    if is_ours {
        let output = shell(folder, &format!("{line} --help")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{page}: {line}: {said}");
    }
    is_ours
}

fn pages() -> Vec<(String, String)> {
    let chapters = fs::read_dir(root().join("docs/src")).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> = chapters.collect();
    all.sort();
    all.push(root().join("README.md"));
    let named = |path: PathBuf| {
        (path.strip_prefix(root()).unwrap().display().to_string(), fs::read_to_string(&path).unwrap())
    };
    all.into_iter().map(named).collect()
}

/// The commands of the pages of this share of them: tests run side by side.
fn commands_run(which: impl Fn(&str) -> bool) {
    let folder = folder();
    let steps = fs::read_to_string(root().join(".ci/run")).unwrap();
    let (mut ran, mut parsed) = (0, 0);
    for (page, text) in pages().into_iter().filter(|(page, _)| which(page)) {
        fs::copy(folder.path("yuan2-m32.gguf"), folder.path("models/m32.gguf")).unwrap();
        for (mark, lines) in blocks(&text) {
            // What a command prints stands behind it, further in.
            let lines: Vec<String> =
                lines.into_iter().filter(|line| !line.starts_with(' ') && !line.starts_with('(')).collect();
            match mark {
                Mark::Run => {
                    run(&folder, &page, &lines);
                    ran += lines.len();
                }
                Mark::Parsed => parsed += lines.iter().filter(|line| parse(&folder, &page, line)).count(),
                Mark::Elsewhere(stage) => {
                    assert!(
                        steps.contains(&format!("\n{stage}() {{")),
                        "{page}: .ci/run has no stage {stage}"
                    );
                }
            }
        }
    }
    println!("{ran} commands ran, the options of {parsed} were read");
    assert!(ran > 8, "{ran}");
}

#[test]
fn commands_of_the_readme_run() {
    commands_run(|page| page == "README.md");
}

#[test]
fn commands_of_the_book_run() {
    commands_run(|page| page != "README.md");
}

#[test]
fn the_demo_says_what_the_readmes_show() {
    let folder = Folder::new();
    let said = text("yuan", &["demo", "--cache", &folder.path("cache")]);
    for page in ["README.md", "README.zh.md"] {
        let page = fs::read_to_string(root().join(page)).unwrap();
        let shown = page
            .split("```text\n")
            .nth(1)
            .and_then(|rest| rest.split("```").next())
            .expect("what the demo says");
        assert!(shown.lines().count() > 4);
        for line in shown.lines() {
            assert!(said.lines().any(|l| l == line), "the demo does not say {line:?}: {said}");
        }
    }
}

#[test]
fn a_command_that_is_not_there_is_found_out() {
    let folder = Folder::new();
    let page = "text\n\n    yuan --version   # a comment\n\n<!-- parsed: no network -->\n\n    yuan pull m32\n\n```\n    not this\n```\n\n<!-- elsewhere: demo -->\n\n    cargo run\n";
    let found = blocks(page);
    assert_eq!(found.len(), 3);
    assert_eq!((found[0].0.clone(), found[1].0.clone()), (Mark::Run, Mark::Parsed));
    assert_eq!(found[2].0, Mark::Elsewhere("demo".into()));
    run(&folder, "page", &found[0].1);
    assert!(parse(&folder, "page", &found[1].1[0]));
    for wrong in ["yuan pull m32 --no-such-option", "yuan generate x.gguf --tokens many"] {
        assert!(std::panic::catch_unwind(|| parse(&folder, "page", wrong)).is_err(), "{wrong}");
    }
    for wrong in ["yuan generate no-such.gguf -p x", "no-such-program"] {
        assert!(std::panic::catch_unwind(|| run(&folder, "page", &[wrong.into()])).is_err(), "{wrong}");
    }
    assert_eq!(text("yuan", &["--version"]).lines().count(), 1);
}
