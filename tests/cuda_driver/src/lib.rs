//! CUDA's driver on the CPU: the functions of libcuda that `src/gpu/cuda.rs` calls, so that it runs where there is no GPU. Kernels run on the
//! emulator (`tests/cuda_shim`), and everything is done at once: what relies on more order than events and waits give is found by the
//! driver of `src/gpu/fake.rs`, and here what is asked for in a way that the real one refuses.
//!
//! Each function does what its page of the CUDA Driver API 12.4 says, as far as it is used. Copies are to and from pinned memory only.
//!
//! Without the feature `emulate` the library is empty.

#[cfg(feature = "emulate")]
mod calls;
#[cfg(feature = "emulate")]
mod machine;
