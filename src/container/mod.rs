//! GGUF containers: opening and laying them out, panels and tiles.

mod arriving;
pub mod gguf;
pub mod imatrix;
#[cfg(windows)]
mod in_page_error;
mod map;
pub(crate) mod metadata;
mod open;
pub(crate) mod panels;
#[cfg(unix)]
mod sigbus;
pub mod tiles;
pub mod value;
mod verify;
mod view;
mod watch;
pub(crate) mod write;

pub use arriving::Arrival;
pub(crate) use arriving::Arriving;
pub use map::Bytes;
pub use metadata::LAYOUT_VERSION;
pub use open::Container;
pub(crate) use panels::pack as pack_panels;
pub use tiles::TileLayout;
pub(crate) use view::panels_in_memory;
pub use view::{ConvLayout, ExpertView, TensorView};
pub use write::NewTensor;
