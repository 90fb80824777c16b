//! The shape of a model: what the config of a checkpoint and the metadata of a container both say.

use serde::{Deserialize, Serialize};

use crate::limits::{MOST_CONTEXT, MOST_EXPERTS, MOST_EXPERTS_IN_ALL, MOST_LAYERS, MOST_VOCAB};

/// A family of models: how its checkpoints name things, what its tokenizer adds, what its conversations look like. What is computed is
/// the same for all of them, and [`ModelConfig`] has the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Yuan2.0-M32 and Yuan2.0-2B.
    #[default]
    Yuan2,
    /// Yuan3.0 Flash.
    Yuan3,
}

impl Family {
    /// The spelling of `yuan.family`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Yuan2 => "yuan2",
            Self::Yuan3 => "yuan3",
        }
    }

    /// The inverse of [`Family::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Yuan2, Self::Yuan3].into_iter().find(|family| family.name() == name)
    }
}

/// How the experts of a token are chosen (MODEL.md, "Router").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouterKind {
    /// Yuan's Attention Router: three projections, and attention among the experts.
    #[default]
    Attention,
    /// The classical router, which that one has replaced: one projection.
    Linear,
}

impl RouterKind {
    /// The spelling of `yuan.router` and of the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Linear => "linear",
        }
    }

    /// The inverse of [`RouterKind::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Attention, Self::Linear].into_iter().find(|kind| kind.name() == name)
    }

    /// Projections of a token, each [E, H].
    pub const fn projections(self) -> usize {
        match self {
            Self::Attention => 3,
            Self::Linear => 1,
        }
    }
}

/// The two architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// Yuan2.0-M32 and Yuan 3.0: mixture of experts, GGUF architecture `yuan2_moe`.
    Moe,
    /// Yuan2.0-2B: one dense MLP a layer, GGUF architecture `yuan2`.
    Dense,
}

/// How the rotary embedding rounds (MODEL.md, "Rotary embedding"). Logits differ by up to 8 between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RopePrecision {
    /// Inverse frequencies rounded to bf16, all else f32: how the authors trained and evaluated.
    #[default]
    Mixed,
    /// Everything in f32: vLLM and the authors' llama.cpp fork.
    F32,
    /// Frequencies, positions, angles and tables in bf16: the Hugging Face reference file.
    HfBf16,
}

impl RopePrecision {
    /// The spelling of the command line and of `yuan.rope.precision`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mixed => "mixed",
            Self::F32 => "f32",
            Self::HfBf16 => "hfbf16",
        }
    }

    /// The inverse of [`RopePrecision::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Mixed, Self::F32, Self::HfBf16].into_iter().find(|p| p.name() == name)
    }
}

/// A longer context by YaRN, in the form of Yuan 3.0 (MODEL.md, "Rotary embedding").
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Yarn {
    /// How many times as long the context becomes.
    pub factor: f32,
    /// The context of the training before it.
    pub original: usize,
}

/// Everything that the forward pass needs to know beside the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Which family it belongs to.
    #[serde(default)]
    pub family: Family,
    /// Which of the two architectures.
    pub architecture: Architecture,
    /// Rows of the embedding and of the head (V).
    pub vocab: usize,
    /// Width of the residual stream (H).
    pub hidden: usize,
    /// Decoder layers (L).
    pub layers: usize,
    /// Attention heads (n).
    pub heads: usize,
    /// Rows of q, k and v: heads x head dim (P).
    pub projection: usize,
    /// Neurons of one expert, or of the dense MLP (F).
    pub ffn: usize,
    /// Experts a layer (E); 0 in a dense model.
    pub experts: usize,
    /// Experts that a token uses (k); 0 in a dense model.
    pub experts_used: usize,
    /// How they are chosen.
    #[serde(default)]
    pub router: RouterKind,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub norm_topk: bool,
    /// Epsilon of the RMS norms (the filter's own norm always uses 1e-6).
    pub rms_eps: f32,
    /// Base of the rotary frequencies, those of YaRN included.
    pub rope_base: f32,
    /// Leading dims of each head that rotate.
    pub rope_dims: usize,
    /// Rounding convention of the rotary embedding.
    pub rope_precision: RopePrecision,
    /// How rotary frequencies are stretched for a longer context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yarn: Option<Yarn>,
    /// Positions that the model was made for.
    pub context: usize,
    /// Whether the head is the embedding.
    pub tied_embeddings: bool,
}

impl ModelConfig {
    /// Width of one attention head.
    pub const fn head_dim(&self) -> usize {
        self.projection / self.heads
    }

    /// What GGUF files call the architecture: by the names of the authors' converter, whose runtime computes the same from the same keys. It knows nothing
    /// of YaRN and of linear routers, so a model with either has a name that it refuses.
    pub const fn architecture_name(&self) -> &'static str {
        match (self.architecture, self.yarn, self.router) {
            (Architecture::Moe, None, RouterKind::Attention) => "yuan2_moe",
            (Architecture::Moe, ..) => "yuan3_moe",
            (Architecture::Dense, ..) => "yuan2",
        }
    }

    /// The same model under another rotary convention.
    ///
    /// # Errors
    /// For Yuan 3.0 under one that it never had.
    pub fn with_rope(self, rope_precision: RopePrecision) -> Result<Self, String> {
        let config = Self { rope_precision, ..self };
        config.check_rope().map(|()| config)
    }

    fn check_rope(&self) -> Result<(), String> {
        match self.rope_precision {
            RopePrecision::F32 => Ok(()),
            other if self.family == Family::Yuan3 => Err(format!(
                "the rotary convention {} is none of Yuan 3.0, which was trained with f32",
                other.name()
            )),
            _ if self.yarn.is_some() => Err("YaRN is built for the rotary convention f32 only".into()),
            _ => Ok(()),
        }
    }

    /// Checks every size against its limits and against the others, so that code behind it may divide and
    /// multiply them freely. The error names the first field that is wrong.
    pub fn validate(&self) -> Result<(), String> {
        let within = |name: &str, value: usize, max: usize| match value {
            0 => Err(format!("{name} is 0")),
            v if v > max => Err(format!("{name} is {v}, more than {max}")),
            _ => Ok(()),
        };
        within("vocab_size", self.vocab, MOST_VOCAB)?;
        within("hidden_size", self.hidden, 1 << 16)?;
        within("num_hidden_layers", self.layers, MOST_LAYERS)?;
        within("num_attention_heads", self.heads, 1 << 10)?;
        within("attention_projection_size", self.projection, 1 << 17)?;
        within("ffn_hidden_size", self.ffn, 1 << 18)?;
        within("max_position_embeddings", self.context, MOST_CONTEXT)?;
        within("rotary dims", self.rope_dims, 1 << 16)?;
        if self.architecture == Architecture::Moe {
            within("moe_num_experts", self.experts, MOST_EXPERTS)?;
            within("moe_top_k", self.experts_used, self.experts)?;
            within("experts in all layers", self.layers * self.experts, MOST_EXPERTS_IN_ALL)?;
        } else if self.experts != 0 || self.experts_used != 0 {
            return Err("a dense model has no experts".into());
        } else if self.router != RouterKind::default() {
            return Err(format!("a dense model has no router, and so no {} one", self.router.name()));
        }
        if !self.projection.is_multiple_of(self.heads) {
            return Err(format!("{} heads do not divide the projection of {}", self.heads, self.projection));
        }
        if !self.rope_dims.is_multiple_of(2) || self.rope_dims > self.head_dim() {
            return Err(format!("{} rotary dims do not fit heads of {}", self.rope_dims, self.head_dim()));
        }
        if !self.hidden.is_multiple_of(2) {
            return Err(format!("hidden_size {} is odd: the filter halves it", self.hidden));
        }
        if !(self.rms_eps > 0.0 && self.rms_eps < 1.0) {
            return Err(format!("rms_norm_eps is {}", self.rms_eps));
        }
        if !(self.rope_base >= 1.0 && self.rope_base.is_finite()) {
            return Err(format!("rotary_base is {}", self.rope_base));
        }
        if let Some(Yarn { factor, original }) = self.yarn {
            within("max_position_embeddings before YaRN", original, MOST_CONTEXT)?;
            if !(factor >= 1.0 && factor.is_finite()) {
                return Err(format!("yarn_scale_factor is {factor}"));
            }
            if self.rope_base <= 1.0 {
                return Err(format!("rotary_base is {}, which has no YaRN", self.rope_base));
            }
            if self.architecture == Architecture::Dense {
                return Err("a dense model has no YaRN".into());
            }
        }
        if self.family == Family::Yuan3 && (self.architecture == Architecture::Dense || self.tied_embeddings)
        {
            return Err("a model of Yuan 3.0 has experts and a head of its own".into());
        }
        self.check_rope()
    }
}
