//! What the two binaries share: the terminal, opening models, conversions, descriptions, figures.

pub mod console;
pub mod convert;
pub mod heat;
pub mod inspect;
pub mod open;
pub mod stats;
