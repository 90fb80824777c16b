//! Options of a conversion: types and conventions of the container.

use clap::Args;
use yuan::{
    config::RopePrecision,
    machine::budget::Limit,
    quantize::{DType, Wishes},
};

use crate::open::rope;

/// Types and conventions of the output.
#[derive(Args, Clone)]
pub struct Types {
    /// Type of the experts: q3_k, q4_k, q4_0, q6_k or q8_0 (as neuron tiles, which can be streamed), f16, bf16 or f32; by default q4_k, what a GGUF input has, or
    /// what holds the weights of a GPTQ input exactly (q4_0 of 4 bits, q8_0 of 8 bits)
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    experts: Option<DType>,
    /// Type of the other matrices: q8_0, q6_k, q4_k, f16, bf16 or f32; by default q8_0, what a GGUF input has, or what holds the weights of GPTQ exactly.
    /// An embedding that is not the head, too, has at least 16 bits
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    dense: Option<DType>,
    /// Rotary convention to record: mixed (that of the training), f32 or hfbf16; by default the config's, or mixed; Yuan 3.0 has f32 only
    #[arg(long, value_name = "KIND", value_parser = rope)]
    rope: Option<RopePrecision>,
    /// Base of the rotary frequencies to record; by default the config's (that of the published Yuan2-M32-hf has none: give 40890), and 10000 with
    /// YaRN, as in the authors' code
    #[arg(long, value_name = "BASE")]
    rope_base: Option<f32>,
    /// The most bytes of the container, as 18G: of the types that are not named, those that lose the least and fit are taken. --dry-run shows them, and how far
    /// from the original they are expected to be
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    size: Option<u64>,
}

impl Types {
    /// What they ask for.
    pub fn wishes(&self) -> Wishes {
        let Self { experts, dense, rope, rope_base, size } = *self;
        Wishes { experts, dense, rope, rope_base, lossless: false, size }
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    match text.parse()? {
        Limit::Bytes(bytes) => Ok(bytes),
        Limit::Percent(_) => Err("give a size in bytes, as 18G or 20GiB".into()),
    }
}

fn dtype(name: &str) -> Result<DType, String> {
    DType::from_name(name).ok_or_else(|| "choose q3_k, q4_k, q4_0, q6_k, q8_0, f16, bf16 or f32".into())
}
