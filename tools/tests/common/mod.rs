//! What the tests of the two programs share.
#![allow(dead_code)]

#[path = "../../../tests/common/fixture.rs"]
mod fixture;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

#[allow(unused_imports)]
pub use fixture::{fixture, skip};

pub fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/demo-model")
}

pub fn program(name: &str) -> Command {
    let mut command = Command::new(match name {
        "yuan" => env!("CARGO_BIN_EXE_yuan"),
        _ => env!("CARGO_BIN_EXE_yuan-quant"),
    });
    // Not those of whoever runs the tests.
    command.env("YUAN_MODELS", Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-models"));
    command
}

pub fn run(name: &str, args: &[&str]) -> Output {
    program(name).args(args).output().expect("the program starts")
}

/// Standard output of a run that must succeed.
pub fn text(name: &str, args: &[&str]) -> String {
    let output = run(name, args);
    assert!(output.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

pub fn json(name: &str, args: &[&str]) -> Value {
    serde_json::from_str(&text(name, args)).expect("JSON")
}

/// Standard error of a run that must fail in a civil way: status 1, one line that begins with `error:`.
pub fn complaint(name: &str, args: &[&str]) -> String {
    let output = run(name, args);
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{name} {args:?}: {stderr}");
    assert!(stderr.starts_with("error: ") && !stderr.contains("panicked"), "{stderr}");
    stderr
}

/// Standard error of a run whose arguments are refused: status 2, before anything is done.
pub fn usage(name: &str, args: &[&str]) -> String {
    let output = run(name, args);
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{name} {args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{name} {args:?}");
    stderr
}

pub struct Folder(pub tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    /// The demo model as a container.
    pub fn converted(&self, name: &str, options: &[&str]) -> String {
        let output = self.path(name);
        let demo = demo_model();
        text("yuan-quant", &[&[demo.to_str().unwrap(), "-o", &output], options].concat());
        output
    }
}

/// A conversation with these lines on standard input.
pub fn chat(model: &str, options: &[&str], lines: &[&str]) -> Output {
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

/// Standard output of a program that has ended.
pub fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// Standard error of a program that has ended.
pub fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// The answers of a conversation that must succeed.
pub fn answers(model: &str, options: &[&str], lines: &[&str]) -> Vec<Value> {
    let output = chat(model, &[&["--json"], options].concat(), lines);
    assert!(output.status.success(), "{}", err(&output));
    out(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Files that a save has left behind.
pub fn partials(folder: &Folder) -> Vec<String> {
    let names = fs::read_dir(folder.0.path()).unwrap().map(|e| e.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).filter(|name| name.ends_with(".partial")).collect()
}
