//! `yuan doctor`, on a machine that is well and in surroundings that are not.

mod common;

use std::{
    fs,
    process::{Command, Output},
};

use common::{Folder, err, out, program, run};
use serde_json::Value;

/// What it found, for programs, and its status.
fn examined(command: &mut Command) -> (Value, i32) {
    let output = command.output().unwrap();
    let (said, complaints) = (out(&output), err(&output));
    assert!(!complaints.contains("panicked"), "{complaints}");
    let report = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}\n{complaints}"));
    (report, output.status.code().expect("it ends by itself"))
}

/// The findings about something.
fn about<'r>(report: &'r Value, what: &str) -> Vec<&'r Value> {
    report["findings"].as_array().unwrap().iter().filter(|finding| finding["about"] == what).collect()
}

fn quick() -> Command {
    let mut command = program("yuan");
    command.args(["doctor", "--quick", "--json"]);
    command
}

#[test]
fn a_sound_machine_is_fine_and_computes_the_bits_of_all_others() {
    let folder = Folder::new();
    let (report, status) =
        examined(program("yuan").args(["doctor", "--json"]).env("YUAN_MODELS", folder.path("none")));
    assert_eq!((status, &report["fine"], &report["wrong"]), (0, &true.into(), &0.into()), "{report:#}");
    let exact = about(&report, "exactness");
    assert_eq!(exact[0]["mark"], "ok", "{report:#}");
    let runs = exact[0]["facts"]["runs"].as_array().unwrap();
    let kernels: Vec<_> = runs.iter().step_by(2).map(|run| run["kernels"].as_str().unwrap()).collect();
    assert_eq!(kernels, yuan::kernel_names());
    assert!(runs.iter().all(|run| run["right"] == true) && runs[0]["threads"] == 1, "{runs:#?}");
    for measured in ["memory speed", "drive"] {
        assert!(about(&report, measured)[0]["facts"]["gb_per_second"].as_f64().unwrap() > 0.0, "{report:#}");
    }
    assert!(fs::read_dir(folder.0.path()).unwrap().next().is_none(), "it leaves nothing behind");
}

#[test]
fn people_see_marks_and_remedies() {
    let output = run("yuan", &["doctor", "--quick"]);
    let said = out(&output);
    assert!(output.status.success(), "{said}{}", err(&output));
    for part in ["ok     cpu", "kernels", "memory", "limits", "gpu", "models", "\nAll is fine"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    // A build of tests is one that is slow.
    let note = said.lines().position(|line| line.starts_with("note   program")).expect("a note");
    assert!(said.lines().nth(note + 1).unwrap().trim_start().starts_with("-> for speed"), "{said}");
}

#[test]
fn kernels_that_are_nonsense_are_told_and_the_others_checked() {
    let (report, status) =
        examined(program("yuan").args(["doctor", "--json"]).env("YUAN_KERNELS", "nonsense"));
    assert_eq!((status, &report["wrong"]), (1, &1.into()), "{report:#}");
    let kernels = about(&report, "kernels")[0];
    assert!(
        kernels["mark"] == "wrong" && kernels["says"].as_str().unwrap().contains("nonsense"),
        "{kernels}"
    );
    assert!(kernels["remedy"].as_str().unwrap().contains("scalar"), "{kernels}");
    assert_eq!(about(&report, "exactness")[0]["mark"], "ok", "{report:#}");
    let (report, status) = examined(quick().env("YUAN_KERNELS", "scalar"));
    assert_eq!((status, &about(&report, "kernels")[0]["facts"]["used"]), (0, &"scalar".into()), "{report:#}");
}

/// A shell with that limit, in which the program runs.
#[cfg(unix)]
fn limited(limit: &str, args: &[&str]) -> Output {
    let yuan = program("yuan");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("ulimit {limit} && exec \"$0\" \"$@\"")).arg(yuan.get_program()).args(args);
    shell.envs(yuan.get_envs().filter_map(|(name, value)| Some((name, value?)))).output().unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn few_addresses_are_told_and_end_nothing() {
    for kib in [900_000, 400_000, 200_000] {
        let output = limited(&format!("-v {kib}"), &["doctor"]);
        let (said, complaints) = (out(&output), err(&output));
        assert_eq!(output.status.code(), Some(1), "{kib}: {said}{complaints}");
        assert!(said.contains("WRONG  addresses") && said.contains("ulimit -v unlimited"), "{kib}: {said}");
        assert!(
            said.contains("exactness    not checked") && !complaints.contains("panicked"),
            "{said}{complaints}"
        );
    }
    let output = limited("-n 64", &["doctor", "--quick"]);
    assert!(output.status.success() && out(&output).contains("note   limits"), "{}", out(&output));
}

#[test]
fn a_folder_of_models_that_cannot_be_used_is_told() {
    let folder = Folder::new();
    fs::write(folder.path("file"), "no folder").unwrap();
    let (report, status) = examined(quick().env("YUAN_MODELS", folder.path("file")));
    assert_eq!(status, 1, "{report:#}");
    assert!(about(&report, "models")[0]["remedy"].as_str().unwrap().contains("YUAN_MODELS"), "{report:#}");
    // One in which nobody may write, root neither.
    #[cfg(target_os = "linux")]
    {
        let (report, status) = examined(quick().env("YUAN_MODELS", "/proc/self"));
        assert_eq!((status, &about(&report, "folder")[0]["mark"]), (0, &"note".into()), "{report:#}");
    }
    // What does not open there, and what is still coming.
    fs::create_dir_all(folder.path("models/m32.gguf.pull")).unwrap();
    fs::write(folder.path("models/坏.gguf"), "nothing of the kind").unwrap();
    let (report, status) = examined(quick().env("YUAN_MODELS", folder.path("models")));
    let marks: Vec<_> =
        about(&report, "models").iter().map(|finding| finding["mark"].as_str().unwrap()).collect();
    assert_eq!((status, &marks[..]), (1, &["wrong", "ok", "note"][..]), "{report:#}");
    assert!(about(&report, "models")[0]["remedy"].as_str().unwrap().contains("yuan rm 坏"), "{report:#}");
}

#[test]
fn a_model_is_opened_compared_and_placed() {
    let folder = Folder::new();
    let model = folder.converted("模型 1.gguf", &[]);
    let (report, status) = examined(program("yuan").args(["doctor", &model, "--json"]));
    assert_eq!(status, 0, "{report:#}");
    let fits = about(&report, "fits")[0];
    assert!(fits["mark"] == "ok" && fits["facts"]["tokens_per_second"].as_f64().unwrap() > 0.0, "{report:#}");
    let digests = &about(&report, "digests")[0]["facts"];
    assert_eq!(digests["checked"], digests["tensors"], "a small model is compared whole");
    assert!(about(&report, "drive").len() == 2, "that of the folder, and that of the model: {report:#}");
    let (report, status) = examined(quick().args([&model, "--memory", "1M"]));
    assert!(status == 1 && about(&report, "fits")[0]["mark"] == "wrong", "{report:#}");

    let mut bytes = fs::read(&model).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 4;
    fs::write(&model, bytes).unwrap();
    for verify in [&[][..], &["--verify"]] {
        let (report, status) = examined(quick().arg(&model).args(verify));
        let digests = about(&report, "digests")[0];
        assert!(status == 1 && digests["mark"] == "wrong", "{report:#}");
        assert!(digests["says"].as_str().unwrap().contains("is damaged"), "{digests}");
    }
    let (report, status) = examined(quick().arg(folder.path("none.gguf")));
    assert!(status == 1 && about(&report, "model")[0]["mark"] == "wrong", "{report:#}");
    common::complaint("yuan", &["doctor", "--verify"]);
}

#[test]
fn variables_that_make_no_sense_are_told() {
    let (report, status) = examined(quick().env("YUAN_PORT", "a door").env("YUAN_KERNLES", "avx2"));
    assert_eq!(status, 1, "{report:#}");
    let said: Vec<_> = about(&report, "environment").iter().map(|finding| finding.to_string()).collect();
    assert!(said.iter().any(|said| said.contains("a door") && said.contains("wrong")), "{said:#?}");
    assert!(said.iter().any(|said| said.contains("is YUAN_KERNELS meant?")), "{said:#?}");
}

#[test]
#[cfg(target_os = "linux")]
fn nobody_may_listen() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = program("yuan").args(["doctor", "--quick"]).stdout(full).output().unwrap();
    assert!(!output.status.success() && !err(&output).contains("panicked"), "{}", err(&output));
}
