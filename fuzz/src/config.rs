//! `config.json`: what is read of it is a model that code may count on.

use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use serde_json::{Value, json};
use yuan::{
    checkpoint::{config::parse_config, names},
    model::{KvType, State, rope::Rope},
    quantize::{DType, Options, Plan},
};

use crate::{Seed, gptq, json};

/// The first byte says whether the others are a text, or changes of a sound one.
pub fn run(data: &[u8]) {
    let Some((form, data)) = data.split_first() else { return };
    if *form == b'{' || form % 2 == 1 {
        let text = String::from_utf8_lossy(data);
        return parse(if *form == b'{' { format!("{{{text}") } else { text.into_owned() }.as_str());
    }
    let Ok(edits) = Vec::<json::Edit>::arbitrary_take_rest(Unstructured::new(data)) else { return };
    if edits.len() <= 32 {
        let bases = bases();
        parse(&json::changed(&bases[usize::from(form / 2) % bases.len()], &edits).to_string());
    }
}

fn parse(text: &str) {
    let Ok(parsed) = parse_config(text, Path::new("config.json")) else { return };
    let config = parsed.config;
    config.validate().expect("what was read is valid");
    assert!(Rope::of(&config).frequencies().iter().all(|f| f.is_finite()), "{config:?}");
    for kv in [KvType::F16, KvType::F32, KvType::Q8_0, KvType::Q4_0] {
        let _ = State::bytes(&config, kv, config.context);
    }
    if config.layers * config.experts.max(1) < 1 << 8 {
        let specs = names::tensors(&config);
        assert!(specs.iter().all(|spec| !spec.shape.contains(&0)));
        for experts in [DType::Q4_K, DType::F32] {
            if let Ok(plan) = Plan::new(config.clone(), &Options { experts, ..Options::default() }) {
                let _ = (plan.data_bytes(), plan.scratch_bytes(2));
            }
        }
    }
}

/// Models of both families.
fn bases() -> [Value; 3] {
    let dense = json!({
        "architectures": ["YuanForCausalLM"], "model_type": "yuan", "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
        "use_cache": true, "causal_mask": true, "use_flash_attention": true, "torch_dtype": "bfloat16", "hidden_act": "silu",
    });
    let text = json!({
        "architectures": ["YuanForCausalLM"], "model_type": "yuan", "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "ffn_hidden_size": 64, "attention_projection_size": 128, "max_position_embeddings": 256, "rotary_base": 1_000_000,
        "rotary_percent": 0.5, "use_moe": true, "use_yarn": true, "yarn_scale_factor": 8.0, "eod_token_id": 77185,
        "moe_config": { "moe_num_experts": 4, "moe_top_k": 2, "norm_topk_prob": true, "router_type": "linear", "gated_linear_unit": true,
            "ffn_hidden_size": 64, "use_mlp_norm": false },
    });
    let published = json!({ "architectures": ["YuanVLChatModel"], "model_type": "yuanvl", "llm_config": text, "vision_config": {} });
    [gptq::small_config(), dense, published]
}

/// All of them, as texts and to be changed.
pub fn seeds() -> Vec<Seed> {
    let texts = bases().map(|base| [&[1], base.to_string().as_bytes()].concat());
    [vec![0], vec![2], vec![4]].into_iter().chain(texts).collect()
}
