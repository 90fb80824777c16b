//! The tiny model of Yuan 3.0 in a folder of its own, as it is published or changed.
#![allow(dead_code)]

use std::{collections::BTreeMap, fs, path::Path};

use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::fixture;

/// What is in the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Two shards with a vision tower, the text model's config under `llm_config`.
    Published,
    /// One file with the text model alone, its config as it is, and no prefix.
    TextOnly,
}

const PREFIX: &str = "language_model.";

/// A copy of the fixture in this form, with these keys of the text model's config set; none where there is no fixture.
pub fn folder(form: Form, change: &[(&str, Value)]) -> Option<TempDir> {
    let source = fixture("models/yuan3-tiny")?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut config: Value = serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    change.iter().for_each(|(key, value)| config["llm_config"][*key] = value.clone());
    if form == Form::TextOnly {
        config = config["llm_config"].take();
    }
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let is_kept = |name: &str| form == Form::Published || !name.starts_with("model");
    for entry in fs::read_dir(&source).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name != "config.json" && is_kept(&name) {
            // The fixtures are read-only; copies are to be changed.
            fs::write(folder.path().join(&name), fs::read(source.join(&name)).unwrap()).unwrap();
        }
    }
    if form == Form::TextOnly {
        rewrite(folder.path(), |name| name.strip_prefix(PREFIX).map(str::to_owned));
    }
    Some(folder)
}

/// Writes the weights of the fixture as one file, under the names that `name` gives them, and without those that it gives none.
pub fn rewrite(folder: &Path, name: impl Fn(&str) -> Option<String>) {
    let source = fixture("models/yuan3-tiny").expect("it was there just now");
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let bytes = shards.map(|shard| fs::read(source.join(shard)).unwrap());
    let mut tensors = BTreeMap::<String, TensorView<'_>>::new();
    for shard in &bytes {
        let shard = SafeTensors::deserialize(shard).unwrap();
        for (old, view) in shard.tensors() {
            tensors.extend(name(&old).map(|new| {
                (
                    new,
                    TensorView::new(view.dtype(), view.shape().to_vec(), shard.tensor(&old).unwrap().data())
                        .unwrap(),
                )
            }));
        }
    }
    let all = safetensors::serialize(tensors, None).unwrap();
    fs::write(folder.join("model.safetensors"), all).unwrap();
    let _ = shards.map(|shard| fs::remove_file(folder.join(shard)));
    let _ = fs::remove_file(folder.join("model.safetensors.index.json"));
}

/// The config of the fixture.
pub fn config() -> Option<Value> {
    let path = fixture("models/yuan3-tiny/config.json")?;
    Some(serde_json::from_slice(&fs::read(path).unwrap()).unwrap())
}

/// `null` for [`folder`]: the key is as if it were not there.
pub fn nothing() -> Value {
    json!(null)
}
