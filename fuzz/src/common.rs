//! What tests make their files with.

#[path = "../../tests/common/gptq.rs"]
pub mod gptq;
#[path = "../../tests/common/mutate.rs"]
pub mod mutate;
#[path = "../../tests/common/weights.rs"]
pub mod weights;
