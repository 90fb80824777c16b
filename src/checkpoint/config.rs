//! `config.json` to [`ModelConfig`]. What the runtime does not do is refused by name.

use std::{fmt::Display, path::Path};

use super::{
    family::describe,
    features::{check_architecture, check_features, check_values, check_whole, router, unsupported},
    gptq,
    json::{Object, parse_object},
};
use crate::{
    config::{Architecture, Family, ModelConfig, RopePrecision, Yarn},
    error::{Error, Result},
};

/// Base from which the authors' YaRN computes, whatever `rotary_base` says: it is not handed on to it.
const YARN_BASE: f32 = 10_000.0;
/// Scale of YaRN where the config names none (the authors' serving code).
const YARN_FACTOR: f64 = 128.0;
/// Epsilon of the norms where the config names none (the authors' model file).
const DEFAULT_RMS_EPS: f64 = 1e-6;

/// What a `config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// The shape of the model.
    pub config: ModelConfig,
    /// Whether it names the base of the rotary frequencies; where it does not, the one in `config` is the default of the authors' model file.
    pub names_rope_base: bool,
    /// Whether it says that the convolutions of the filter have biases.
    pub has_bias: Option<bool>,
    /// The id that it gives to the end of a document.
    pub eod: Option<usize>,
}

/// Reads the text of a `config.json`; `path` is for messages.
///
/// # Errors
/// [`Error::BadFile`] for text that is no JSON object, a missing key, a value of the wrong type, keys that contradict each other and
/// sizes that cannot be; [`Error::Unsupported`] for another architecture and for features that are not built.
pub fn parse_config(text: &str, path: &Path) -> Result<Parsed> {
    parse_config_of(text, path, None)
}

/// [`parse_config`] of a folder whose tensors are named as those of `family`, where that is known: Yuan 2.0 and Yuan 3.0 without
/// its vision tower have configs of the same kind.
///
/// # Errors
/// As [`parse_config`].
pub(super) fn parse_config_of(text: &str, path: &Path, family: Option<Family>) -> Result<Parsed> {
    let map = parse_object(text, path)?;
    let whole = Object::new(&map, path);
    // What it says is read where weights are, but another method than GPTQ is refused here.
    gptq::Settings::of_config(text, path)?;
    let text_model = whole.object("llm_config", "llm_config.")?;
    check_whole(&whole, text_model.is_some(), path)?;
    let (top, of_moe) = match text_model {
        Some(text_model) => (text_model, "llm_config.moe_config."),
        None => (whole, "moe_config."),
    };
    check_architecture(&top, path)?;
    let moe = top.object("moe_config", of_moe)?;
    let family = match (text_model, family) {
        (Some(_), _) => Family::Yuan3,
        (None, Some(family)) => family,
        (None, None) => Keys { top, moe }.family(),
    };
    let about = describe(family);
    for object in [Some(&top), moe.as_ref()].into_iter().flatten() {
        check_features(object, path)?;
        check_values(object, path, about)?;
    }

    let nested = Keys { top, moe };
    if let Some(key) = about.required.iter().find(|key| nested.lacks(key)) {
        return Err(top.wrong(key, "it is missing, and the authors' programs do not agree on a default"));
    }
    let need = |key: &str| top.size(key)?.ok_or_else(|| top.wrong(key, "it is missing"));
    let (hidden, heads, layers) =
        (need("hidden_size")?, need("num_attention_heads")?, need("num_hidden_layers")?);
    let projection = top.size("attention_projection_size")?.unwrap_or(hidden);
    check_heads(&top, path, heads, projection)?;

    let experts = nested.size(&["moe_num_experts", "num_experts"])?;
    let architecture = match (top.flag("use_moe")?, experts) {
        (Some(false), Some(n)) if n > 0 => {
            return Err(top.wrong("use_moe", format!("it is false, but there are {n} experts")));
        }
        (Some(true), None) => {
            return Err(top.wrong("moe_config.moe_num_experts", "it is missing, and use_moe is true"));
        }
        (Some(true), _) => Architecture::Moe,
        (None, Some(n)) if n > 0 => Architecture::Moe,
        _ => Architecture::Dense,
    };
    let is_moe = architecture == Architecture::Moe;
    let (experts, experts_used) = if is_moe {
        let used = nested.size(&["moe_top_k", "num_experts_per_tok"])?;
        (experts.unwrap_or(0), used.ok_or_else(|| top.wrong("moe_config.moe_top_k", "it is missing"))?)
    } else {
        (0, 0)
    };
    let base = agreed(&top, about.rope_base_keys, Object::number)?;
    let (yarn, context) = yarn(&top, need("max_position_embeddings")?)?;
    let rope_base = match yarn {
        Some(_) => YARN_BASE,
        None => base.map_or(about.rope_base, |base| base as f32),
    };

    let config = ModelConfig {
        family,
        architecture,
        vocab: need("vocab_size")?,
        hidden,
        layers,
        heads,
        projection,
        ffn: feed_forward(&top, moe.as_ref().filter(|_| is_moe))?,
        experts,
        experts_used,
        router: router([moe.as_ref(), Some(&top)], path)?.filter(|_| is_moe).unwrap_or_default(),
        norm_topk: nested.flag("norm_topk_prob")?.unwrap_or(true) || about.fixed,
        rms_eps: top.number("rms_norm_eps")?.unwrap_or(DEFAULT_RMS_EPS) as f32,
        rope_base,
        rope_dims: rope_dims(&top, architecture, hidden, heads, projection)?,
        rope_precision: rope_precision(&top, path)?.unwrap_or(about.rope_precision),
        yarn,
        context,
        tied_embeddings: top.flag("tie_word_embeddings")?.unwrap_or(false) && !about.fixed,
    };
    config.validate().map_err(|problem| Error::bad_file(path, "the sizes", problem))?;
    let has_bias = top.flag("use_lfa_bias")?;
    let eod = agreed(&top, &["eod_token_id"], Object::size)?;
    Ok(Parsed { config, names_rope_base: base.is_some(), has_bias, eod })
}

/// Expert keys stand in `moe_config` as published, but are taken at the top level too.
struct Keys<'a> {
    top: Object<'a>,
    moe: Option<Object<'a>>,
}

impl Keys<'_> {
    /// The size under any of these keys; where there are several they must be the same.
    fn size(&self, keys: &[&str]) -> Result<Option<usize>> {
        let inner = self.moe.as_ref().map(|moe| agreed(moe, keys, Object::size)).transpose()?.flatten();
        let outer = agreed(&self.top, keys, Object::size)?;
        match (inner, outer) {
            (Some(a), Some(b)) if a != b => {
                Err(self.top.wrong(keys[0], format!("it is {b} here and {a} in moe_config")))
            }
            _ => Ok(inner.or(outer)),
        }
    }

    fn lacks(&self, key: &str) -> bool {
        self.top.get(key).is_none() && self.moe.is_none_or(|moe| moe.get(key).is_none())
    }

    /// The family of a config without a vision tower, by the keys that both of the authors' programs want of Yuan 3.0.
    fn family(&self) -> Family {
        let is_new = !["rotary_percent", "router_type"].into_iter().any(|key| self.lacks(key));
        if is_new { Family::Yuan3 } else { Family::Yuan2 }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        let inner = self.moe.as_ref().map(|moe| moe.flag(key)).transpose()?.flatten();
        Ok(inner.or(self.top.flag(key)?))
    }
}

/// The value under any of several spellings of one key, which must agree.
fn agreed<'a, T: PartialEq + Display>(
    object: &Object<'a>,
    keys: &[&str],
    read: impl Fn(&Object<'a>, &str) -> Result<Option<T>>,
) -> Result<Option<T>> {
    let mut found: Option<(&str, T)> = None;
    for key in keys {
        let Some(value) = read(object, key)? else { continue };
        match &found {
            Some((other, first)) if *first != value => {
                return Err(object.wrong(key, format!("it is {value}, but {other} is {first}")));
            }
            Some(_) => {}
            None => found = Some((key, value)),
        }
    }
    Ok(found.map(|(_, value)| value))
}

/// Heads must all have their own keys and values, and the width that the projection gives them.
fn check_heads(top: &Object<'_>, path: &Path, heads: usize, projection: usize) -> Result<()> {
    if let Some(groups) = top.size("num_key_value_heads")?.filter(|n| *n != heads) {
        let what = format!("num_key_value_heads {groups} for {heads} heads (grouped queries)");
        return Err(unsupported(path, what, "give a Yuan 2.0 model"));
    }
    match top.size("head_dim")? {
        Some(dim) if dim.checked_mul(heads) != Some(projection) => {
            Err(top
                .wrong("head_dim", format!("{heads} heads of {dim} are not the projection of {projection}")))
        }
        _ => Ok(()),
    }
}

/// Neurons of an expert, or of the dense MLP.
fn feed_forward(top: &Object<'_>, moe: Option<&Object<'_>>) -> Result<usize> {
    if let Some(moe) = moe {
        for key in ["ffn_hidden_size", "intermediate_size"] {
            if let Some(size) = moe.size(key)? {
                return Ok(size);
            }
        }
        if let Some(size) = top.size("ffn_hidden_size")? {
            return Ok(size);
        }
    }
    let size = top.size("intermediate_size")?.or(top.size("ffn_hidden_size")?);
    size.ok_or_else(|| top.wrong("intermediate_size", "it is missing"))
}

/// Dims of a head that rotate: all of a dense model's; hidden / heads of an M32's, which is half of a head, as long as no key
/// names the share.
fn rope_dims(
    top: &Object<'_>,
    architecture: Architecture,
    hidden: usize,
    heads: usize,
    projection: usize,
) -> Result<usize> {
    const KEYS: [&str; 2] = ["rotary_percent", "partial_rotary_factor"];
    let head = projection.checked_div(heads).unwrap_or(0);
    Ok(match (agreed(top, &KEYS, Object::number)?, architecture) {
        (Some(share), _) if share > 0.0 && share <= 1.0 => (share * head as f64).round() as usize,
        (Some(share), _) => return Err(top.wrong(KEYS[0], format!("{share} is not a fraction of a head"))),
        (None, Architecture::Moe) => hidden.checked_div(heads).unwrap_or(0),
        (None, Architecture::Dense) => head,
    })
}

fn rope_precision(top: &Object<'_>, path: &Path) -> Result<Option<RopePrecision>> {
    let Some(name) = top.text("rope_precision")? else { return Ok(None) };
    let known = RopePrecision::from_name(name);
    let unknown = || unsupported(path, format!("rope_precision {name}"), "it is mixed, f32 or hfbf16");
    known.ok_or_else(unknown).map(Some)
}

/// YaRN, and the context of the model, where `positions` is that without it.
fn yarn(top: &Object<'_>, positions: usize) -> Result<(Option<Yarn>, usize)> {
    if !top.flag("use_yarn")?.unwrap_or(false) {
        return Ok((None, positions));
    }
    let factor = top.number("yarn_scale_factor")?.unwrap_or(YARN_FACTOR) as f32;
    let scaled = top.size("scaled_max_position_embeddings")?.unwrap_or(positions);
    if scaled < positions {
        let problem = format!("{scaled} positions are fewer than the {positions} of max_position_embeddings");
        return Err(top.wrong("scaled_max_position_embeddings", problem));
    }
    Ok((Some(Yarn { factor, original: positions }), scaled))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::RouterKind;

    /// The published shape of Yuan2.0-M32.
    fn m32() -> Value {
        json!({
            "architectures": ["YuanForCausalLM"], "model_type": "yuan", "vocab_size": 135_040, "hidden_size": 2048,
            "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16, "hidden_act": "silu",
            "rms_norm_eps": 1e-6, "max_position_embeddings": 16_384, "attention_projection_size": 4096, "use_moe": true,
            "ffn_hidden_size": 8192, "tie_word_embeddings": false,
            "moe_config": { "moe_num_experts": 32, "moe_top_k": 2, "norm_topk_prob": true, "gated_linear_unit": true,
                "ffn_hidden_size": 8192 },
        })
    }

    fn parsed(config: &Value) -> Result<Parsed> {
        parse_config(&config.to_string(), Path::new("config.json"))
    }

    fn parse(config: &Value) -> Result<ModelConfig> {
        parsed(config).map(|parsed| parsed.config)
    }

    fn with(key: &str, value: Value) -> Value {
        let mut config = m32();
        match key.strip_prefix("moe_config.") {
            Some(key) => config["moe_config"][key] = value,
            None => config[key] = value,
        }
        config
    }

    fn without(key: &str) -> Value {
        let mut config = m32();
        config.as_object_mut().unwrap().remove(key);
        config
    }

    fn message(config: &Value) -> String {
        parse(config).expect_err("an error").to_string()
    }

    #[test]
    fn the_published_config_is_read() {
        let config = parse(&m32()).unwrap();
        let expected = ModelConfig {
            family: Family::Yuan2,
            architecture: Architecture::Moe,
            vocab: 135_040,
            hidden: 2048,
            layers: 24,
            heads: 16,
            projection: 4096,
            ffn: 8192,
            experts: 32,
            experts_used: 2,
            router: RouterKind::Attention,
            norm_topk: true,
            rms_eps: 1e-6,
            rope_base: 10_000.0,
            rope_dims: 128,
            rope_precision: RopePrecision::Mixed,
            yarn: None,
            context: 16_384,
            tied_embeddings: false,
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn the_rotary_base_has_two_spellings_and_may_be_missing() {
        assert!(!parsed(&m32()).unwrap().names_rope_base);
        for key in ["rotary_base", "rope_theta"] {
            let Parsed { config, names_rope_base, .. } = parsed(&with(key, json!(40_890))).unwrap();
            assert_eq!((config.rope_base, names_rope_base), (40_890.0, true));
        }
    }

    #[test]
    fn spellings_that_contradict_each_other_are_refused() {
        let mut both = with("rotary_base", json!(10_000));
        both["rope_theta"] = json!(10_000.0);
        assert!(parse(&both).is_ok());
        both["rope_theta"] = json!(40_890);
        assert!(message(&both).contains("rope_theta"));
        assert!(message(&with("num_experts", json!(16))).contains("32 in moe_config"));
        assert!(message(&with("use_moe", json!(false))).contains("use_moe"));
    }

    #[test]
    fn expert_keys_may_stand_at_the_top_level() {
        let mut config = without("moe_config");
        assert!(message(&config).contains("moe_num_experts"));
        config["num_experts"] = json!(32);
        assert!(message(&config).contains("moe_top_k"));
        config["num_experts_per_tok"] = json!(2);
        assert_eq!(parse(&config).unwrap(), parse(&m32()).unwrap());
        config.as_object_mut().unwrap().remove("ffn_hidden_size");
        assert_eq!(parse(&config).unwrap().ffn, 8192);
    }

    #[test]
    fn a_config_without_experts_is_dense_and_rotates_whole_heads() {
        let mut config = without("moe_config");
        config.as_object_mut().unwrap().remove("use_moe");
        let config = parse(&config).unwrap();
        assert_eq!((config.architecture, config.rope_dims), (Architecture::Dense, 256));
        assert_eq!((config.experts, config.experts_used), (0, 0));
    }

    #[test]
    fn a_router_has_several_names_which_agree() {
        let router = |config: &Value| parse(config).unwrap().router;
        for name in ["attn_router", "attention_router", "attention"] {
            assert_eq!(router(&with("moe_config.router_type", json!(name))), RouterKind::Attention);
        }
        for key in ["moe_config.router_type", "moe_router_type", "router_type"] {
            assert_eq!(router(&with(key, json!("linear"))), RouterKind::Linear);
        }
        let mut config = with("moe_config.router_type", json!("linear"));
        config["router_type"] = json!("attn_router");
        assert!(message(&config).contains("the linear router"));
        config["router_type"] = json!("linear");
        config["moe_router_type"] = json!("attention");
        assert!(message(&config).contains("moe_router_type"));
        assert!(message(&with("router_type", json!(1))).contains("router_type"));
    }

    #[test]
    fn rotary_percent_is_a_share_of_the_head() {
        assert_eq!(parse(&with("rotary_percent", json!(0.25))).unwrap().rope_dims, 64);
        assert_eq!(parse(&with("rotary_percent", json!(1))).unwrap().rope_dims, 256);
        assert!(message(&with("rotary_percent", json!(1.5))).contains("rotary_percent"));
    }

    #[test]
    fn null_is_absent_and_defaults_are_those_of_the_reference() {
        let mut config = with("attention_projection_size", Value::Null);
        config["rms_norm_eps"] = Value::Null;
        let config = parse(&config).unwrap();
        assert_eq!((config.projection, config.rope_dims, config.rms_eps), (2048, 128, 1e-6));
    }

    #[test]
    fn a_wrong_type_is_an_error_that_names_the_key() {
        for (key, value) in [
            ("hidden_size", json!("2048")),
            ("num_hidden_layers", json!(24.5)),
            ("vocab_size", json!(-1)),
            ("rms_norm_eps", json!("tiny")),
            ("rotary_base", json!([])),
            ("use_moe", json!(1)),
            ("moe_config", json!(32)),
            ("moe_config.moe_top_k", json!({})),
            ("moe_config.norm_topk_prob", json!("yes")),
            ("architectures", json!("YuanForCausalLM")),
            ("hidden_act", json!(3)),
        ] {
            assert!(message(&with(key, value)).contains(key), "{key}");
        }
    }

    #[test]
    fn a_missing_size_is_an_error_that_names_it() {
        for key in [
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
        ] {
            assert!(message(&without(key)).contains(key), "{key}");
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        for (key, value) in [
            ("num_attention_heads", json!(0)),
            ("hidden_size", json!(u64::MAX)),
            ("attention_projection_size", json!(4097)),
            ("moe_config.moe_top_k", json!(33)),
            ("rms_norm_eps", json!(0)),
            ("rotary_base", json!(0.5)),
            ("head_dim", json!(u64::MAX)),
        ] {
            assert!(matches!(parse(&with(key, value)), Err(Error::BadFile { .. })), "{key}");
        }
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for (key, value) in [
            ("architectures", json!(["LlamaForCausalLM"])),
            ("model_type", json!("llama")),
            ("hidden_act", json!("gelu")),
            ("moe_config.gated_linear_unit", json!(false)),
            ("num_key_value_heads", json!(4)),
            ("num_shared_experts", json!(1)),
            ("moe_config.router_type", json!("topk_router")),
            ("use_shareqk", json!(true)),
            ("rope_scaling", json!({ "type": "yarn" })),
            ("rope_precision", json!("f64")),
            ("quantization_config", json!({ "quant_method": "awq", "bits": 4 })),
        ] {
            let Err(Error::Unsupported { what, remedy, .. }) = parse(&with(key, value.clone())) else {
                panic!("{key} is accepted");
            };
            let value = value.as_array().map_or(&value, |list| &list[0]);
            let named = value.as_str().is_some_and(|v| what.contains(v));
            let key = key.trim_start_matches("moe_config.");
            assert!(named || what.contains(key) || what.contains("awq"), "{what}");
            assert!(!remedy.is_empty());
        }
        assert!(matches!(parse(&json!({})), Err(Error::Unsupported { .. })));
    }

    #[test]
    fn text_that_is_no_object_is_an_error_with_its_line() {
        for text in ["", "[]", "{\n  \"a\": }", "\u{FEFF}{}"] {
            let e = parse_config(text, Path::new("config.json")).unwrap_err().to_string();
            assert!(e.contains("line"), "{e}");
        }
    }
}
