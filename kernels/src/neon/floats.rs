//! The operations on floats, with NEON.

use super::{
    quantize::{quantize_block, quantize_eight},
    vector::*,
};

floats!("neon");
