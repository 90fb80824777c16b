//! The operations on floats, with NEON.

use super::vector::*;

floats!("neon");
