//! Panels: 16 rows x 256 columns of 4-bit weights, the superblock of the neuron tile.
//!
//! A panel is 2304 bytes: a 256-byte header and 2048 bytes of nibbles, a lossless permutation of sixteen rows'
//! `Q4_K` blocks or of sixteen rows' eight `Q4_0` blocks. For every sub-block `s` of 32 columns there are four lines of
//! 64 bytes; in line `g` byte `4r + i` belongs to row `r` and holds column `4g + i` in its low nibble and column
//! `16 + 4g + i` in its high nibble. So one vector load serves 8 or 16 rows against a broadcast word of activations.

use bytemuck::{Pod, Zeroable};
use half::f16;

/// Rows of a panel.
pub const PANEL_ROWS: usize = 16;
/// Bytes of a panel.
pub const PANEL_BYTES: usize = 2304;

/// Sixteen rows of `Q4_K`.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq)]
#[repr(C)]
pub struct PanelQ4K {
    /// Scale of the scales, by row.
    pub d: [f16; 16],
    /// Scale of the mins, by row.
    pub dmin: [f16; 16],
    /// Byte `16 s + r`, `s < 4`: low 4 bits of the scale of sub-block `s` (low nibble) and `s + 4` (high nibble).
    pub scales_lo: [u8; 64],
    /// The same for the mins.
    pub mins_lo: [u8; 64],
    /// Byte `16 s + r`, `s < 4`: bits 4-5 of scale `s` (bits 0-1), scale `s + 4` (bits 2-3), min `s` (bits 4-5),
    /// min `s + 4` (bits 6-7).
    pub hi: [u8; 64],
    /// Nibbles: byte `256 s + 64 g + 4 r + i`.
    pub qs: [u8; 2048],
}
const _: () = assert!(size_of::<PanelQ4K>() == PANEL_BYTES);

/// Sixteen rows of `Q4_0`.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq)]
#[repr(C)]
pub struct PanelQ4_0 {
    /// Scale of sub-block `s` of row `r`: `d[s][r]`.
    pub d: [[f16; 16]; 8],
    /// Nibbles: byte `256 s + 64 g + 4 r + i`.
    pub qs: [u8; 2048],
}
const _: () = assert!(size_of::<PanelQ4_0>() == PANEL_BYTES);
