//! Encoding weights: the plan and the block encoders.

mod encode;
mod encode_tensor;
mod options;
mod plan;
mod random_blocks;
pub mod synth;

pub use encode::encode;
use encode::first_non_finite;
pub use encode_tensor::{Encoded, Weights, encode_item};
pub use options::{Options, fit};
pub use plan::{Item, Plan, SourceOf, panels_fit};
pub use yuan_kernels::DType;
