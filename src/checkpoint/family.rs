//! What differs between the families of models: the names of their tensors, the keys and defaults of their configs, and what their
//! tokenizers add. Everything else in this room is the same for all of them.

use crate::{
    config::{Family, RopePrecision},
    vocab::{SPECIAL_OF_YUAN3, numbered},
};

/// A family, as its checkpoints and the authors' code have it.
#[derive(Debug)]
pub(super) struct Description {
    /// What its text model's tensors have before their names in a folder that has more than the text model.
    pub prefix: Option<&'static str>,
    /// Beginnings of names of tensors that are no part of the text model.
    pub beside: &'static [&'static str],
    /// Parts of names of tensors that can be computed, and are not read.
    pub computed: &'static [&'static str],
    /// Tensors of a layer that have the rows of several others, one after another, or another name for one: its name, and those of its parts in Yuan 2.0.
    pub fused: &'static [(&'static str, &'static [&'static str])],
    /// Name in its layer of the matrix `w1` or `w2` of an expert.
    pub expert: fn(&str, usize) -> String,
    /// Whether the convolutions of the filter may have no biases.
    pub may_lack_bias: bool,

    /// Keys of the config without a default, since the authors' programs have several or none.
    pub required: &'static [&'static str],
    /// Keys of the rotary base; where there are several they must agree.
    pub rope_base_keys: &'static [&'static str],
    /// The rotary base where the config names none.
    pub rope_base: f32,
    /// The rotary convention where the config names none.
    pub rope_precision: RopePrecision,
    /// Whether the head is never the embedding, and the weights of the chosen experts always add up to 1, whatever the config says of it.
    pub fixed: bool,
    /// Keys of the config that may have one value only, each with it, beside those that no family may have otherwise.
    pub flags: &'static [(&'static str, bool)],
    /// As `flags`.
    pub numbers: &'static [(&'static str, f64)],
    /// Keys that must be null or missing.
    pub nothing: &'static [&'static str],

    /// Strings that its tokenizer adds behind the pieces, in their order, except those that are pieces already.
    pub added: fn() -> Vec<String>,
}

impl Description {
    /// The fused tensor that has `name`, which part of it that is, and of how many.
    pub fn fused(&self, name: &str) -> Option<(&'static str, usize, usize)> {
        self.fused.iter().find_map(|(tensor, parts)| {
            let part = parts.iter().position(|part| *part == name)?;
            Some((*tensor, part, parts.len()))
        })
    }

    /// The name without the prefix that it has in a folder with more than the text model.
    pub fn text_name<'n>(&self, name: &'n str) -> &'n str {
        self.prefix.and_then(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
    }

    /// Whether a tensor is no part of the text model.
    pub fn is_beside(&self, name: &str) -> bool {
        self.beside.iter().any(|beginning| name.starts_with(beginning))
    }

    /// Whether a tensor is not read, since it can be computed.
    pub fn is_computed(&self, name: &str) -> bool {
        self.computed.iter().any(|part| name.contains(part))
    }
}

/// The description of `family`.
pub(super) const fn describe(family: Family) -> &'static Description {
    match family {
        Family::Yuan2 => &YUAN2,
        Family::Yuan3 => &YUAN3,
    }
}

/// The family whose checkpoints have tensors of these names, where that can be told.
pub(super) fn of_names<'n>(names: impl IntoIterator<Item = &'n str>) -> Option<Family> {
    names.into_iter().find_map(|name| {
        let fused = |(tensor, _): &(&str, &[&str])| name.ends_with(tensor);
        if YUAN3.fused.iter().any(fused) {
            return Some(Family::Yuan3);
        }
        let parts = |(_, parts): &(&str, &[&str])| parts.iter().any(|part| name.ends_with(part));
        YUAN3.fused.iter().any(parts).then_some(Family::Yuan2)
    })
}

static YUAN2: Description = Description {
    prefix: None,
    beside: &[],
    computed: &[".rotary_emb.inv_freq"],
    fused: &[],
    expert: |matrix, expert| format!("mlp.experts.{expert}.{matrix}.weight"),
    may_lack_bias: false,
    required: &[],
    rope_base_keys: &["rotary_base", "rope_theta"],
    // That of the authors' model file.
    rope_base: 10_000.0,
    rope_precision: RopePrecision::Mixed,
    fixed: false,
    flags: &[("use_yarn", false)],
    numbers: &[],
    nothing: &[],
    added: || ADDED.map(str::to_owned).to_vec(),
};

static YUAN3: Description = Description {
    prefix: Some("language_model."),
    beside: &["vision_model.", "imagemlp.", "imagemlp_layernorm."],
    computed: &["rotary_pos_emb", ".rotary_emb.inv_freq"],
    fused: &[
        ("self_attn.get_query_key.weight", &["self_attn.q_proj.weight", "self_attn.k_proj.weight"]),
        (
            "mlp.router.query_key_value.weight",
            &["mlp.gate.query.weight", "mlp.gate.key.weight", "mlp.gate.value.weight"],
        ),
        ("mlp.router.weight", &["mlp.gate.weight"]),
    ],
    expert: |matrix, expert| format!("mlp.experts.{matrix}.{expert}.weight"),
    may_lack_bias: true,
    // The classes of the authors' training, of their serving and of their converter have different defaults.
    required: &["rms_norm_eps", "rotary_percent", "router_type", "attention_projection_size"],
    // Their training class has a `rope_theta` that it never uses.
    rope_base_keys: &["rotary_base"],
    // That of the authors' serving code.
    rope_base: 500_000.0,
    rope_precision: RopePrecision::F32,
    // One of their config classes says that the head is tied, and both tensors are stored; their serving code divides by the sum in any case.
    fixed: true,
    flags: &[("use_lf_gate", true), ("use_rope_scaling", false), ("use_moe", true)],
    numbers: &[
        ("lf_conv2d_group", 1.0),
        ("lf_conv2d_num_pad", 0.0),
        ("num_attention_router_heads", 1.0),
        ("logit_scale", 1.0),
    ],
    nothing: &["seq_len_interpolation_factor"],
    added: || {
        let (before, behind) = SPECIAL_OF_YUAN3.split_at(BEFORE_NUMBERED);
        let before = ADDED.iter().chain(before).map(|text| (*text).to_owned());
        before.chain(numbered()).chain(behind.iter().map(|text| (*text).to_owned())).collect()
    },
};

/// What the tokenizers of both families add first.
const ADDED: [&str; 5] = ["<mask>", "<predict>", "<FIM_SUFFIX>", "<FIM_PREFIX>", "<FIM_MIDDLE>"];
/// How many of [`SPECIAL_OF_YUAN3`] stand before the numbered strings.
const BEFORE_NUMBERED: usize = 16;
