//! Models of Yuan 3.0, as a person converts and looks at them.

mod common;

use common::{Folder, complaint, fixture, json, run, text};

#[test]
fn a_conversion_says_what_is_left_out_and_an_export_what_it_is_called() {
    let Some(checkpoint) = fixture("models/yuan3-tiny") else { return };
    let checkpoint = checkpoint.to_str().unwrap();
    let folder = Folder::new();
    let plan = text("yuan-quant", &[checkpoint, "--dry-run"]);
    let lines: Vec<&str> = plan.lines().filter(|line| line.contains("left out")).collect();
    assert_eq!(lines.len(), 8, "seven tensors and their sum: {plan}");
    assert!(lines.iter().any(|line| line.starts_with("imagemlp_layernorm.weight")));
    let (model, standard) = (folder.path("m.gguf"), folder.path("standard.gguf"));
    let said = |args: &[&str]| {
        let output = run("yuan-quant", args);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let converted = said(&[checkpoint, "-o", &model]);
    assert!(converted.contains("left out: 7 tensors"), "{converted}");
    assert!(said(&["export", &model, "-o", &standard]).contains("yuan2_moe"));
    let config = &json("yuan", &["inspect", &model, "--json"])["config"];
    assert_eq!((&config["family"], &config["rope_base"]), (&"yuan3".into(), &1e6.into()));
    assert!(text("yuan", &["inspect", &standard]).contains("yuan3, mixture of experts"));
    let refused = complaint(
        "yuan",
        &["logits", &model, "--tokens", "1,2", "--rope", "mixed", "-o", &folder.path("l.npy")],
    );
    assert!(refused.contains("f32"), "{refused}");
}

#[test]
fn a_random_checkpoint_of_yuan3_converts() {
    let Some(config) = fixture("models/yuan3-tiny/config.json") else { return };
    let folder = Folder::new();
    for router in ["attention", "linear"] {
        let (checkpoint, model) = (folder.path(router), folder.path(&format!("{router}.gguf")));
        let geometry = ["--geometry", config.to_str().unwrap(), "--router", router];
        text("yuan-quant", &[&["synth"], &geometry[..], &["-o", &checkpoint]].concat());
        text("yuan-quant", &[&checkpoint, "-o", &model]);
        let config = &json("yuan", &["inspect", &model, "--json"])["config"];
        assert_eq!((&config["family"], &config["rope_precision"]), (&"yuan3".into(), &"f32".into()));
        assert_eq!(config["router"], router);
        let answer = json("yuan", &["generate", &model, "-p", "abc<|User|>", "-n", "2", "--json"]);
        assert!(answer["tokens"].as_array().is_some());
    }
}

/// Whether it thinks is chosen by one mark at the end of the prompt, in the terminal and in a conversation.
#[test]
fn it_is_chosen_whether_the_model_thinks() {
    let Some(checkpoint) = fixture("models/yuan3-tiny") else { return };
    let folder = Folder::new();
    let model = folder.path("m.gguf");
    text("yuan-quant", &[checkpoint.to_str().unwrap(), "-o", &model]);
    let ids = |text: &str| json("yuan", &["tokenize", &model, "--special", "--json", text])["ids"].clone();
    let prompt = |more: &[&str]| {
        let asked = ["generate", &model, "--chat", "-p", "你好", "-n", "1", "--json"];
        json("yuan", &[&asked[..], more].concat())["prompt_tokens"].clone()
    };
    for (options, end) in
        [(&["--thinking", "on"][..], "<think>"), (&["--thinking", "off"], "</think>"), (&[], "")]
    {
        let wanted = ids(&format!("<|begin_of_sentence|><|User|>你好<|Assistant|>{end}"));
        assert_eq!(prompt(options), wanted, "{options:?}");
        let said = common::answers(&model, &[&["-n", "1"], options].concat(), &["你好"]);
        assert_eq!(said[0]["prompt_tokens"], wanted, "{options:?}");
    }
    let both = ["generate", &model, "--chat", "-p", "a", "--thinking", "on", "--json-object"];
    assert!(complaint("yuan", &both).contains("--thinking off"));
    let demo = folder.converted("demo.gguf", &[]);
    let asked = ["generate", &demo, "--chat", "-p", "a", "--thinking", "on"];
    assert!(complaint("yuan", &asked).contains("leave --thinking out"));
}
