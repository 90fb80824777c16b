//! What people know from other programs: their options, shells that complete, manual pages.

mod common;

use std::fs;

use common::{Folder, json, program, run, text, usage};
use serde_json::Value;

#[test]
fn names_of_llama_cpp_mean_what_they_mean_there() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let prompt = "秋夜 杜甫<sep>";
    let ours =
        json("yuan", &["generate", &model, "-p", prompt, "--tokens", "8", "--context", "64", "--json"]);
    for theirs in [
        &["-m", &model, "-p", prompt, "-n", "8", "-c", "64"][..],
        &["--model", &model, "--prompt", prompt, "--n-predict", "8", "--ctx-size", "64"],
        &[&model, prompt, "--predict", "8", "-c", "64", "--temperature", "0"],
    ] {
        assert_eq!(
            json("yuan", &[&["generate", "--json"], theirs].concat())["text"],
            ours["text"],
            "{theirs:?}"
        );
    }
    let usual = program("yuan")
        .args(["generate", "-p", prompt, "-n", "8", "--json"])
        .env("YUAN_MODEL", &model)
        .output()
        .expect("the program starts");
    let usual: Value = serde_json::from_slice(&usual.stdout).expect("JSON");
    assert_eq!(usual["text"], ours["text"]);
    // What is said goes before the variable, which is no reason to complain.
    let said =
        program("yuan").args(["inspect", "-m", &model]).env("YUAN_MODEL", "/no/such/file").output().unwrap();
    assert!(said.status.success());
    let served = program("yuan")
        .args(["serve", &model, "--print-config"])
        .env("YUAN_MODEL", "other")
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&served.stdout).contains(&model), "{served:?}");
}

#[test]
fn an_option_that_is_another_programs_is_answered_with_ours() {
    for (theirs, ours) in [
        (&["generate", "m.gguf", "-p", "x", "-ngl", "99"][..], "--gpu-memory"),
        (&["chat", "m.gguf", "--n-gpu-layers=99"], "--gpu-memory"),
        (&["generate", "-hf", "IEITYuan/Yuan2-M32-hf"], "yuan pull"),
        (&["chat", "m.gguf", "-ctk", "q8_0"], "--kv"),
        (&["run", "m32"], "yuan chat"),
    ] {
        let complaint = usage("yuan", theirs);
        assert!(complaint.contains("tip: ") && complaint.contains(ours), "{theirs:?}: {complaint}");
    }
    // No advice where nothing is known, or where a text only looks like an option.
    assert!(!usage("yuan", &["chat", "--no-such-option"]).contains("tip: --no-such"));
    let two = usage("yuan", &["generate", "a.gguf", "-m", "b.gguf", "-p", "x"]);
    assert!(two.contains("cannot be used with"), "{two}");
}

#[test]
fn shells_complete_and_man_has_pages() {
    for program in ["yuan", "yuan-quant"] {
        let known = if program == "yuan" { "generate" } else { "verify" };
        for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
            assert!(text(program, &["completions", shell]).contains(known), "{program} for {shell}");
        }
        let folder = Folder::new();
        let (script, pages) = (folder.path("script"), folder.path("man/man1"));
        fs::write(&script, text(program, &["completions", "bash"])).unwrap();
        // Windows has none to ask.
        if cfg!(unix) {
            let checked = std::process::Command::new("bash").args(["-n", &script]).status();
            assert!(checked.is_ok_and(|status| status.success()), "the script for bash");
        }
        assert!(run(program, &["man", &pages]).status.success());
        let page = fs::read_to_string(format!("{pages}/{program}-{known}.1")).expect("a page");
        assert!(page.contains(".SH"), "{page}");
    }
}
