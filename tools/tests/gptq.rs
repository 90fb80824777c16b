//! `yuan-quant` and checkpoints of GPTQ.

mod common;

use std::fs;

use common::{Folder, complaint, fixture, json, program, text};

#[test]
fn a_gptq_folder_is_converted_without_loss_and_runs() {
    let Some(checkpoint) = fixture("models/gptq-demo-int4") else { return };
    let checkpoint = checkpoint.to_str().unwrap();
    let folder = Folder::new();
    let plan = text("yuan-quant", &[checkpoint, "--dry-run"]);
    let line =
        |name: &str| plan.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{plan}"));
    for (name, words) in [
        ("blk.1.ffn_expert.31 ", ["q4_0 tiles", " lossless"]),
        ("blk.0.attn_q.weight ", ["q4_0 panels", " lossless"]),
        ("blk.0.mlp_attn_q.weight ", ["f32", " lossless"]),
        ("output.weight ", ["q8_0 panels", "rounded: the checkpoint has it in f16"]),
    ] {
        assert!(words.iter().all(|word| line(name).contains(word)), "{}", line(name));
    }
    assert!(plan.contains("GPTQ, 4 bits, groups of 128, gptq: lossless: all 78 quantized tensors"), "{plan}");

    let (model, exact) = (folder.path("m.gguf"), folder.path("exact.gguf"));
    let out = program("yuan-quant").args([checkpoint, "-o", &model]).output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && told.contains("lossless: all 78"), "{told}");
    let out = program("yuan-quant").args([checkpoint, "-o", &exact, "--lossless"]).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stderr).contains("all other tensors, too"));
    for model in [&model, &exact] {
        text("yuan-quant", &["verify", model]);
        let answer = json("yuan", &["generate", model, "-p", "Psalms 151:1<sep>", "-n", "12", "--json"]);
        assert_eq!(answer["tokens"].as_array().unwrap().len(), 12);
    }
}

#[test]
fn what_loses_is_told_with_its_cost_or_refused() {
    let Some(checkpoint) = fixture("models/gptq-tiny-int8") else { return };
    let checkpoint = checkpoint.to_str().unwrap();
    let folder = Folder::new();
    let model = folder.path("m.gguf");
    let named = [checkpoint, "-o", &model, "--experts", "q4_k"];
    let refused = complaint("yuan-quant", &[&named[..], &["--lossless"]].concat());
    assert!(refused.contains("blk.0.ffn_expert.0, q4_k") && !fs::exists(&model).unwrap(), "{refused}");
    let out = program("yuan-quant").args(named).output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr);
    for word in
        ["14 of 78 quantized tensors", "quantized once more: 128 matrices", "% of their weights", "(q4_k)"]
    {
        assert!(told.contains(word), "no {word:?} in {told}");
    }
}
