//! GGUF containers: opening and laying them out, panels and tiles.

pub mod gguf;
mod map;
pub(crate) mod metadata;
pub(crate) mod open;
pub(crate) mod panels;
#[cfg(unix)]
mod sigbus;
pub mod tiles;
pub mod value;
mod verify;
pub(crate) mod write;

pub use map::Bytes;
pub use metadata::LAYOUT_VERSION;
pub use open::{Container, ConvLayout, ExpertView, TensorView};
pub(crate) use panels::{in_memory as panels_in_memory, pack as pack_panels};
pub use tiles::TileLayout;
pub use write::NewTensor;
