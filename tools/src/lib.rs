//! What the two binaries share: logging, progress, Ctrl-C, sizes, and running a model.

pub mod convert;
pub mod console;
pub mod open;
