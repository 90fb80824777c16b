//! What the two binaries share: the terminal, opening models, conversions, descriptions.

pub mod console;
pub mod convert;
pub mod inspect;
pub mod open;
