//! GPTQ checkpoints: every matrix of the fixtures against the digests of the authors' own code, and what other tools write.

mod common;

use std::fs;

use common::{
    fixture,
    gptq::{Form, HIDDEN, PLAIN, folder, forms, settings, small, small_config},
    weights::{self, Tensor},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use yuan::{
    checkpoint::{Checkpoint, names},
    error::Error,
};

const FIXTURES: [&str; 3] = ["gptq-tiny-int4", "gptq-tiny-int8", "gptq-demo-int4"];

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All weights of a tensor.
fn read(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let specs = names::tensors(checkpoint.config());
    let spec = specs.iter().find(|spec| spec.hf == name).expect("a tensor of the model");
    let mut out = Vec::new();
    checkpoint.read_f32(name, 0..spec.shape.iter().product(), &mut out).unwrap();
    out
}

/// The fixture's goldens: module name, digests.
fn goldens(name: &str) -> Option<serde_json::Map<String, Value>> {
    let goldens: Value =
        serde_json::from_slice(&fs::read(fixture(&format!("goldens/{name}.json"))?).unwrap()).unwrap();
    Some(goldens["quantized"].as_object().unwrap().clone())
}

#[test]
fn every_weight_is_that_of_the_authors_code() {
    for name in FIXTURES {
        let (Some(folder), Some(goldens)) = (fixture(&format!("models/{name}")), goldens(name)) else {
            continue;
        };
        let checkpoint = Checkpoint::open(&folder).unwrap();
        assert_eq!(goldens.len(), 142);
        for (module, golden) in &goldens {
            let weights = read(&checkpoint, &format!("{module}.weight"));
            assert_eq!(hex(bytemuck::cast_slice(&weights)), golden["f32"], "{name}: {module}");
        }
        for spec in names::tensors(checkpoint.config()) {
            let module = spec.hf.strip_suffix(".weight").is_some_and(|module| goldens.contains_key(module));
            assert_eq!(checkpoint.facts(&spec.hf).unwrap().is_some(), module, "{}", spec.hf);
        }
    }
}

#[test]
fn every_form_gives_its_weights_exactly() {
    for form in forms() {
        let (tensors, expected) = small(form);
        let folder = folder(&tensors, &settings(form));
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        for (name, weights) in &expected {
            assert!(read(&checkpoint, name) == *weights, "{name}");
            let mut part = vec![1.0];
            checkpoint.read_f32(name, 37..37 + HIDDEN, &mut part).unwrap();
            assert!(part[1..] == weights[37..37 + HIDDEN], "{name}");
            let facts = checkpoint.facts(name).unwrap().unwrap();
            assert_eq!((facts.bits, facts.symmetric, facts.half_scales), (form.bits, form.symmetric, true));
            // Experts' second matrices have one group in these models.
            let is_w2 = name.ends_with("w2.weight");
            assert_eq!(facts.in_order, !form.act_order || is_w2, "{name}");
        }
    }
}

#[test]
fn newer_tools_write_settings_into_the_config_and_weights_into_shards() {
    let form = Form { v2: true, ..PLAIN };
    let (tensors, expected) = small(form);
    let folder = tempfile::tempdir().unwrap();
    let mut config = small_config();
    config["quantization_config"] =
        json!({ "bits": 4, "group_size": 32, "format": "gptq_v2", "quant_method": "gptq" });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let (a, b) = tensors.split_at(50);
    let map: serde_json::Map<_, _> = tensors
        .iter()
        .enumerate()
        .map(|(i, t)| (t.name.clone(), if i < 50 { "a.safetensors" } else { "b.safetensors" }.into()))
        .collect();
    fs::write(folder.path().join("a.safetensors"), weights::safetensors(a)).unwrap();
    fs::write(folder.path().join("b.safetensors"), weights::safetensors(b)).unwrap();
    let index = json!({ "metadata": {}, "weight_map": map }).to_string();
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    for (name, weights) in &expected {
        assert!(read(&checkpoint, name) == *weights, "{name}");
    }
    assert_eq!(checkpoint.quantized().unwrap().path, folder.path().join("config.json"));
}

#[test]
fn outputs_that_fill_up_and_biases_of_zeros_mean_nothing() {
    let form = Form { padded: true, symmetric: false, ..PLAIN };
    let (mut tensors, expected) = small(form);
    let folder = folder(&tensors, &settings(form));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    for (name, weights) in &expected {
        assert!(read(&checkpoint, name) == *weights, "{name}");
    }
    let bias = tensors.iter_mut().find(|tensor| tensor.name.ends_with("q_proj.bias"));
    bias.unwrap().bytes[7] = 0x3c;
    let e = open_error(&tensors, &settings(form));
    assert!(matches!(e, Error::Unsupported { .. }) && e.to_string().contains("q_proj.bias"), "{e}");
}

fn open_error(tensors: &[Tensor], settings: &Value) -> Error {
    Checkpoint::open(folder(tensors, settings).path()).expect_err("the folder is refused")
}

#[test]
fn wrong_labels_are_refused() {
    for bits in [4, 8] {
        for v2 in [false, true] {
            let form = Form { bits, v2, ..PLAIN };
            let (tensors, _) = small(form);
            let wrong = settings(Form { v2: !v2, ..form });
            let e = open_error(&tensors, &wrong).to_string();
            assert!(e.contains("checkpoint_format") && e.contains("off by one step"), "{e}");
        }
        // Zeros that differ can be of either format.
        let (tensors, _) = small(Form { bits, symmetric: false, ..PLAIN });
        let other = settings(Form { bits, v2: true, symmetric: false, ..PLAIN });
        assert!(Checkpoint::open(folder(&tensors, &other).path()).is_ok());
    }
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let (tensors, _) = small(PLAIN);
    let with = |change: &dyn Fn(&mut Vec<Tensor>)| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        open_error(&tensors, &settings(PLAIN)).to_string()
    };
    let at = |part: &str| tensors.iter().position(|t| t.name.ends_with(part)).unwrap();
    let e = with(&|t| drop(t.remove(at("q_proj.qzeros"))));
    assert!(e.contains("missing: model.layers.0.self_attn.q_proj.qzeros"), "{e}");
    let e = with(&|t| t[at("q_proj.qweight")].shape.reverse());
    assert!(e.contains("q_proj.qweight: found I32"), "{e}");
    let e = with(&|t| t[at("q_proj.scales")].dtype = "I16");
    assert!(e.contains("q_proj.scales: found I16"), "{e}");
    // A group that is not there, and a scale that is no number, are found when they are read.
    for (part, bytes, word) in
        [("k_proj.g_idx", [255u8; 4], "group -1"), ("k_proj.scales", [0, 0x7e, 0, 0x7c], "NaN")]
    {
        let mut tensors = tensors.clone();
        tensors[at(part)].bytes[..4].copy_from_slice(&bytes);
        let folder = folder(&tensors, &settings(PLAIN));
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let e = checkpoint.packed("model.layers.0.self_attn.k_proj.weight").unwrap_err().to_string();
        assert!(e.contains(part) && e.contains(word), "{e}");
    }
    // Without settings nobody knows what the words mean.
    let folder = folder(&tensors, &settings(PLAIN));
    fs::remove_file(folder.path().join("quantize_config.json")).unwrap();
    let e = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(e.contains("quantize_config.json") && e.contains(".qweight"), "{e}");
}
