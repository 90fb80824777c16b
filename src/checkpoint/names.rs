//! The table of tensors: for every weight its Hugging Face name, its GGUF name, its shape and its role.
//!
//! The GGUF names are those of the authors' converter. Order is the order of use: embedding, layers, final norm,
//! head; a container is laid out in it.

use super::family::describe;
use crate::config::{Architecture, ModelConfig, RouterKind};

/// What a tensor is for; decides the type that it is stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Token embedding [V, H].
    Embedding,
    /// Output head [V, H].
    Head,
    /// Weight of an RMS norm \[H\].
    Norm,
    /// q, k, v [P, H] or output [H, P] projection of the attention.
    Attention,
    /// Two-tap convolution of the localized filter [out, in, 2, 1].
    Conv,
    /// Its bias \[out\].
    ConvBias,
    /// Query, key or value projection of the attention router, or the one of a linear router [E, H].
    Router,
    /// gate, up [F, H] or down [H, F] of a dense MLP.
    Mlp,
    /// An expert's gate rows over its up rows [2F, H].
    ExpertIn {
        /// Decoder layer.
        layer: usize,
        /// Expert within the layer.
        expert: usize,
    },
    /// An expert's down projection [H, F].
    ExpertOut {
        /// Decoder layer.
        layer: usize,
        /// Expert within the layer.
        expert: usize,
    },
}

/// One tensor that a model of some config must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name of the weights for the code that reads them: that of Yuan 2.0's checkpoints, whatever the family.
    pub hf: String,
    /// Name in a GGUF file as the authors' converter writes it.
    pub gguf: String,
    /// Shape in row-major order, outermost first, as PyTorch prints it.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
    /// Where it lies in a checkpoint.
    pub source: Source,
}

/// Where weights lie in a checkpoint of their family: a tensor of it, or some rows of one that has several fused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Name of the tensor.
    pub tensor: String,
    /// Its shape, outermost first.
    pub shape: Vec<usize>,
    /// The first of its rows that belongs to the weights; the others follow it.
    pub first_row: usize,
}

/// Every tensor that `config` asks for, in the order in which the forward pass uses them. Those that lie in one tensor of a checkpoint
/// stand side by side, in the order of its rows. A model with tied embeddings has no head.
pub fn tensors(config: &ModelConfig) -> Vec<TensorSpec> {
    let family = describe(config.family);
    let (h, p, f, v) = (config.hidden, config.projection, config.ffn, config.vocab);
    let mut all = Vec::new();
    let mut add = |hf: String, gguf: &str, shape: &[usize], role, source| {
        all.push(TensorSpec { hf, gguf: gguf.into(), shape: shape.to_vec(), role, source });
    };
    let whole =
        |tensor: &str, shape: &[usize]| Source { tensor: tensor.into(), shape: shape.to_vec(), first_row: 0 };

    let embedding = "model.embed_tokens.weight";
    add(embedding.into(), "token_embd.weight", &[v, h], Role::Embedding, whole(embedding, &[v, h]));
    for layer in 0..config.layers {
        let hf = |name: &str| format!("model.layers.{layer}.{name}");
        let gguf = |name: &str| format!("blk.{layer}.{name}");
        let mut local = |from: &str, to: &str, shape: &[usize], role| {
            let source = match family.fused(from) {
                Some((tensor, part, parts)) => {
                    let rows = [&[parts * shape[0]], &shape[1..]].concat();
                    Source { first_row: part * shape[0], ..whole(&hf(tensor), &rows) }
                }
                None => whole(&hf(from), shape),
            };
            add(hf(from), &gguf(to), shape, role, source);
        };

        local("input_layernorm.weight", "attn_norm.weight", &[h], Role::Norm);
        local("self_attn.lf_gate.conv1.weight", "conv1.weight", &[h / 2, h, 2, 1], Role::Conv);
        local("self_attn.lf_gate.conv1.bias", "conv1.bias", &[h / 2], Role::ConvBias);
        local("self_attn.lf_gate.conv2.weight", "conv2.weight", &[h, h / 2, 2, 1], Role::Conv);
        local("self_attn.lf_gate.conv2.bias", "conv2.bias", &[h], Role::ConvBias);
        local("self_attn.lf_gate.output_layernorm.weight", "lf_output_norm.weight", &[h], Role::Norm);
        local("self_attn.q_proj.weight", "attn_q.weight", &[p, h], Role::Attention);
        local("self_attn.k_proj.weight", "attn_k.weight", &[p, h], Role::Attention);
        local("self_attn.v_proj.weight", "attn_v.weight", &[p, h], Role::Attention);
        local("self_attn.o_proj.weight", "attn_output.weight", &[h, p], Role::Attention);
        local("post_attention_layernorm.weight", "ffn_norm.weight", &[h], Role::Norm);
        match config.architecture {
            Architecture::Dense => {
                local("mlp.gate_proj.weight", "ffn_gate.weight", &[f, h], Role::Mlp);
                local("mlp.up_proj.weight", "ffn_up.weight", &[f, h], Role::Mlp);
                local("mlp.down_proj.weight", "ffn_down.weight", &[h, f], Role::Mlp);
            }
            Architecture::Moe => {
                let e = config.experts;
                match config.router {
                    RouterKind::Attention => {
                        local("mlp.gate.query.weight", "mlp_attn_q.weight", &[e, h], Role::Router);
                        local("mlp.gate.key.weight", "mlp_attn_k.weight", &[e, h], Role::Router);
                        local("mlp.gate.value.weight", "mlp_attn_v.weight", &[e, h], Role::Router);
                    }
                    // The authors' converter to GGUF knows none: the name is llama.cpp's for routers of this form.
                    RouterKind::Linear => {
                        local("mlp.gate.weight", "ffn_gate_inp.weight", &[e, h], Role::Router);
                    }
                }
                for expert in 0..e {
                    let mut matrix = |w: &str, to: &str, shape: &[usize], role| {
                        let from = hf(&(family.expert)(w, expert));
                        let name = hf(&format!("mlp.experts.{expert}.{w}.weight"));
                        add(name, &gguf(&format!("{to}.{expert}.weight")), shape, role, whole(&from, shape));
                    };
                    matrix("w1", "ffn_gate", &[2 * f, h], Role::ExpertIn { layer, expert });
                    matrix("w2", "ffn_down", &[h, f], Role::ExpertOut { layer, expert });
                }
            }
        }
    }
    let norm = "model.norm.weight";
    add(norm.into(), "output_norm.weight", &[h], Role::Norm, whole(norm, &[h]));
    if !config.tied_embeddings {
        let head = "lm_head.weight";
        add(head.into(), "output.weight", &[v, h], Role::Head, whole(head, &[v, h]));
    }
    all
}

/// Under which name, and as which of the matrices of that name, a file of importances has what is known of a tensor's inputs: under llama.cpp's names for the experts of a
/// layer together, and the tensor's own otherwise. `None` for tensors that no product of blocks reads.
pub fn importance(spec: &TensorSpec, config: &ModelConfig) -> Option<(String, usize)> {
    match spec.role {
        Role::ExpertIn { layer, expert } => Some((format!("blk.{layer}.ffn_gate_exps.weight"), expert)),
        Role::ExpertOut { layer, expert } => Some((format!("blk.{layer}.ffn_down_exps.weight"), expert)),
        Role::Embedding if !config.tied_embeddings => None,
        Role::Norm | Role::ConvBias | Role::Router => None,
        Role::Embedding | Role::Head | Role::Attention | Role::Conv | Role::Mlp => {
            Some((spec.gguf.clone(), 0))
        }
    }
}

/// Under which name a file of importances has what decides on the experts of a layer.
pub fn routing(layer: usize) -> String {
    format!("blk.{layer}.routing")
}

/// The layer of an attention's output projection, by its name in a GGUF file.
pub fn layer_of_output(gguf: &str) -> Option<usize> {
    gguf.strip_prefix("blk.")?.strip_suffix(".attn_output.weight")?.parse().ok()
}

/// Name in our containers of an expert that is stored as neuron tiles.
pub fn tiled_expert(layer: usize, expert: usize) -> String {
    format!("blk.{layer}.ffn_expert.{expert}")
}
