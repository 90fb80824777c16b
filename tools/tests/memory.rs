//! The memory that a run may have, against what the system counted for its process.
#![cfg(target_os = "linux")]

mod common;

use std::fs;

use common::{Folder, demo_model, json, text};

/// A vocabulary that is most of the model, prompts that use all of it, and threads enough that each one's memory would show.
#[test]
fn a_streamed_model_stays_within_its_memory() {
    let folder = Folder::new();
    let (geometry, model) = (folder.path("config.json"), folder.path("m.gguf"));
    let demo = fs::read_to_string(demo_model().join("config.json")).unwrap();
    fs::write(&geometry, demo.replace("\"vocab_size\": 4096", "\"vocab_size\": 300000")).unwrap();
    text("yuan-quant", &["synth", "--geometry", &geometry, "--dense", "bf16", "-o", &model]);
    let limits = ["--paging", "streamed", "--memory", "380000000", "--threads", "16"];
    let load = ["-p", "512", "-n", "4", "--sequences", "8", "--json"];
    let report = json("yuan", &[&["bench", &model], &limits[..], &load[..]].concat());
    let paging = &report["paging"];
    assert_eq!(paging["mode"], "streamed", "{report}");
    assert!(paging["peak_memory"].as_u64() < paging["budget"].as_u64(), "{report}");
    // The table of the embedding would not find room beside what was used.
    assert!(300_000 * 256 * 2 > 380_000_000 - paging["peak_memory"].as_u64().unwrap(), "{report}");
}
