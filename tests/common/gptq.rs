//! Small GPTQ checkpoints of every form that tools write, made byte by byte, and the weights that they stand for.
#![allow(dead_code)]

use std::{fs, path::Path};

use serde_json::{Value, json};
use yuan::checkpoint::{config::parse_config, names};

use super::{
    mutate,
    weights::{self, Tensor},
};

pub const HIDDEN: usize = 64;
/// No multiple of 32, so that some tools fill it up.
pub const OUT: usize = 40;

/// A model with one layer and two experts, whose matrices all have whole words.
pub fn small_config() -> Value {
    json!({
        "architectures": ["YuanForCausalLM"], "model_type": "yuan", "vocab_size": 6, "hidden_size": HIDDEN, "num_hidden_layers": 1,
        "num_attention_heads": 1, "intermediate_size": 32, "attention_projection_size": OUT, "max_position_embeddings": 16,
        "rotary_base": 10_000, "rotary_percent": 0.5, "moe_config": { "moe_num_experts": 32, "moe_top_k": 1, "gated_linear_unit": true },
    })
}

/// How a small checkpoint is quantized.
#[derive(Clone, Copy)]
pub struct Form {
    pub bits: u32,
    pub group: usize,
    pub v2: bool,
    pub symmetric: bool,
    pub act_order: bool,
    pub g_idx: bool,
    /// Outputs are filled up, and there are biases of zeros.
    pub padded: bool,
}

pub const PLAIN: Form =
    Form { bits: 4, group: 32, v2: false, symmetric: true, act_order: false, g_idx: true, padded: false };

/// The quantized parts of a matrix, and its weights.
pub fn module(
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
pub fn small(form: Form) -> (Vec<Tensor>, Vec<(String, Vec<f32>)>) {
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

pub fn settings(form: Form) -> Value {
    let format = if form.v2 { "gptq_v2" } else { "gptq" };
    json!({ "bits": form.bits, "group_size": form.group, "sym": form.symmetric, "desc_act": form.act_order,
        "quant_method": "gptq", "checkpoint_format": format })
}

/// A folder of these files.
pub fn folder(tensors: &[Tensor], settings: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), small_config().to_string()).unwrap();
    fs::write(folder.path().join("quantize_config.json"), settings.to_string()).unwrap();
    fs::write(folder.path().join("gptq_model-4bit-32g.safetensors"), weights::safetensors(tensors)).unwrap();
    folder
}

/// All forms of two widths that tools write.
pub fn forms() -> Vec<Form> {
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
