//! The demo model with a linear router, whose matrix is the query projection of its attention router.
#![allow(dead_code)]

use std::{collections::BTreeMap, fs};

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::demo;

/// A folder with that checkpoint.
pub fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["tokenizer.model", "tokenizer_config.json"] {
        fs::copy(demo().join(name), folder.path().join(name)).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&fs::read(demo().join("config.json")).unwrap()).unwrap();
    config["moe_config"]["router_type"] = json!("linear");
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let bytes = fs::read(demo().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let is_dropped = |name: &str| name.contains("mlp.gate.key") || name.contains("mlp.gate.value");
    let kept = file.tensors().into_iter().filter(|(name, _)| !is_dropped(name));
    let tensors: BTreeMap<_, _> =
        kept.map(|(name, tensor)| (name.replace("mlp.gate.query", "mlp.gate"), tensor)).collect();
    fs::write(folder.path().join("model.safetensors"), safetensors::serialize(tensors, None).unwrap())
        .unwrap();
    folder
}
