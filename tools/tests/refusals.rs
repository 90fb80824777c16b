//! What the programs refuse before they begin, and with which words.

mod common;
#[path = "../../tests/common/damage.rs"]
mod damage;

use std::{fs, io::Write, path::Path};

use serde_json::Value;
use yuan::{checkpoint::names, container::Container, quantize::synth};

use common::{Folder, complaint, json, text, usage};

/// No number is taken that would bring the machine down or overflow: the message names the option and its limits.
#[test]
fn numbers_outside_their_limits_are_refused_before_anything_is_done() {
    let nothing = "no-such-model.gguf";
    for option in ["--threads", "--threads-batch", "--readers", "--context", "--context-shift", "--tokens"] {
        for value in ["100000000", "-7", "x", "99999999999999999999999", "1.5"] {
            let said = usage("yuan", &["generate", nothing, "-p", "x", option, value]);
            assert!(said.contains(option) && said.contains("error: "), "{option} {value}: {said}");
        }
    }
    let most = yuan::limits::most_threads();
    for command in [&["bench"][..], &["plan"], &["chat"], &["perplexity", "--file", "x"]] {
        let said = usage("yuan", &[command, &[nothing, "--threads", "100000"]].concat());
        assert!(said.contains(&format!("from 0 to {most}")), "{said}");
    }
    for args in [
        &["bench", nothing, "-p", "18446744073709551615", "-n", "1"][..],
        &["bench", nothing, "-r", "0"],
        &["bench", nothing, "--depth", "100000000"],
        &["bench", nothing, "--throttle", "0"],
        &["plan", nothing, "--context", "100000000"],
        &["plan", nothing, "--memory", "0"],
        &["plan", nothing, "--memory", "101%"],
        &["plan", nothing, "--gpu-memory", "1E"],
        &["demo", "-n", "100000000"],
        &["demo", "--threads", "100000"],
        &["trace", nothing, "-p", "x", "-o", "y", "-n", "100000000"],
        &["perplexity", nothing, "--file", "x", "--documents", "0-3"],
        &["compare", nothing, nothing, "--text", "x", "--documents", "3-2"],
        &["compare", nothing, nothing, "--text", "x", "--memory-speed", "0"],
        &["replay", nothing, "--drive", "0"],
        &["replay", nothing, "--compute", "-1"],
        &["replay", nothing, "--idle", "inf"],
        &["generate", nothing, "-p", "x", "--top-k", "100000000"],
        &["generate", nothing, "-p", "x", "--repeat-last-n", "-2"],
    ] {
        assert!(usage("yuan", args).contains("error: "), "{args:?}");
    }
}

#[test]
fn an_answer_of_minus_one_tokens_goes_on_until_the_context_is_full() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let generate = ["generate", &model, "-p", "Ruth 1:1<sep>", "--ignore-eod", "--json", "-n", "-1"];
    let short = json("yuan", &[&generate[..], &["--context", "40"]].concat());
    let count = |answer: &serde_json::Value, key: &str| answer[key].as_array().unwrap().len();
    // The last token of an answer is not run, and needs no room.
    assert_eq!(count(&short, "tokens"), 40 - count(&short, "prompt_tokens") + 1);
    assert_eq!(short["finish"], "length");
    // Without a number, and with 0, the context is what the model was made for.
    let whole = json("yuan", &generate);
    assert_eq!(count(&whole, "tokens"), 1024 - count(&whole, "prompt_tokens") + 1);
    let zero = json("yuan", &[&generate[..], &["--context", "0"]].concat());
    assert_eq!(zero["tokens"], whole["tokens"]);
    let told = common::run("yuan", &[&generate[..5], &["-n", "-1", "--context", "40"]].concat());
    assert!(common::err(&told).contains("(the context is full)"), "{}", common::err(&told));
    text("yuan", &["generate", &model, "-p", "Ruth 1:1<sep>", "-n", "0"]);
}

/// An output that is an input, by whatever name, is refused before anything is written.
#[cfg(unix)]
#[test]
fn an_input_is_never_written_over() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let before = fs::read(&model).unwrap();
    let (hard, soft, other) = (folder.path("hard.gguf"), folder.path("soft.gguf"), folder.path("other.gguf"));
    fs::hard_link(&model, &hard).unwrap();
    std::os::unix::fs::symlink(&model, &soft).unwrap();
    let dotted = format!("{}/./m.gguf", folder.0.path().display());
    for output in [&model, &hard, &soft, &dotted] {
        for command in [&[][..], &["export"]] {
            let said = complaint("yuan-quant", &[command, &[&model, "-o", output]].concat());
            assert!(said.contains("give the output another name"), "{said}");
        }
    }
    // The names beside the output, under which it is written.
    let partial = folder.path("other.gguf.partial");
    fs::rename(&hard, &partial).unwrap();
    assert!(complaint("yuan-quant", &[&partial, "-o", &other]).contains("another name"));

    // Of a checkpoint every file.
    let checkpoint = folder.path("checkpoint");
    text("yuan-quant", &["synth", "--geometry", "tiny", "-o", &checkpoint]);
    let weights = fs::read(format!("{checkpoint}/model.safetensors")).unwrap();
    for name in ["config.json", "tokenizer.model", "model.safetensors"] {
        let said = complaint("yuan-quant", &[&checkpoint, "-o", &format!("{checkpoint}/{name}")]);
        assert!(said.contains(name) && said.contains("another name"), "{said}");
    }
    assert_eq!((fs::read(&model).unwrap(), fs::read(&partial).unwrap()), (before.clone(), before));
    assert_eq!(fs::read(format!("{checkpoint}/model.safetensors")).unwrap(), weights);
    // An output in the folder of the checkpoint that is none of its files may be there already.
    for _ in 0..2 {
        text("yuan-quant", &[&checkpoint, "-o", &format!("{checkpoint}/m.gguf")]);
    }
}

/// What an output needs is asked for before the work that makes it: nothing is generated, and nothing is left behind.
#[test]
fn an_output_that_cannot_be_written_is_refused_before_the_work() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let demo = common::demo_model();
    let (trace, inside) = (folder.path("t.trace"), folder.path("inside"));
    text("yuan", &["trace", &model, "-p", "Ruth 1:1<sep>", "-n", "4", "-o", &trace]);
    fs::create_dir(&inside).unwrap();
    let names = || {
        let mut names: Vec<_> = fs::read_dir(folder.0.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let before = names();
    let convert = ["yuan-quant", demo.to_str().unwrap(), "-o"];
    let export = ["yuan-quant", "export", &model, "-o"];
    let save = ["yuan", "generate", &model, "-p", "Ruth 1:1<sep>", "-n", "4", "--save"];
    let write_trace = ["yuan", "trace", &model, "-p", "Ruth 1:1<sep>", "-n", "4", "-o"];
    let logits = ["yuan", "logits", &model, "--tokens", "7", "-o"];
    let bench = ["yuan", "bench", &model, "-p", "4", "-n", "1", "--trace"];
    let picture = ["yuan", "replay", &trace, "--svg"];
    let (slash, nowhere) = (folder.path("new/"), folder.path("no/folder/x"));
    for (command, input, example) in [
        (&convert[..], &model, "model.gguf"),
        (&export, &model, "model.gguf"),
        (&save, &model, "NAME.session"),
        (&write_trace, &model, "NAME.trace"),
        (&logits, &model, "logits.npy"),
        (&bench, &model, "NAME.trace"),
        (&picture, &trace, "NAME.svg"),
    ] {
        let refused = |output: &str| {
            let result = common::run(command[0], &[&command[1..], &[output]].concat());
            assert_eq!(result.status.code(), Some(1), "{command:?} {output}");
            assert!(result.stdout.is_empty(), "{command:?} {output}: the work was begun");
            common::err(&result)
        };
        for output in [&inside, &slash] {
            let named = std::path::Path::new(output).join(example);
            let said = refused(output);
            assert!(said.contains("is a folder") && said.contains(named.to_str().unwrap()), "{said}");
        }
        assert!(refused(&nowhere).contains("check the path"), "{command:?}");
        if command != convert {
            let said = refused(input);
            assert!(said.contains("give the output another name"), "{said}");
        }
        assert_eq!(names(), before, "{command:?}");
    }
}

/// The published checkpoint's shape, with weights that are holes in a file.
fn hollow_m32(folder: &Folder) -> String {
    let (config, path) = (synth::m32(), folder.path("m32"));
    fs::create_dir(&path).unwrap();
    let demo = fs::read_to_string(common::demo_model().join("config.json")).unwrap();
    let mut json: Value = serde_json::from_str(&demo).unwrap();
    for (key, value) in [
        ("vocab_size", config.vocab),
        ("hidden_size", config.hidden),
        ("num_hidden_layers", config.layers),
        ("num_attention_heads", config.heads),
        ("attention_projection_size", config.projection),
        ("max_position_embeddings", config.context),
    ] {
        json[key] = value.into();
    }
    json["moe_config"]["ffn_hidden_size"] = config.ffn.into();
    for key in ["rotary_base", "rope_precision"] {
        json.as_object_mut().unwrap().remove(key);
    }
    fs::write(format!("{path}/config.json"), json.to_string()).unwrap();
    fs::copy(common::demo_model().join("tokenizer.model"), format!("{path}/tokenizer.model")).unwrap();
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for spec in names::tensors(&config) {
        let end = at + 2 * spec.shape.iter().map(|&d| d as u64).product::<u64>();
        header.insert(
            spec.hf,
            serde_json::json!({ "dtype": "BF16", "shape": spec.shape, "data_offsets": [at, end] }),
        );
        at = end;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = fs::File::create(format!("{path}/model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(8 + header.len() as u64 + at).unwrap();
    path
}

#[test]
fn a_config_of_m32_without_its_rotary_base_is_refused_until_one_is_chosen() {
    let folder = Folder::new();
    let checkpoint = hollow_m32(&folder);
    let said = complaint("yuan-quant", &[&checkpoint, "--dry-run"]);
    for part in ["config.json", "rotary_base", "10000", "40890", "--rope-base 40890"] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    for base in ["40890", "10000"] {
        text("yuan-quant", &[&checkpoint, "--dry-run", "--rope-base", base]);
    }
}

#[test]
fn other_configs_without_a_rotary_base_get_a_warning() {
    let folder = Folder::new();
    let checkpoint = folder.path("tiny");
    text("yuan-quant", &["synth", "--geometry", "tiny", "-o", &checkpoint]);
    let config = format!("{checkpoint}/config.json");
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
    json.as_object_mut().unwrap().remove("rotary_base").expect("it names one");
    fs::write(&config, json.to_string()).unwrap();
    let told = |more: &[&str]| {
        let output = common::run("yuan-quant", &[&[&checkpoint, "--dry-run"], more].concat());
        assert!(output.status.success());
        common::err(&output)
    };
    assert!(told(&[]).contains("warning: ") && told(&[]).contains("10000"), "{}", told(&[]));
    assert_eq!(told(&["--rope-base", "20000"]), "");
}

/// However the demo model is converted, it is the same file.
#[test]
fn the_demo_model_is_converted_by_its_own_description() {
    let folder = Folder::new();
    let cache = folder.path("cache");
    text("yuan", &["demo", "--cache", &cache, "-n", "1"]);
    let model = folder.converted("m.gguf", &[]);
    assert!(fs::read(&model).unwrap() == fs::read(format!("{cache}/demo-model.q4_k.gguf")).unwrap());
    assert_eq!(json("yuan", &["inspect", &model, "--json"])["config"]["rope_precision"], "f32");
}

/// What was generated before an error ends its line, so that the error stands on one of its own.
#[test]
fn an_error_behind_text_begins_a_line() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let args = ["-n", "50", "--ignore-eod", "--context", "20"];
    let output = common::run("yuan", &[&["generate", &model, "-p", "Ruth 1:1<sep>"], &args[..]].concat());
    assert!(common::err(&output).starts_with("error: the context holds 20 tokens"));
    assert!(common::out(&output).len() > 10 && common::out(&output).ends_with('\n'));
}

/// Nobody hears: a full disk is an error, a reader that has gone is none, and neither is a panic.
#[test]
fn damaged_weights_are_an_error_of_every_command_that_runs_the_model() {
    let folder = Folder::new();
    let (model, heldout) = (folder.converted("m.gguf", &[]), folder.path("text"));
    fs::write(&heldout, "In the beginning God created the heaven and the earth.").unwrap();
    damage::damage(&Container::open(Path::new(&model)).unwrap(), "output.weight");
    for args in [
        &["generate", &model, "-p", "Ruth 1:1<sep>", "-n", "4"][..],
        &["perplexity", &model, "--file", &heldout],
        &["logits", &model, "--tokens", "1,2,3", "-o", &folder.path("l.npy")],
    ] {
        let said = complaint("yuan", args);
        assert!(said.contains("m.gguf") && said.contains("yuan-quant verify"), "{args:?}: {said}");
    }
    let chat = common::chat(&model, &["-n", "4"], &["Ruth 1:1"]);
    assert_eq!(chat.status.code(), Some(1));
    assert!(common::err(&chat).contains("yuan-quant verify"), "{}", common::err(&chat));
}

/// What the model was made for is said to whoever asks for more.
#[test]
fn a_context_that_the_model_was_not_made_for_is_not_taken_in_silence() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let said = |context: &str| {
        let generate = ["generate", &model, "-p", "Ruth 1:1<sep>", "-n", "1", "--context", context];
        common::err(&common::run("yuan", &generate))
    };
    assert!(said("1025").contains("made for a context of 1024 tokens"), "{}", said("1025"));
    assert!(!said("1024").contains("made for"));
}

#[test]
fn help_keeps_options_under_the_headings_that_they_belong_to() {
    for command in ["generate", "chat", "bench", "plan", "perplexity", "compare", "logits", "trace"] {
        let help = text("yuan", &[command, "--help"]);
        let sections: Vec<&str> = help.split("\n\n").collect();
        let of = |heading: &str| {
            let found = sections.iter().find(|s| s.starts_with(heading));
            let options = found.unwrap_or_else(|| panic!("{command}: {heading}")).lines();
            let options =
                options.filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")));
            options.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(of("GPU:"), ["--gpu", "--gpu-memory"], "{command}");
        assert_eq!(of("Memory:").len(), 5, "{command}");
        assert_eq!(of("Options:").last().unwrap(), "--help", "{command}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_output_that_nobody_takes_is_no_panic() {
    use std::process::Stdio;

    use common::program;
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let (trace, heldout) = (folder.path("t.trace"), folder.path("text"));
    fs::write(&heldout, "In the beginning God created the heaven and the earth.").unwrap();
    text("yuan", &["trace", &model, "-p", "Ruth 1:1<sep>", "-n", "4", "-o", &trace]);
    let (cache, demo) = (folder.path("cache"), common::demo_model());
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for (name, args) in [
        ("yuan", &["inspect", &model, "--tensors"][..]),
        ("yuan", &["plan", &model, "--context", "64"]),
        ("yuan", &["bench", &model, "-p", "4", "-n", "1", "-r", "1"]),
        ("yuan", &["perplexity", &model, "--file", &heldout]),
        ("yuan", &["compare", &model, &model, "--text", &heldout, "--memory-speed", "10"]),
        ("yuan", &["replay", &trace]),
        ("yuan", &["replay", &trace, "--json"]),
        ("yuan", &["tokenize", &model, "In the beginning"]),
        ("yuan", &["generate", &model, "-p", "Ruth 1:1<sep>", "-n", "4", "--stats"]),
        ("yuan", &["generate", &model, "-p", "Ruth 1:1<sep>", "-n", "4", "--json"]),
        ("yuan", &["demo", "--cache", &cache, "-n", "2"]),
        ("yuan-quant", &["verify", &model]),
        ("yuan-quant", &["inspect", &model, "--tensors"]),
        ("yuan-quant", &[demo.to_str().unwrap(), "--dry-run"]),
    ] {
        let run = |stdout: Stdio, stderr: Stdio| {
            let output =
                program(name).args(args).stdout(stdout).stderr(stderr).spawn().unwrap().wait_with_output();
            let output = output.unwrap();
            (output.status.code(), common::err(&output))
        };
        let (status, said) = run(full().into(), Stdio::piped());
        assert_eq!(status, Some(1), "{args:?}: {said}");
        let line =
            said.lines().find(|l| l.starts_with("error: ")).unwrap_or_else(|| panic!("{args:?}: {said}"));
        assert!(line.contains("standard output: No space left"), "{args:?}: {said}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (status, said) = run(writer.into(), Stdio::piped());
        assert!(status == Some(0) && !said.contains("panicked"), "{args:?}: {said}");
        assert_eq!(run(Stdio::null(), full().into()).0, Some(0), "{args:?}: a full standard error");
    }
}

#[test]
fn a_context_larger_than_the_memory_is_refused_with_the_option_that_asks_for_it() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let generate = ["generate", &model, "-p", "x", "--memory", "1G"];
    for more in [&["-n", "16000000"][..], &["--context", "16000000"]] {
        let said = complaint("yuan", &[&generate[..], more].concat());
        for part in ["16000", "GB of keys and values", "1.00 GB", "-n, --context", "--kv q8_0"] {
            assert!(said.contains(part), "no {part} in {said}");
        }
    }
}
