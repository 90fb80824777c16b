//! Published models, by name: from a hub to this machine, whole or not at all.
//!
//! [`Repository`] says where a model is, [`Hub`] asks what there is, and [`download`](download::download) brings a file: in pieces side by side, from
//! where a run that was killed has stopped, and checked by size and SHA-256 before it has its name. [`Coming`] is a file that is used meanwhile: what
//! somebody waits for comes first.

mod coming;
pub mod download;
mod gradual;
mod hub;
mod journal;
mod names;
mod queue;
mod retry;

pub use coming::Coming;
pub use hub::{Hub, Remote};
pub use names::{KNOWN, Kind, Known, Repository};
