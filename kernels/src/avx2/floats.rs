//! The operations on floats, with AVX2 and F16C.

use super::vector::*;

floats!("avx2,f16c");
