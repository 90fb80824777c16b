//! Folders and containers of Yuan 3.0: what is read, what is left out, what is refused and how.

mod common;

use std::{fs, path::Path};

use common::{
    fixture, mutate, sessions,
    yuan3::{self, Form},
};
use serde_json::{Value, json};
use yuan::{
    checkpoint::{
        Checkpoint,
        config::{Parsed, parse_config},
        names,
        vocab::read_vocab,
    },
    config::{Family, ModelConfig, RopePrecision, RouterKind, Yarn},
    container::Container,
    convert::Conversion,
    error::{Error, Result},
    model::{KvType, Model, Options},
    quantize::{self, Plan, synth},
    sampler::{Sampler, Settings},
    session::{Engine, Finish, Limits},
};

fn parse(config: &Value) -> Result<Parsed> {
    parse_config(&config.to_string(), Path::new("config.json"))
}

/// The config of the fixture with one key of the text model set; `moe_config.` and `top.` before it say where else it is.
fn with(key: &str, value: Value) -> Option<Value> {
    let mut config = yuan3::config()?;
    match key.split_once('.') {
        Some(("top", key)) => config[key] = value,
        Some((_, key)) => config["llm_config"]["moe_config"][key] = value,
        None => config["llm_config"][key] = value,
    }
    Some(config)
}

/// Every weight of a folder, by the names of the runtime.
fn weights(folder: &Path) -> Vec<Vec<f32>> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let read = |spec: names::TensorSpec| {
        let mut out = Vec::new();
        checkpoint.read_f32(&spec.hf, 0..spec.shape.iter().product(), &mut out).unwrap();
        out
    };
    names::tensors(checkpoint.config()).into_iter().map(read).collect()
}

#[test]
fn the_config_is_read_in_both_forms() {
    let Some(whole) = yuan3::config() else { return };
    let expected = ModelConfig {
        family: Family::Yuan3,
        vocab: 2048,
        hidden: 256,
        layers: 3,
        heads: 4,
        projection: 512,
        ffn: 64,
        experts: 16,
        rope_base: 1e6,
        rope_dims: 64,
        rope_precision: RopePrecision::F32,
        context: 4096,
        ..synth::m32()
    };
    for config in [&whole, &whole["llm_config"]] {
        let parsed = parse(config).unwrap();
        assert_eq!(parsed.config, expected);
        assert_eq!((parsed.names_rope_base, parsed.has_bias, parsed.eod), (true, Some(true), Some(960)));
    }
    assert_eq!(parse(&with("rotary_percent", json!(0.25)).unwrap()).unwrap().config.rope_dims, 32);
}

/// What one of the authors' classes writes, and none of their programs follows.
#[test]
fn keys_that_the_authors_do_not_follow_change_nothing() {
    let Some(config) = yuan3::config() else { return };
    let config = parse(&config).unwrap().config;
    for (key, value) in [
        ("tie_word_embeddings", json!(true)),
        ("rope_theta", json!(10_000.0)),
        ("moe_config.norm_topk_prob", json!(false)),
        ("attn_factor", json!(2.0)),
        ("yarn_scale_factor", json!(4)),
    ] {
        assert_eq!(parse(&with(key, value).unwrap()).unwrap().config, config, "{key}");
    }
}

#[test]
fn yarn_has_the_base_and_the_defaults_of_the_authors_code() {
    let Some(mut config) = with("use_yarn", json!(true)) else { return };
    let parsed = parse(&config).unwrap().config;
    assert_eq!(parsed.yarn, Some(Yarn { factor: 128.0, original: 4096 }));
    assert_eq!((parsed.rope_base, parsed.context), (10_000.0, 4096));
    config["llm_config"]["yarn_scale_factor"] = json!(8);
    config["llm_config"]["scaled_max_position_embeddings"] = json!(32_768);
    let parsed = parse(&config).unwrap().config;
    assert_eq!(parsed.yarn, Some(Yarn { factor: 8.0, original: 4096 }));
    assert_eq!(parsed.context, 32_768);
}

#[test]
fn what_is_missing_or_contradicts_is_named() {
    if yuan3::config().is_none() {
        return;
    }
    for (key, value) in [
        ("rms_norm_eps", json!(null)),
        ("rotary_percent", json!(null)),
        ("attention_projection_size", json!(null)),
        ("moe_config.router_type", json!(null)),
        ("max_position_embeddings", json!(null)),
        ("moe_config.moe_num_experts", json!(null)),
        ("num_attention_heads", json!(1)),
        ("head_dim", json!(64)),
        ("use_lfa_bias", json!("yes")),
        ("rotary_base", json!("1e6")),
        ("top.llm_config", json!(null)),
        ("top.llm_config", json!([])),
    ] {
        let error = parse(&with(key, value).unwrap()).expect_err(key);
        let name = key.rsplit('.').next().unwrap().replace("num_attention_heads", "head_dim");
        assert!(matches!(error, Error::BadFile { .. }) && error.to_string().contains(&name), "{error}");
    }
    let mut config = with("use_yarn", json!(true)).unwrap();
    for (key, value) in [("scaled_max_position_embeddings", json!(1024)), ("yarn_scale_factor", json!(0.5))] {
        config["llm_config"][key] = value;
        let error = parse(&config).expect_err(key).to_string();
        assert!(error.contains(key), "{error}");
        config["llm_config"].as_object_mut().unwrap().remove(key);
    }
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    if yuan3::config().is_none() {
        return;
    }
    for (key, value) in [
        ("moe_config.router_type", json!("topk_router")),
        ("use_lf_gate", json!(false)),
        ("use_rope_scaling", json!(true)),
        ("rotary_interleaved", json!(true)),
        ("lf_conv2d_group", json!(2)),
        ("lf_conv2d_num_pad", json!(1)),
        ("moe_config.num_attention_router_heads", json!(2)),
        ("logit_scale", json!(0.5)),
        ("seq_len_interpolation_factor", json!(2)),
        ("per_layer_experts_blocks", json!([1, 2])),
        ("num_key_value_heads", json!(2)),
        ("quantization_config", json!({ "quant_method": "compressed-tensors" })),
        ("top.architectures", json!(["LlavaForConditionalGeneration"])),
        ("top.model_type", json!("llava")),
        ("architectures", json!(["LlamaForCausalLM"])),
    ] {
        let error = parse(&with(key, value).unwrap()).expect_err(key);
        let Error::Unsupported { what, remedy, .. } = error else { panic!("{key}: {error}") };
        let name = key.rsplit('.').next().unwrap();
        let told = ["compressed-tensors", "Llava", "llava", "Llama"].iter().any(|name| what.contains(name));
        assert!(what.contains(name) || told, "{what}");
        assert!(!remedy.is_empty());
    }
    let other = parse(&with("rope_precision", json!("mixed")).unwrap()).unwrap_err().to_string();
    assert!(other.contains("mixed") && other.contains("f32"), "{other}");
}

#[test]
fn the_vision_tower_is_left_out_and_nothing_else() {
    let Some(folder) = yuan3::folder(Form::Published, &[]) else { return };
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let left_out: Vec<&str> = checkpoint.left_out().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(left_out.len(), 7, "{left_out:?}");
    assert!(left_out.iter().all(|name| name.starts_with("vision_model.") || name.starts_with("imagemlp")));
    assert!(checkpoint.left_out().iter().all(|tensor| tensor.bytes.is_some_and(|bytes| bytes > 0)));
    let text = yuan3::folder(Form::TextOnly, &[]).unwrap();
    assert!(Checkpoint::open(text.path()).unwrap().left_out().is_empty());
    assert!(weights(folder.path()) == weights(text.path()));
    // A folder may have tables that can be computed, too.
    yuan3::rewrite(text.path(), |name| {
        Some(name.replace("imagemlp_layernorm.weight", "model.rotary_pos_emb.inv_freq"))
    });
    let checkpoint = Checkpoint::open(text.path()).unwrap();
    assert!(checkpoint.left_out().iter().all(|tensor| !tensor.name.contains("rotary")));
}

#[test]
fn fused_tensors_are_cut_into_their_rows() {
    let Some(folder) = yuan3::folder(Form::Published, &[]) else { return };
    let source = fixture("models/yuan3-tiny/model-00001-of-00002.safetensors").unwrap();
    let bytes = fs::read(source).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let at = "model.layers.0.";
    for (fused, parts) in [
        ("self_attn.get_query_key.weight", &["self_attn.q_proj.weight", "self_attn.k_proj.weight"][..]),
        (
            "mlp.router.query_key_value.weight",
            &["mlp.gate.query.weight", "mlp.gate.key.weight", "mlp.gate.value.weight"],
        ),
    ] {
        let whole = file.tensor(&format!("language_model.{at}{fused}")).unwrap();
        let whole: Vec<f32> =
            whole.data().chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
        let mut found = Vec::new();
        for part in parts {
            let (name, elements) = (format!("{at}{part}"), whole.len() / parts.len());
            checkpoint.read_f32(&name, 0..elements, &mut found).unwrap();
            assert!(
                checkpoint.read_f32(&name, 0..elements + 1, &mut Vec::new()).is_err(),
                "{name} ends there"
            );
        }
        assert!(found == whole, "{fused}");
    }
}

/// One tensor with a row for each expert, under the name that the authors' classes and converter give it.
#[test]
fn a_linear_router_is_one_tensor() {
    let Some(config) = with("moe_config.router_type", json!("linear")) else { return };
    let config = parse(&config).unwrap().config;
    assert_eq!(config.router, RouterKind::Linear);
    let specs = names::tensors(&config);
    let router: Vec<_> = specs.iter().filter(|spec| spec.role == names::Role::Router).collect();
    assert_eq!(router.len(), config.layers);
    let name = "model.layers.0.mlp.router.weight";
    let (source, shape) = (&router[0].source, vec![config.experts, config.hidden]);
    assert_eq!((source.tensor.as_str(), source.first_row), (name, 0));
    assert!(source.shape == shape && router[0].shape == shape);
    // The three projections of the attention router are none.
    let mut moe = yuan3::config().unwrap()["llm_config"]["moe_config"].take();
    moe["router_type"] = json!("linear");
    let folder = yuan3::folder(Form::TextOnly, &[("moe_config", moe)]).unwrap();
    let text = |name: &str| name.strip_prefix("language_model.").map(str::to_owned);
    let problems = || match Checkpoint::open(folder.path()) {
        Err(Error::Tensors { problems, .. }) => problems,
        other => panic!("{other:?}"),
    };
    assert!(problems().missing.contains(&name.to_owned()), "{:?}", problems().missing);
    yuan3::rewrite(folder.path(), |name| {
        text(name).map(|name| name.replace("router.query_key_value", "router"))
    });
    assert!(problems().misshapen[0].contains("mlp.router.weight"), "{:?}", problems().misshapen);
}

#[test]
fn tensors_that_are_missing_or_stand_twice_are_named_as_the_folder_names_them() {
    let Some(folder) = yuan3::folder(Form::TextOnly, &[]) else { return };
    let fused = "model.layers.1.self_attn.get_query_key.weight";
    let text = |name: &str| name.strip_prefix("language_model.").map(str::to_owned);
    let problems = || match Checkpoint::open(folder.path()) {
        Err(Error::Tensors { problems, .. }) => problems,
        other => panic!("{other:?}"),
    };
    yuan3::rewrite(folder.path(), |name| text(name).filter(|name| name != fused));
    assert_eq!(problems().missing, [fused]);
    yuan3::rewrite(folder.path(), |name| text(name).filter(|name| name != "lm_head.weight"));
    assert_eq!(problems().missing, ["lm_head.weight"]);
    // The same tensor with the prefix and without it.
    yuan3::rewrite(folder.path(), |name| match name {
        "language_model.model.norm.weight" => Some("model.layers.0.input_layernorm.weight".into()),
        name => Some(name.to_owned()),
    });
    let found = problems();
    assert_eq!(found.duplicate, ["model.layers.0.input_layernorm.weight"]);
    assert_eq!(found.missing, ["model.norm.weight"]);
}

#[test]
fn biases_of_the_filter_may_be_missing_but_not_some_of_them() {
    let is_bias = |name: &str| name.contains("lf_gate.conv") && name.ends_with(".bias");
    let text = |name: &str| name.strip_prefix("language_model.").map(str::to_owned);
    let Some(folder) = yuan3::folder(Form::TextOnly, &[("use_lfa_bias", yuan3::nothing())]) else { return };
    yuan3::rewrite(folder.path(), |name| text(name).filter(|name| !is_bias(name)));
    let (bare, specs) = {
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        (weights(folder.path()), names::tensors(checkpoint.config()))
    };
    for (spec, weights) in specs.iter().zip(&bare) {
        assert_eq!(weights.len(), spec.shape.iter().product::<usize>());
        assert_eq!(weights.iter().all(|w| *w == 0.0), spec.role == names::Role::ConvBias, "{}", spec.hf);
    }
    yuan3::rewrite(folder.path(), |name| {
        text(name).filter(|name| !name.contains(".1.self_attn.lf_gate.conv1.bias"))
    });
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model.layers.1.self_attn.lf_gate.conv1.bias"), "{error}");
    for (said, kept) in [(true, false), (false, true)] {
        let folder = yuan3::folder(Form::TextOnly, &[("use_lfa_bias", json!(said))]).unwrap();
        yuan3::rewrite(folder.path(), |name| text(name).filter(|name| kept || !is_bias(name)));
        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(if said { "missing" } else { "use_lfa_bias" }), "{error}");
    }
}

#[test]
fn a_missing_rotary_base_is_told_and_yarn_says_which_it_takes() {
    let Some(folder) = yuan3::folder(Form::Published, &[("rotary_base", yuan3::nothing())]) else { return };
    let warnings = |folder: &Path, rope_base| {
        let wishes = quantize::Wishes { rope_base, ..quantize::Wishes::default() };
        Plan::of_checkpoint(&Checkpoint::open(folder).unwrap(), &wishes).unwrap()
    };
    let (plan, told) = warnings(folder.path(), None);
    assert!(told[0].contains("rotary_base") && told[0].contains("500000"), "{told:?}");
    assert_eq!(plan.config.rope_base, 500_000.0);
    assert_eq!(warnings(folder.path(), Some(1e6)).1, [""; 0]);
    let folder = yuan3::folder(Form::Published, &[("use_yarn", json!(true))]).unwrap();
    let (plan, told) = warnings(folder.path(), None);
    assert!(told[0].contains("YaRN") && told[0].contains("10000"), "{told:?}");
    assert_eq!(plan.config.rope_base, 10_000.0);
    let (plan, told) = warnings(folder.path(), Some(1e6));
    assert_eq!((plan.config.rope_base, told.len()), (1e6, 0));
}

#[test]
fn a_tokenizer_of_another_model_is_noticed() {
    let Some(folder) = yuan3::folder(Form::Published, &[("eod_token_id", json!(77))]) else { return };
    let error = read_vocab(folder.path(), None).unwrap_err().to_string();
    assert!(error.contains("960") && error.contains("77"), "{error}");
}

/// What a container says of its model, and an export of it, comes back; programs that know no YaRN do not know its architecture.
#[test]
fn containers_keep_the_family_and_yarn() {
    let yarn = Some(Yarn { factor: 8.0, original: 512 });
    let config = ModelConfig {
        family: Family::Yuan3,
        vocab: 2048,
        rope_precision: RopePrecision::F32,
        ..synth::tiny()
    };
    let folder = common::folder();
    for (config, name) in [(config.clone(), "yuan2_moe"), (ModelConfig { yarn, ..config }, "yuan3_moe")] {
        let path = folder.path().join(format!("{name}.gguf"));
        let container = common::synth(config.clone(), &quantize::Options::default(), 1, &path);
        let standard = folder.path().join("standard.gguf");
        Conversion::export(&container).unwrap().write(&standard, &|_| true).unwrap();
        let again = folder.path().join("again.gguf");
        Conversion::repack(&Container::open(&standard).unwrap(), &quantize::Options::default())
            .and_then(|conversion| conversion.write(&again, &|_| true))
            .unwrap();
        for file in [&path, &standard, &again] {
            assert_eq!(*Container::open(file).unwrap().config(), config);
            let bytes = fs::read(file).unwrap();
            let header = &bytes[..256];
            assert!(header.windows(name.len()).any(|text| text == name.as_bytes()), "{name}");
        }
        // The other conventions were never those of this family.
        let options = Options { rope: Some(RopePrecision::Mixed), ..common::float() };
        let error = Model::load(&container, &options).unwrap_err().to_string();
        assert!(error.contains("mixed"), "{error}");
    }
}

#[test]
fn an_answer_ends_at_either_of_its_ends() {
    let Some(folder) = yuan3::folder(Form::Published, &[]) else { return };
    let container = common::convert(folder.path(), &common::exact(), &folder.path().join("m.gguf"));
    let engine = Engine::new(container, &common::float()).unwrap();
    let ends: Vec<u32> = engine.tokenizer().ends().collect();
    assert_eq!(
        ends.iter().map(|id| engine.tokenizer().piece(*id)).collect::<Vec<_>>(),
        ["<eod>", "<|end_of_sentence|>"]
    );
    for end in ends {
        let always = Settings { logit_bias: vec![(end, 1e6)], ..Settings::default() };
        let mut sampler = Sampler::new(always).unwrap();
        let mut session = sessions::fresh(&engine, &[1, 2, 3], KvType::F32);
        let limits = Limits::tokens(1);
        assert_eq!(
            sessions::answer(&mut session, &mut sampler, &limits),
            (vec![], String::new(), Finish::Stop)
        );
        let (tokens, _, finish) = sessions::answer(&mut session, &mut sampler, &sessions::endless(1));
        assert_eq!((tokens, finish), (vec![end], Finish::Length));
    }
}

#[test]
fn damaged_folders_never_panic() {
    let Some(folder) = yuan3::folder(Form::Published, &[]) else { return };
    for name in [
        "config.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
    ] {
        let path = folder.path().join(name);
        let sound = fs::read(&path).unwrap();
        let header = match name.ends_with(".safetensors") {
            true => 8 + u64::from_le_bytes(sound[..8].try_into().unwrap()) as usize,
            false => sound.len(),
        };
        let mut noticed = 0;
        for seed in 0..300 {
            let damaged = mutate::mutate(&sound[..header], seed);
            fs::write(&path, [&damaged, &sound[header..]].concat()).unwrap();
            let vocab = read_vocab(folder.path(), None).is_ok();
            noticed += usize::from(!(vocab && Checkpoint::open(folder.path()).is_ok()));
        }
        fs::write(&path, sound).unwrap();
        assert!(noticed > 0, "no damage of {name} was noticed");
    }
}
