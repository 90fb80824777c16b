//! The library in other programs: the examples in C and C++ and the Python package are built and run, and say what `yuan` says.
#![cfg(unix)]

mod common;

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use common::{Folder, skip, text};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The folder of the shared library that these tests were built with.
fn libraries() -> PathBuf {
    env::current_exe().unwrap().parent().unwrap().to_owned()
}

fn library() -> PathBuf {
    libraries().join(format!("{}yuan{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX))
}

/// What a program says; `None` where it is not installed. It must succeed.
fn finish(command: &mut Command) -> Option<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = match command.output() {
        Ok(output) => output,
        Err(e) => {
            skip(format!("{program}: {e}"));
            return None;
        }
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {}\n{stderr}", output.status);
    Some(String::from_utf8(output.stdout).expect("UTF-8"))
}

/// A program, compiled; `None` where there is no compiler. Beside it lies the shared library under the name that the program asks for: that of
/// its series, `libyuan.so.0.1`.
fn example(folder: &Folder, compiler: &str, standard: &str, source: &str) -> Option<String> {
    let program = folder.path("example");
    let mut command = Command::new(compiler);
    command.args([standard, "-g", "-Wall", "-Wextra", "-pedantic", "-Werror"]);
    command.arg("-I").arg(root().join("include")).arg(root().join(source));
    command.arg("-L").arg(libraries()).args(["-lyuan", "-o", &program]);
    finish(&mut command)?;
    #[cfg(unix)]
    {
        let (series, _) = env!("CARGO_PKG_VERSION").rsplit_once('.').unwrap();
        std::os::unix::fs::symlink(library(), folder.path(&format!("libyuan.so.{series}"))).unwrap();
    }
    Some(program)
}

/// `program` with the library beside it.
fn with_library(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", Path::new(program).parent().unwrap());
    command
}

fn embedded(program: &str, args: &[&str]) -> String {
    finish(with_library(program).args(args)).expect("the example")
}

const PROMPTS: [&str; 2] = ["Psalms 151:1-4<sep>", "春日山中 李白<sep>"];

#[test]
fn the_c_example_says_what_yuan_says() {
    let folder = Folder::new();
    let Some(program) = example(&folder, "cc", "-std=c99", "examples/c/generate.c") else { return };
    let model = folder.converted("m.gguf", &[]);
    for prompt in PROMPTS {
        let expected = text("yuan", &["generate", &model, "-p", prompt, "-n", "32"]);
        assert_eq!(embedded(&program, &[&model, prompt, "32"]), expected);
    }
    let output = with_library(&program).args([&folder.path("no.gguf"), "a"]).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && complaint.contains("YUAN_ERROR_FILE: cannot open"),
        "{complaint}"
    );
}

#[test]
fn the_cpp_example_says_what_yuan_says() {
    let folder = Folder::new();
    let Some(program) = example(&folder, "c++", "-std=c++11", "examples/c/chat.cc") else { return };
    let model = folder.converted("m.gguf", &[]);
    for question in ["Psalms 151:1-4", "春日山中 李白"] {
        let args = ["generate", &model, "--chat", "-p", question, "-n", "32"];
        let expected =
            text("yuan", &[&args[..], &["--temp", "0.6", "--top-p", "0.95", "--seed", "7"]].concat());
        assert_eq!(embedded(&program, &[&model, question, "32", "7"]), expected);
    }
}

#[test]
fn the_python_package_says_what_yuan_says() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let python = |args: &[&str]| {
        let mut command = Command::new("python3");
        command.args(args).env("YUAN_LIBRARY", library()).env("PYTHONPATH", root().join("tools/python"));
        finish(command.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONIOENCODING", "utf-8"))
    };
    let program = root().join("examples/python/generate.py");
    for prompt in PROMPTS {
        let Some(found) = python(&[program.to_str().unwrap(), &model, prompt, "32"]) else { return };
        assert_eq!(found, text("yuan", &["generate", &model, "-p", prompt, "-n", "32"]));
    }
    let check = root().join("tools/python/check.py");
    let chat = text(
        "yuan",
        &[
            "generate",
            &model,
            "--chat",
            "-p",
            "春日山中 李白",
            "-n",
            "24",
            "--temp",
            "0.9",
            "--top-k",
            "50",
            "--min-p",
            "0.02",
            "--repeat-penalty",
            "1.1",
            "--seed",
            "3",
        ],
    );
    python(&[check.to_str().unwrap(), &model, &folder.path("saved"), &chat]).expect("python3");
}

#[test]
fn every_function_works_from_c() {
    let folder = Folder::new();
    let Some(program) = example(&folder, "cc", "-std=c99", "tools/tests/surface.c") else { return };
    let model = folder.converted("m.gguf", &[]);
    assert_eq!(embedded(&program, &[&model, &folder.path("saved")]), "");
}

/// Valgrind follows every access of the library and of the program, and counts what is left.
#[cfg(target_os = "linux")]
#[test]
fn valgrind_finds_no_invalid_access_and_no_leak() {
    let folder = Folder::new();
    let Some(program) = example(&folder, "cc", "-std=c99", "tools/tests/surface.c") else { return };
    let model = folder.converted("m.gguf", &[]);
    let log = folder.path("valgrind.log");
    let mut command = Command::new("valgrind");
    command.args(["--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect"]);
    command.args([&format!("--log-file={log}"), &program, &model, &folder.path("saved")]);
    if finish(command.env("LD_LIBRARY_PATH", Path::new(&program).parent().unwrap())).is_some() {
        let said = std::fs::read_to_string(&log).unwrap();
        assert!(said.contains("ERROR SUMMARY: 0 errors"), "{said}");
    }
}
