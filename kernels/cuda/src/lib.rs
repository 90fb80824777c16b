//! CUDA kernels that read the same panels and tiles as the CPU's, and give the same bits.
//!
//! Without features this crate is plain data: the kernels' names and parameters ([`KERNELS`]) and how each is launched ([`launch`]).
//! README.md beside this crate says what every parameter is.

#[cfg(feature = "cuda")]
pub mod images;
pub mod launch;

#[cfg(feature = "cuda")]
pub use images::{IMAGES, Image, image_for};
pub use launch::Launch;

/// What a kernel takes at one place of its list of parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    /// An address in device memory, 8 bytes.
    Pointer,
    /// `i32`.
    I32,
    /// `f32`.
    F32,
}

/// A kernel's name and the kinds of its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The symbol in the module.
    pub name: &'static str,
    /// Its parameters, in order.
    pub params: &'static [Param],
}

impl Kernel {
    /// The kernel of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        KERNELS.iter().find(|kernel| kernel.name == name)
    }
}

const P: Param = Param::Pointer;
const I: Param = Param::I32;
const F: Param = Param::F32;

macro_rules! kernels {
    ($($($name:literal),+ => $params:tt;)+) => {
        /// All kernels.
        pub const KERNELS: &[Kernel] = &[$($(Kernel { name: $name, params: &$params }),+),+];
    };
}

kernels! {
    "embed_f32", "embed_f16", "embed_bf16", "embed_q8_0", "embed_q4_0", "embed_q3_k", "embed_q4_k", "embed_q6_k" => [P, P, P, I];
    "rms_norm" => [P, P, P, P, P, I, I, F];
    "quantize" => [P, P, I, I, I];
    "product_q8_0_1", "product_q8_0_2", "product_q8_0_4", "product_q8_0_8", "product_q8_0_many",
    "product_q4_0_1", "product_q4_0_2", "product_q4_0_4", "product_q4_0_8", "product_q4_0_many",
    "product_q3_k_1", "product_q3_k_2", "product_q3_k_4", "product_q3_k_8", "product_q3_k_many",
    "product_q4_k_1", "product_q4_k_2", "product_q4_k_4", "product_q4_k_8", "product_q4_k_many",
    "product_q6_k_1", "product_q6_k_2", "product_q6_k_4", "product_q6_k_8", "product_q6_k_many",
    "product_f32", "product_f16", "product_bf16" => [P, P, P, P, I, I, I];
    "filter_pairs" => [P, P, P, P, P, I, I, I, I, I];
    "heads_f16", "heads_q8_0" => [P, P, P, P, P, P, P, I, I, I, I, I];
    "attend_spans_f16", "attend_spans_q8_0" => [P, P, P, P, I, I, I, I, I];
    "attend_join" => [P, P, P, I, I, I];
    "attend_many_f16", "attend_many_q8_0" => [P, P, P, P, P, I, I, I, I];
    "route" => [P, P, P, P, I, I, I, I];
    "sort_slots" => [P, P, P, I, I];
    "expert_gate_up_q4_0", "expert_gate_up_q3_k", "expert_gate_up_q4_k", "expert_gate_up_q6_k", "expert_gate_up_q8_0" => [P, P, P, P, I, I, I];
    "expert_down_q4_0", "expert_down_q3_k", "expert_down_q4_k", "expert_down_q6_k", "expert_down_q8_0" => [P, P, P, P, I, I];
    "expert_gate_up_many_q4_0", "expert_gate_up_many_q3_k", "expert_gate_up_many_q4_k", "expert_gate_up_many_q6_k", "expert_gate_up_many_q8_0" =>
        [P, P, P, P, P, I, I, I, I];
    "expert_down_many_q4_0", "expert_down_many_q3_k", "expert_down_many_q4_k", "expert_down_many_q6_k", "expert_down_many_q8_0" =>
        [P, P, P, P, P, I, I, I];
    "combine" => [P, P, P, P, I, I];
    "top_k" => [P, P, P, P, I, I];
}
