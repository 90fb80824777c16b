//! The shape of a model and its vocabulary as GGUF metadata, in the keys of the authors' llama.cpp fork and our own.

use super::{
    gguf::TensorDesc,
    value::{Metadata, Value},
};
use crate::{
    config::{Architecture, Family, ModelConfig, RopePrecision, RouterKind, Yarn},
    vocab::{Piece, PieceKind, Vocab},
};

/// Name of our layout.
const LAYOUT: &str = "neuron-tile";
/// Version of our layout, frozen by the benchmarks in SPEED.md. 0 was the draft before.
pub const LAYOUT_VERSION: u32 = 1;

/// What a file says of its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A standard GGUF file: rows, and convolutions with interleaved taps.
    Standard,
    /// Our own: panels, tiles, convolutions with split taps.
    Tiles,
}

/// The architecture that a file names.
pub fn read_architecture(metadata: &Metadata) -> Result<Architecture, String> {
    match metadata.text("general.architecture")? {
        Some("yuan2_moe" | "yuan3_moe") => Ok(Architecture::Moe),
        Some("yuan2") => Ok(Architecture::Dense),
        Some(other) => Err(format!("the architecture {other}")),
        None => Err("a file without general.architecture".into()),
    }
}

/// The family that a file names; files without the key are of Yuan 2.0.
pub fn read_family(metadata: &Metadata) -> Result<Family, String> {
    match metadata.text("yuan.family")? {
        None => Ok(Family::default()),
        Some(name) => Family::from_name(name).ok_or_else(|| format!("the family {name}")),
    }
}

/// Which layout a file has. `Err` names a version that is not read.
pub fn read_layout(metadata: &Metadata) -> Result<Layout, String> {
    match metadata.text("yuan.layout")? {
        None => return Ok(Layout::Standard),
        Some(LAYOUT) => {}
        Some(other) => return Err(format!("the layout {other}")),
    }
    match metadata.number("yuan.layout.version")? {
        Some(version) if version == u64::from(LAYOUT_VERSION) => {}
        Some(version) => return Err(format!("version {version} of the layout {LAYOUT}")),
        None => return Err(format!("the layout {LAYOUT} without a version")),
    }
    Ok(Layout::Tiles)
}

/// The shape of the model. What the authors' converter does not write (the projection, the neurons of an expert, whether the head
/// is the embedding) is read off the tensors; its files are run with f32 rotary tables, as the fork does.
pub fn read_config(metadata: &Metadata, tensors: &[TensorDesc]) -> Result<ModelConfig, String> {
    let architecture = read_architecture(metadata)?;
    // The name was read just now.
    let prefix = metadata.text("general.architecture")?.unwrap_or_default();
    let key = |name: &str| format!("{prefix}.{name}");
    let size = |key: &str| -> Result<Option<usize>, String> {
        let number = metadata.number(key)?;
        number.map(|n| usize::try_from(n).map_err(|_| format!("{key} is too large"))).transpose()
    };
    let need = |name: &str| size(&key(name))?.ok_or_else(|| format!("the key {} is missing", key(name)));
    let dim = |tensor: &str, i: usize| -> Result<usize, String> {
        let desc = tensors
            .iter()
            .find(|t| t.name == tensor)
            .ok_or_else(|| format!("there is no tensor {tensor}"))?;
        let dim = desc.dims.get(i).ok_or_else(|| format!("tensor {tensor} has no dim {i}"))?;
        usize::try_from(*dim).map_err(|_| format!("tensor {tensor} is too large"))
    };

    let (hidden, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let moe = architecture == Architecture::Moe;
    let ffn = match size(&key("expert_feed_forward_length"))? {
        Some(ffn) => ffn,
        None if moe => dim("blk.0.ffn_down.0.weight", 0)?,
        None => dim("blk.0.ffn_down.weight", 0)?,
    };
    if heads == 0 {
        return Err("there are no attention heads".into());
    }
    if size(&key("attention.head_count_kv"))?.is_some_and(|kv| kv != heads) {
        return Err(
            "grouped queries are not built: attention.head_count_kv differs from attention.head_count".into(),
        );
    }
    let precision = match metadata.text("yuan.rope.precision")? {
        None => RopePrecision::F32,
        Some(name) => RopePrecision::from_name(name)
            .ok_or_else(|| format!("yuan.rope.precision {name} is not known"))?,
    };
    let config = ModelConfig {
        family: read_family(metadata)?,
        architecture,
        vocab: dim("token_embd.weight", 1)?,
        hidden,
        layers: need("block_count")?,
        heads,
        projection: match size("yuan.attention.projection")? {
            Some(projection) => projection,
            None => dim("blk.0.attn_q.weight", 1)?,
        },
        ffn,
        experts: if moe { need("expert_count")? } else { 0 },
        experts_used: if moe { need("expert_used_count")? } else { 0 },
        router: read_router(metadata)?,
        norm_topk: metadata.flag("yuan.norm_topk_prob")?.unwrap_or(true),
        rms_eps: metadata.float(&key("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-6),
        rope_base: metadata.float(&key("rope.freq_base"))?.unwrap_or(10_000.0),
        rope_dims: size(&key("rope.dimension_count"))?.unwrap_or(hidden / heads),
        rope_precision: precision,
        yarn: read_yarn(metadata)?,
        context: need("context_length")?,
        tied_embeddings: !tensors.iter().any(|t| t.name == "output.weight"),
    };
    config.validate()?;
    if config.architecture_name() != prefix {
        return Err(format!(
            "the architecture {prefix} does not fit what yuan.router and yuan.rope.yarn.factor say"
        ));
    }
    Ok(config)
}

/// Files without the key have the attention router.
fn read_router(metadata: &Metadata) -> Result<RouterKind, String> {
    match metadata.text("yuan.router")? {
        None => Ok(RouterKind::default()),
        Some(name) => RouterKind::from_name(name).ok_or_else(|| format!("the router {name} is not known")),
    }
}

fn read_yarn(metadata: &Metadata) -> Result<Option<Yarn>, String> {
    const ORIGINAL: &str = "yuan.rope.yarn.original_context";
    let original = metadata.number(ORIGINAL)?.map(usize::try_from).transpose();
    match (
        metadata.float("yuan.rope.yarn.factor")?,
        original.map_err(|_| format!("{ORIGINAL} is too large"))?,
    ) {
        (None, None) => Ok(None),
        (Some(factor), Some(original)) => Ok(Some(Yarn { factor, original })),
        _ => Err("yuan.rope.yarn.factor and .original_context need each other".into()),
    }
}

/// The keys that say what [`read_config`] and [`read_layout`] read.
pub fn write_config(config: &ModelConfig, layout: Layout) -> Metadata {
    let prefix = config.architecture_name();
    let mut m = Metadata::default();
    let number = |n: usize| Value::U32(n as u32);
    m.set("general.architecture", Value::String(prefix.into()));
    m.set("general.name", Value::String(prefix.into()));
    m.set("general.quantization_version", Value::U32(2));
    let mut set = |name: &str, value| m.set(&format!("{prefix}.{name}"), value);
    set("context_length", number(config.context));
    set("embedding_length", number(config.hidden));
    set("block_count", number(config.layers));
    set("feed_forward_length", number(config.ffn));
    set("rope.dimension_count", number(config.rope_dims));
    set("attention.head_count", number(config.heads));
    set("attention.head_count_kv", number(config.heads));
    if config.architecture == Architecture::Moe {
        set("expert_count", number(config.experts));
        set("expert_used_count", number(config.experts_used));
    }
    set("expert_feed_forward_length", number(config.ffn));
    set("attention.layer_norm_rms_epsilon", Value::F32(config.rms_eps));
    set("rope.freq_base", Value::F32(config.rope_base));
    if config.family != Family::default() {
        m.set("yuan.family", Value::String(config.family.name().into()));
    }
    m.set("yuan.attention.projection", number(config.projection));
    if config.router != RouterKind::default() {
        m.set("yuan.router", Value::String(config.router.name().into()));
    }
    m.set("yuan.norm_topk_prob", Value::Bool(config.norm_topk));
    m.set("yuan.rope.precision", Value::String(config.rope_precision.name().into()));
    if let Some(yarn) = config.yarn {
        m.set("yuan.rope.yarn.factor", Value::F32(yarn.factor));
        m.set("yuan.rope.yarn.original_context", number(yarn.original));
    }
    if layout == Layout::Tiles {
        m.set("yuan.layout", Value::String(LAYOUT.into()));
        m.set("yuan.layout.version", Value::U32(LAYOUT_VERSION));
        m.set("yuan.arithmetic", Value::U32(yuan_kernels::ARITHMETIC));
    }
    m
}

/// The vocabulary. Files of the authors' converter type `<eod>` and `<sep>` as ordinary pieces; they are found by their text.
pub fn read_vocab(metadata: &Metadata) -> Result<Vocab, String> {
    let tokens =
        metadata.texts("tokenizer.ggml.tokens")?.ok_or("the key tokenizer.ggml.tokens is missing")?;
    let scores = match metadata.get("tokenizer.ggml.scores") {
        Some(Value::F32s(scores)) if scores.len() == tokens.len() => scores,
        _ => return Err("tokenizer.ggml.scores does not fit the tokens".into()),
    };
    let kinds = match metadata.get("tokenizer.ggml.token_type") {
        Some(Value::I32s(kinds)) if kinds.len() == tokens.len() => kinds,
        _ => return Err("tokenizer.ggml.token_type does not fit the tokens".into()),
    };
    let pieces = tokens.iter().zip(scores).zip(kinds).map(|((text, &score), &kind)| {
        let known = u64::try_from(kind).ok().and_then(PieceKind::from_number);
        let kind = known.ok_or_else(|| format!("token {text} has the type {kind}"))?;
        Ok::<_, String>(Piece { text: text.clone(), score, kind })
    });
    let mut vocab = Vocab::of(read_family(metadata)?, pieces.collect::<Result<_, _>>()?);
    if let (Some(special), Some(Value::U32s(ids))) =
        (metadata.texts("yuan.tokenizer.special.tokens")?, metadata.get("yuan.tokenizer.special.ids"))
    {
        if special.len() != ids.len() {
            return Err("yuan.tokenizer.special.tokens and .ids differ in length".into());
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= tokens.len()) {
            return Err(format!("the special token {id} is outside the vocabulary"));
        }
        vocab.special = special.iter().cloned().zip(ids.iter().copied()).collect();
    }
    if let Some(template) = metadata.text("tokenizer.chat_template")? {
        vocab.chat_template = Some(template.into());
    }
    Ok(vocab)
}

/// Adds the keys that [`read_vocab`] reads.
pub fn write_vocab(vocab: &Vocab, m: &mut Metadata) {
    let mut set = |name: &str, value| m.set(&format!("tokenizer.ggml.{name}"), value);
    set("model", Value::String("llama".into()));
    set("tokens", Value::Strings(vocab.pieces.iter().map(|p| p.text.clone()).collect()));
    set("scores", Value::F32s(vocab.pieces.iter().map(|p| p.score).collect()));
    set("token_type", Value::I32s(vocab.pieces.iter().map(|p| p.kind as i32).collect()));
    for (key, id) in [
        ("bos_token_id", vocab.eod),
        ("eos_token_id", vocab.eod),
        ("padding_token_id", vocab.pad),
        // The authors' spelling.
        ("seperator_token_id", vocab.sep),
    ] {
        if let Some(id) = id {
            set(key, Value::U32(id));
        }
    }
    set("add_bos_token", Value::Bool(false));
    set("add_eos_token", Value::Bool(false));
    let (special, ids) = vocab.special.iter().cloned().unzip();
    m.set("yuan.tokenizer.special.tokens", Value::Strings(special));
    m.set("yuan.tokenizer.special.ids", Value::U32s(ids));
    if let Some(template) = &vocab.chat_template {
        m.set("tokenizer.chat_template", Value::String(template.clone()));
    }
}
