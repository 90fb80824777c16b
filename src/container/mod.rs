//! GGUF containers: opening and writing them, the tile layout, conversions between layouts.

mod convert;
pub mod gguf;
mod map;
mod metadata;
mod open;
mod output;
mod panels;
mod piece;
#[cfg(unix)]
mod sigbus;
mod source;
pub mod tiles;
pub mod value;
mod verify;
mod write;

pub use convert::Conversion;
pub use map::Bytes;
pub use metadata::LAYOUT_VERSION;
pub use open::{Container, ConvLayout, ExpertView, TensorView};
pub use output::Written;
pub(crate) use panels::{in_memory as panels_in_memory, pack as pack_panels};
pub use tiles::TileLayout;
pub use write::NewTensor;
