//! What llama-server has beside the interfaces of others.

pub mod infill;
pub mod saved;
pub mod state;
