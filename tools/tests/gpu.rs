//! The options of a GPU, in builds with and without.

mod common;

use common::{Folder, complaint, json, text};
use serde_json::Value;

#[test]
fn off_and_auto_work_in_every_build() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let args = ["generate", &model, "-p", "十五夜观灯 王维<sep>", "-n", "8", "--json"];
    let off = json("yuan", &[&args[..], &["--gpu", "off"]].concat());
    assert_eq!(off["tokens"], json("yuan", &args)["tokens"]);
    let plan = json("yuan", &["plan", &model, "--gpu", "off", "--json"]);
    assert_eq!((&plan["gpu"]["device"], &plan["gpu"]["why"]), (&Value::Null, &"as asked for".into()));
    assert!(text("yuan", &["plan", &model, "--gpu", "off"]).contains("gpu        off: as asked for"));
}

#[cfg(not(any(feature = "cuda", feature = "cuda-shim")))]
#[test]
fn a_build_without_cuda_says_how_to_get_one() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    for command in ["generate", "plan"] {
        let prompt: &[&str] = if command == "plan" { &[] } else { &["-p", "1 Kings 1:1-3<sep>"] };
        let problem = complaint("yuan", &[&[command, &model, "--gpu", "0"], prompt].concat());
        for part in ["--gpu 0", "no CUDA", "--features cuda", "--gpu off"] {
            assert!(problem.contains(part), "no {part:?} in {problem}");
        }
    }
}

/// The emulated GPU of a build for tests.
#[cfg(all(feature = "cuda-shim", not(feature = "cuda")))]
#[test]
fn text_of_the_gpu_is_that_of_the_cpu() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    for prompt in ["1 Chronicles 27:7-12<sep>", "十五夜观灯 王维<sep>"] {
        let args = ["generate", &model, "-p", prompt, "-n", "12", "--json", "--stats"];
        let cpu = json("yuan", &args);
        let gpu = json("yuan", &[&args[..], &["--gpu", "0", "--gpu-memory", "60M"]].concat());
        assert_eq!(cpu["tokens"], gpu["tokens"]);
        let of = |run: &Value, key: &str| run["paging"][key].clone();
        assert!(of(&gpu, "gpu")["device"].as_str().unwrap().contains("emulated"), "{gpu}");
        let used = of(&gpu, "gpu_use");
        let computed = ["there", "copied", "on_cpu"].map(|key| used[key].as_u64().unwrap());
        assert!(computed.iter().sum::<u64>() > 0 && of(&cpu, "gpu_use").is_null(), "{gpu}");
    }
    let plan = text("yuan", &["plan", &model, "--gpu", "0", "--gpu-memory", "60M", "--context", "128"]);
    assert!(plan.contains("emulated (sm_80)") && plan.contains("of 64 experts"), "{plan}");
    let problem = complaint("yuan", &["plan", &model, "--gpu", "0", "--gpu-memory", "1M"]);
    assert!(problem.contains("bytes are needed"), "{problem}");
    assert!(complaint("yuan", &["plan", &model, "--gpu", "7"]).contains("no such GPU"));
}
