//! The CUDA kernels on the CPU, for tests: the same sources, compiled as C++, with threads as fibers and every access to memory checked.
//!
//! Without the feature `emulate` this crate is empty and builds nothing.

#[cfg(feature = "emulate")]
mod emulate;

#[cfg(feature = "emulate")]
pub use emulate::{Architecture, launch, launch_on, register, unregister};
