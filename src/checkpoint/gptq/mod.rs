//! GPTQ checkpoints: matrices in codes of 4 or 8 bits, each group of inputs with scales and zeros of its own.
//!
//! Everything lies transposed against a plain checkpoint. A matrix `[out, in]` named `x.weight` is stored as
//!
//! | tensor | type and shape | meaning |
//! |---|---|---|
//! | `x.qweight` | I32 [in * bits / 32, out] | a word holds the codes of neighbouring inputs of one output, the first input in its lowest bits |
//! | `x.qzeros` | I32 [groups, out * bits / 32] | a word holds the zeros of neighbouring outputs |
//! | `x.scales` | F16 [groups, out] | |
//! | `x.g_idx` | I32 \[in\] | the group of each input; without it, input i is in group i / `group_size` |
//!
//! and a weight is `scale * (code - zero)`, which f32 holds exactly where the scale is an f16 or bf16. Format 1 stores a zero less one,
//! modulo the codes; format 2 stores it as it is. Some tools add outputs until their number is a multiple of 32.

mod find;
mod module;
mod packed;
mod settings;

pub(super) use find::{Found, check_label, take_modules};
pub use module::Facts;
pub(super) use module::Module;
pub use packed::Packed;
pub(super) use settings::FILES;
pub use settings::{Format, Settings};
