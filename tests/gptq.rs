//! GPTQ checkpoints: every matrix of the fixtures against the digests of the authors' own code, what other tools write, and damaged files.

mod common;

use std::{fs, path::Path};

use common::{
    fixture, mutate,
    weights::{self, Tensor},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use yuan::{
    checkpoint::{Checkpoint, config::parse_config, names},
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

// Small checkpoints, made here.

const HIDDEN: usize = 64;
/// No multiple of 32, so that some tools fill it up.
const OUT: usize = 40;

/// A model with one layer and two experts, whose matrices all have whole words.
fn small_config() -> Value {
    json!({
        "architectures": ["YuanForCausalLM"], "model_type": "yuan", "vocab_size": 6, "hidden_size": HIDDEN, "num_hidden_layers": 1,
        "num_attention_heads": 1, "intermediate_size": 32, "attention_projection_size": OUT, "max_position_embeddings": 16,
        "rotary_base": 10_000, "rotary_percent": 0.5, "moe_config": { "moe_num_experts": 32, "moe_top_k": 1, "gated_linear_unit": true },
    })
}

/// How a small checkpoint is quantized.
#[derive(Clone, Copy)]
struct Form {
    bits: u32,
    group: usize,
    v2: bool,
    symmetric: bool,
    act_order: bool,
    g_idx: bool,
    /// Outputs are filled up, and there are biases of zeros.
    padded: bool,
}

const PLAIN: Form =
    Form { bits: 4, group: 32, v2: false, symmetric: true, act_order: false, g_idx: true, padded: false };

/// The quantized parts of a matrix, and its weights.
fn module(
    name: &str,
    [outputs, inputs]: [usize; 2],
    form: Form,
    random: &mut mutate::Random,
) -> (Vec<Tensor>, Vec<f32>) {
    let (bits, per_word) = (form.bits, 32 / form.bits as usize);
    let (groups, stored) =
        (inputs.div_ceil(form.group), if form.padded { outputs.next_multiple_of(32) } else { outputs });
    let mask = (1u32 << bits) - 1;
    let code: Vec<u32> = (0..inputs * stored).map(|_| random.next() as u32 & mask).collect();
    let middle = 1 << (bits - 1);
    // Zero 0 is stored as the largest code in format 1.
    let zero: Vec<u32> =
        (0..groups * stored)
            .map(|i| {
                if form.symmetric { middle } else { [0, 1, middle, mask, random.next() as u32 & mask][i % 5] }
            })
            .collect();
    let scale: Vec<half::f16> = (0..groups * stored)
        .map(|i| half::f16::from_bits([0x1403, 0x2811, 0x0001, 0x03ff, 0x3c01][i % 5]))
        .collect();
    let mut group_of: Vec<usize> = (0..inputs).map(|i| i / form.group).collect();
    if form.act_order {
        (1..inputs).rev().for_each(|i| group_of.swap(i, random.below(i + 1)));
    }
    let mut qweight = vec![0u32; inputs / per_word * stored];
    let mut qzeros = vec![0u32; groups * stored / per_word];
    for i in 0..inputs {
        for o in 0..stored {
            qweight[i / per_word * stored + o] |= code[i * stored + o] << (bits as usize * (i % per_word));
        }
    }
    for (at, zero) in zero.iter().enumerate() {
        let (g, o) = (at / stored, at % stored);
        let field = if form.v2 { *zero } else { zero.wrapping_sub(1) & mask };
        qzeros[(g * stored + o) / per_word] |= field << (bits as usize * (o % per_word));
    }
    let words = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    let tensor = |part: &str, dtype, shape: &[usize], bytes| Tensor {
        name: format!("{name}.{part}"),
        dtype,
        shape: shape.into(),
        bytes,
    };
    let halves = |halves: &[half::f16]| halves.iter().flat_map(|h| h.to_le_bytes()).collect::<Vec<u8>>();
    let mut parts = vec![
        tensor("qweight", "I32", &[inputs / per_word, stored], words(&qweight)),
        tensor("qzeros", "I32", &[groups, stored / per_word], words(&qzeros)),
        tensor("scales", "F16", &[groups, stored], halves(&scale)),
    ];
    if form.g_idx {
        let index: Vec<u32> = group_of.iter().map(|g| *g as u32).collect();
        parts.push(tensor("g_idx", "I32", &[inputs], words(&index)));
    }
    if form.padded {
        parts.push(tensor("bias", "F16", &[outputs], vec![0; 2 * outputs]));
    }
    let weight = |o: usize, i: usize| {
        let at = group_of[i] * stored + o;
        scale[at].to_f32() * (code[i * stored + o] as i32 - zero[at] as i32) as f32
    };
    (parts, (0..outputs).flat_map(|o| (0..inputs).map(move |i| (o, i))).map(|(o, i)| weight(o, i)).collect())
}

/// All tensors of a small checkpoint, and the weights that they stand for, by name.
fn small(form: Form) -> (Vec<Tensor>, Vec<(String, Vec<f32>)>) {
    let config = parse_config(&small_config().to_string(), Path::new("config.json")).unwrap().config;
    let (mut tensors, mut all, mut random) = (Vec::new(), Vec::new(), mutate::Random::new(7));
    for spec in names::tensors(&config) {
        match (spec.hf.strip_suffix(".weight"), &spec.shape[..]) {
            (Some(name), &[outputs, inputs]) if name.contains("proj") || name.contains("mlp") => {
                let (parts, weights) = module(name, [outputs, inputs], form, &mut random);
                tensors.extend(parts);
                all.push((spec.hf, weights));
            }
            _ => tensors.push(Tensor::new(&spec.hf, "F16", &spec.shape, 1)),
        }
    }
    (tensors, all)
}

fn settings(form: Form) -> Value {
    let format = if form.v2 { "gptq_v2" } else { "gptq" };
    json!({ "bits": form.bits, "group_size": form.group, "sym": form.symmetric, "desc_act": form.act_order,
        "quant_method": "gptq", "checkpoint_format": format })
}

/// A folder of these files.
fn folder(tensors: &[Tensor], settings: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), small_config().to_string()).unwrap();
    fs::write(folder.path().join("quantize_config.json"), settings.to_string()).unwrap();
    fs::write(folder.path().join("gptq_model-4bit-32g.safetensors"), weights::safetensors(tensors)).unwrap();
    folder
}

/// All forms of two widths that tools write.
fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for bits in [4, 8] {
        for v2 in [false, true] {
            for symmetric in [false, true] {
                for (act_order, g_idx) in [(false, true), (false, false), (true, true)] {
                    forms.push(Form { bits, v2, symmetric, act_order, g_idx, ..PLAIN });
                }
            }
        }
        forms.push(Form { bits, group: HIDDEN, ..PLAIN });
    }
    forms
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

#[test]
fn damaged_checkpoints_never_panic() {
    for form in [PLAIN, Form { bits: 8, symmetric: false, act_order: true, ..PLAIN }] {
        let (mut tensors, _) = small(form);
        // The attention's matrices are enough to read; the others need only be there.
        tensors.sort_by_key(|tensor| tensor.name.contains("mlp"));
        let settings = settings(form).to_string();
        let file = weights::safetensors(&tensors);
        let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let folder = folder(&tensors, &json!({}));
        let mut sound = 0;
        for seed in 0..2500 {
            let (mut weights, mut says) = (file.clone(), settings.clone().into_bytes());
            match seed % 3 {
                0 => says = mutate::mutate(&says, seed),
                1 => weights.splice(8..header, mutate::mutate(&file[8..header], seed)).for_each(drop),
                _ => {
                    let end = weights.len().min(header + 20_000);
                    weights.splice(header..end, mutate::mutate(&file[header..end], seed)).for_each(drop);
                    weights.resize(file.len(), 0);
                }
            }
            fs::write(folder.path().join("quantize_config.json"), says).unwrap();
            fs::write(folder.path().join("gptq_model-4bit-32g.safetensors"), weights).unwrap();
            let Ok(checkpoint) = Checkpoint::open(folder.path()) else { continue };
            sound += 1;
            for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                let name = format!("model.layers.0.self_attn.{name}.weight");
                let (mut weights, facts) = (Vec::new(), checkpoint.facts(&name));
                let read = checkpoint.read_f32(&name, 0..HIDDEN * OUT, &mut weights);
                assert!(read.is_err() || (facts.is_ok() && weights.len() == HIDDEN * OUT));
            }
        }
        assert!((1..2500).contains(&sound), "{sound} of 2500 were sound");
        println!("{sound} of 2500 damaged checkpoints were still sound");
    }
}
