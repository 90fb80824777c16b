//! What the two binaries share: the terminal, what is said, numbers with their limits, opening models and finding them by name, conversions, fetching from a hub, shapes,
//! descriptions, drafts, figures.

pub mod console;
pub mod convert;
pub mod documents;
pub mod draft;
pub mod geometry;
pub mod heat;
pub mod inspect;
pub mod models;
pub mod numbers;
pub mod open;
pub mod pull;
pub mod say;
pub mod shell;
pub mod stats;
pub mod types;
