//! `yuan-quant calibrate` and `--importance`, as a person runs them.

mod common;

use std::fs;

use common::{Folder, complaint, demo_model, fixture, json, run, text};

/// The whole way, on held-out text: from text to a container that is nearer to the original.
#[test]
fn a_calibrated_container_is_nearer_to_the_original() {
    let folder = Folder::new();
    let Some(training) = fixture("calibration.txt") else { return };
    let (english, chinese) = (folder.path("english.txt"), folder.path("中文.txt"));
    let both = fs::read_to_string(training).unwrap();
    let (first, second): (Vec<&str>, Vec<&str>) = both
        .split_inclusive("\n<eod>\n")
        .partition(|document| document.is_ascii() || document.starts_with("1 "));
    fs::write(&english, first.concat()).unwrap();
    fs::write(&chinese, second.concat()).unwrap();

    let exact = folder.converted("bf16.gguf", &["--experts", "bf16", "--dense", "bf16"]);
    let importance = folder.path("importance.gguf");
    let args = ["calibrate", &exact, "--text", &english, &chinese, "-o", &importance, "--hessians", "expert"];
    let said = text("yuan-quant", &args);
    assert!(said.contains("importance.gguf: ") && said.contains("an expert got"), "{said}");
    assert!(!fs::exists(format!("{importance}.partial")).unwrap());

    let plain = folder.converted("plain.gguf", &[]);
    let demo = demo_model();
    let nearer = folder.path("nearer.gguf");
    let conversion = run("yuan-quant", &[demo.to_str().unwrap(), "-o", &nearer, "--importance", &importance]);
    let told = String::from_utf8(conversion.stderr).unwrap();
    assert!(conversion.status.success(), "{told}");
    assert!(told.contains("english.txt, 中文.txt") && told.contains("error feedback"), "{told}");
    assert_eq!(fs::metadata(&plain).unwrap().len(), fs::metadata(&nearer).unwrap().len());
    text("yuan-quant", &["verify", &nearer]);

    let held_out = demo.join("heldout.txt");
    let divergence = |model: &str| {
        let args = ["perplexity", model, "--file", held_out.to_str().unwrap(), "--documents", "50-80"];
        json("yuan", &[&args[..], &["--against", &exact, "--json"]].concat())["kl_divergence"]
            .as_f64()
            .unwrap()
    };
    let (before, after) = (divergence(&plain), divergence(&nearer));
    println!("{before} {after}");
    assert!(after < 0.9 * before, "{before} {after}");
}

#[test]
fn what_cannot_be_is_said() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let (empty, short) = (folder.path("empty.txt"), folder.path("short.txt"));
    fs::write(&empty, "\n").unwrap();
    fs::write(&short, "春日山中 李白<sep>我心常自适，天子若何行。\n<eod>\nAnd it came to pass\n").unwrap();
    let out = folder.path("importance.gguf");
    let said = complaint("yuan-quant", &["calibrate", &model, "--text", &empty, "-o", &out]);
    assert!(said.contains("empty.txt has no text"), "{said}");
    let said = complaint("yuan-quant", &["calibrate", &model, "--text", &short, "-o", &short]);
    assert!(said.contains("would be written over"), "{said}");
    let said = complaint("yuan-quant", &["calibrate", &model, "--text", "nothing.txt", "-o", &out]);
    assert!(said.contains("nothing.txt"), "{said}");
    let little = ["calibrate", &model, "--text", &short, "-o", &out, "--hessians", "layer", "--memory", "1M"];
    let said = complaint("yuan-quant", &little);
    assert!(said.contains("--memory"), "{said}");

    text("yuan-quant", &["calibrate", &model, "--text", &short, "-o", &out]);
    let other = folder.path("other");
    text("yuan-quant", &["synth", "--geometry", "tiny", "-o", &other]);
    let said = complaint("yuan-quant", &[&other, "-o", &folder.path("o.gguf"), "--importance", &out]);
    assert!(said.contains("of another model") && said.contains("leave out --importance"), "{said}");
    let said = complaint("yuan-quant", &[&model, "-o", &folder.path("o.gguf"), "--importance", &out]);
    assert!(said.contains("give --experts, --dense or both"), "{said}");
    let demo = demo_model();
    let said = complaint(
        "yuan-quant",
        &[demo.to_str().unwrap(), "-o", &folder.path("o.gguf"), "--importance", &model],
    );
    assert!(said.contains("importance matrix"), "{said}");
    // Behind what is told of the file.
    let over = run("yuan-quant", &[demo.to_str().unwrap(), "-o", &out, "--importance", &out]);
    let said = String::from_utf8(over.stderr).unwrap();
    assert_eq!(over.status.code(), Some(1));
    assert!(said.contains("\nerror: ") && said.contains("would be written over"), "{said}");
}
