//! Encoding weights: the plan and the block encoders.

mod choose;
mod encode;
mod encode_tensor;
mod feedback;
mod lossless;
mod options;
mod plan;
mod random_blocks;
pub mod synth;

pub use choose::Wishes;
pub use encode::encode;
use encode::first_non_finite;
pub use encode_tensor::{Encoded, Loss, Weights, encode_item};
pub use feedback::{Factor, Importance, Inputs};
pub use lossless::fits;
pub use options::{Options, fit};
pub use plan::{Item, Plan, SourceOf, panels_fit};
pub use yuan_kernels::DType;
