//! The operations on floats, with AVX2 and F16C.

use super::{
    quantize::{quantize_block, quantize_eight},
    vector::*,
};

floats!("avx2,f16c");
