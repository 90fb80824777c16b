//! What a config may ask for and this runtime does not do, refused by name.

use std::path::Path;

use super::{family::Description, json::Object};
use crate::{
    config::RouterKind,
    error::{Error, Result},
};

const FAMILIES: &str = "this runtime runs Yuan2.0-M32, Yuan2.0-2B (YuanForCausalLM) and the text model of Yuan 3.0 (YuanVLChatModel)";

const BUILT: &str = "the runtime computes what the published models of Yuan 2.0 and Yuan 3.0 compute";

/// A config that has its text model apart is one of Yuan 3.0 with its vision tower, and only such.
pub(super) fn check_whole(whole: &Object<'_>, has_text_model: bool, path: &Path) -> Result<()> {
    const NAME: &str = "YuanVLChatModel";
    let architectures = whole.texts("architectures")?;
    let model_type = whole.text("model_type")?;
    let known = architectures.contains(&NAME) || (architectures.is_empty() && model_type == Some("yuanvl"));
    match (has_text_model, known) {
        (true, false) => {
            let name = architectures.first().copied().or(model_type).unwrap_or("without a name");
            Err(unsupported(path, format!("the architecture {name} with an llm_config"), FAMILIES))
        }
        (true, true) if model_type.is_some_and(|name| name != "yuanvl") => {
            Err(unsupported(path, format!("the model type {}", model_type.unwrap_or_default()), FAMILIES))
        }
        (false, true) => {
            Err(whole.wrong("llm_config", format!("it is missing, and the architecture is {NAME}")))
        }
        _ => Ok(()),
    }
}

/// The text model is one of a Yuan.
pub(super) fn check_architecture(top: &Object<'_>, path: &Path) -> Result<()> {
    let architectures = top.texts("architectures")?;
    let model_type = top.text("model_type")?;
    if !architectures.is_empty() && !architectures.contains(&"YuanForCausalLM") {
        return Err(unsupported(path, format!("the architecture {}", architectures.join(", ")), FAMILIES));
    }
    match model_type {
        Some(name) if !["yuan", "yuan2", "yuan2_moe"].contains(&name) => {
            Err(unsupported(path, format!("the model type {name}"), FAMILIES))
        }
        None if architectures.is_empty() => {
            Err(unsupported(path, "a config without architectures and model_type", FAMILIES))
        }
        _ => Ok(()),
    }
}

/// Keys that no family may have with another value.
const FLAGS: [(&str, bool); 7] = [
    ("gated_linear_unit", true),
    ("causal_mask", true),
    ("use_shareqk", false),
    ("use_bias", false),
    ("attention_bias", false),
    ("mlp_bias", false),
    ("rotary_interleaved", false),
];
/// Keys that must be null or missing in every family.
const NOTHING: [&str; 3] = ["rope_scaling", "sliding_window", "per_layer_experts_blocks"];

/// The keys that every family, or this one, allows one value.
pub(super) fn check_values(object: &Object<'_>, path: &Path, about: &Description) -> Result<()> {
    let no = |key: &str, value: &str| unsupported(path, format!("{key} {value}"), BUILT);
    for (key, built) in FLAGS.iter().chain(about.flags) {
        if object.flag(key)?.is_some_and(|value| value != *built) {
            return Err(no(key, if *built { "false" } else { "true" }));
        }
    }
    for (key, built) in about.numbers {
        if let Some(value) = object.number(key)?.filter(|value| value != built) {
            return Err(no(key, &value.to_string()));
        }
    }
    match NOTHING.iter().chain(about.nothing).find(|key| object.get(key).is_some()) {
        Some(key) => Err(no(key, "(anything but null)")),
        None => Ok(()),
    }
}

/// Refuses what changes the math: any of these keys in any place with any value but the one that is built.
pub(super) fn check_features(object: &Object<'_>, path: &Path) -> Result<()> {
    let no = |key: &str, value: &str| unsupported(path, format!("{key} {value}"), BUILT);

    if let Some(act) = object.text("hidden_act")?.filter(|act| *act != "silu") {
        return Err(no("hidden_act", act));
    }
    for key in [
        "num_shared_experts",
        "n_shared_experts",
        "moe_num_shared_experts",
        "shared_expert_intermediate_size",
    ] {
        if let Some(n) = object.size(key)?.filter(|n| *n > 0) {
            return Err(no(key, &n.to_string()));
        }
    }
    Ok(())
}

/// The router that a config names, by keys in any of these objects; where there are several they must agree.
pub(super) fn router(objects: [Option<&Object<'_>>; 2], path: &Path) -> Result<Option<RouterKind>> {
    const KEYS: [&str; 2] = ["router_type", "moe_router_type"];
    let mut found: Option<RouterKind> = None;
    let places = objects.into_iter().flatten().flat_map(|object| KEYS.map(|key| (object, key)));
    for (object, key) in places {
        let Some(name) = object.text(key)? else { continue };
        // The first and the last are what the authors' converter writes.
        let kind = match name {
            "attn_router" | "attention_router" | "attention" => RouterKind::Attention,
            "linear" => RouterKind::Linear,
            _ => return Err(unsupported(path, format!("{key} {name}"), "it is attn_router or linear")),
        };
        if let Some(other) = found.filter(|other| *other != kind) {
            let problem = format!("it is {name}, but another key has the {} router", other.name());
            return Err(object.wrong(key, problem));
        }
        found = Some(kind);
    }
    Ok(found)
}

/// The error for it.
pub(super) fn unsupported(path: &Path, what: impl Into<String>, remedy: &str) -> Error {
    Error::Unsupported { path: path.into(), what: what.into(), remedy: remedy.to_owned() }
}
