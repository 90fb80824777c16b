//! What the two binaries share: the terminal, what is said, numbers with their limits, opening models, conversions, shapes, descriptions, figures.

pub mod console;
pub mod convert;
pub mod geometry;
pub mod heat;
pub mod inspect;
pub mod numbers;
pub mod open;
pub mod say;
pub mod stats;
