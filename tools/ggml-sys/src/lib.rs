//! ggml's functions and types, as bindgen finds them in its headers, and nothing else.
//!
//! Without the feature `build` this crate is empty and builds nothing.
#![allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]

#[cfg(feature = "build")]
include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
