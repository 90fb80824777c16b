//! Random models of any geometry, for benchmarks and tests.

use std::ops::Range;

use super::encode_tensor::Weights;
pub use super::random_blocks::random_tensor;
use crate::{
    checkpoint::names::{self, Role},
    config::{Architecture, Family, ModelConfig, RopePrecision, RouterKind},
    error::{Error, Result},
};

/// Yuan2.0-M32 as published.
pub fn m32() -> ModelConfig {
    ModelConfig {
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
        rope_base: 40_890.0,
        rope_dims: 128,
        rope_precision: RopePrecision::Mixed,
        yarn: None,
        context: 16_384,
        tied_embeddings: false,
    }
}

/// Yuan3.0 Flash, as the authors' training script and the template of its config have it.
pub fn flash() -> ModelConfig {
    ModelConfig {
        family: Family::Yuan3,
        vocab: 136_064,
        rope_base: 1_000_000.0,
        rope_precision: RopePrecision::F32,
        context: 131_072,
        ..m32()
    }
}

/// The smallest model that has everything: some 3 M weights.
pub fn tiny() -> ModelConfig {
    ModelConfig {
        vocab: 512,
        hidden: 256,
        layers: 2,
        heads: 4,
        projection: 512,
        ffn: 256,
        experts: 4,
        rope_base: 10_000.0,
        rope_dims: 64,
        context: 1024,
        ..m32()
    }
}

/// A source of random weights: every element is a function of the seed, the tensor's name and the element's place, so that
/// pieces can be made in any order.
#[derive(Debug)]
pub struct Random {
    seed: u64,
    scales: std::collections::HashMap<String, Scale>,
}

/// Mean and deviation of the weights of a tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    pub mean: f32,
    pub deviation: f32,
}

impl Scale {
    /// Norms are about 1.
    pub const NORM: Self = Self { mean: 1.0, deviation: 0.05 };
    /// Biases are about 0.
    pub const BIAS: Self = Self { mean: 0.0, deviation: 0.05 };

    /// Matrices have a variance of one over their inputs: activations stay in range.
    pub fn matrix(inputs: usize) -> Self {
        Self { mean: 0.0, deviation: 1.0 / (inputs as f32).sqrt() }
    }

    /// The element at `place` of a stream.
    pub fn weight(self, stream: u64, place: usize) -> f32 {
        self.mean + self.deviation * gaussian(mix(stream ^ place as u64))
    }
}

impl Random {
    /// Random weights for every tensor of `config`.
    pub fn new(config: &ModelConfig, seed: u64) -> Self {
        let scale = |spec: names::TensorSpec| {
            let inputs: usize = spec.shape[1..].iter().product();
            let scale = match spec.role {
                Role::Norm => Scale::NORM,
                Role::ConvBias => Scale::BIAS,
                _ => Scale::matrix(inputs),
            };
            (spec.hf, scale)
        };
        Self { seed, scales: names::tensors(config).into_iter().map(scale).collect() }
    }
}

impl Weights for Random {
    fn read_f32(&self, name: &str, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let Some(scale) = self.scales.get(name) else {
            return Err(Error::Argument(format!("the model has no tensor {name}")));
        };
        let stream = stream(self.seed, name);
        out.extend(range.map(|i| scale.weight(stream, i)));
        Ok(())
    }
}

/// A number that names the stream of one tensor of one seed (FNV-1a over the name, then mixed).
pub fn stream(seed: u64, name: &str) -> u64 {
    let hash = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    // Shifted: the low bits are left to the place within the tensor.
    mix(hash ^ mix(seed)) << 36
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection whose outputs pass for random.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Nearly normal, mean 0, variance 1: the sum of the four 16-bit quarters of a random word, centred and scaled.
fn gaussian(word: u64) -> f32 {
    let sum: u32 = (0..4).map(|i| (word >> (16 * i)) as u32 & 0xFFFF).sum();
    // One quarter has variance 65536² / 12, four have 65536² / 3.
    (sum as f32 - 131_070.0) * (1.732_050_8 / 65_536.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometries_are_valid() {
        m32().validate().unwrap();
        flash().validate().unwrap();
        tiny().validate().unwrap();
    }

    #[test]
    fn pieces_equal_the_whole() {
        let random = Random::new(&tiny(), 3);
        let (mut whole, mut pieces) = (Vec::new(), Vec::new());
        let name = "model.layers.1.self_attn.q_proj.weight";
        random.read_f32(name, 0..1000, &mut whole).unwrap();
        random.read_f32(name, 0..333, &mut pieces).unwrap();
        random.read_f32(name, 333..1000, &mut pieces).unwrap();
        assert_eq!(whole, pieces);
    }

    #[test]
    fn weights_have_the_variance_that_they_should() {
        let mut w = Vec::new();
        Random::new(&tiny(), 1).read_f32("lm_head.weight", 0..100_000, &mut w).unwrap();
        let variance = w.iter().map(|w| w * w).sum::<f32>() / w.len() as f32;
        assert!((variance * 256.0 - 1.0).abs() < 0.02, "{variance}");
    }
}
