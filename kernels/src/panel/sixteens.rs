//! Panels of the types that have a scale for each 16 columns and row: `Q3_K` and `Q6_K`.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::{PANEL_ROWS, nibbles_at};
use crate::blocks::{BlockQ3K, BlockQ6K, QK};

/// Sixteen rows of `Q3_K`.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq)]
#[repr(C)]
pub struct PanelQ3K {
    /// Scale of the scales, by row.
    pub d: [f16; 16],
    /// Byte `b` of each row's packed scales ([`BlockQ3K::scales`]): `scales[b][r]`.
    pub scales: [[u8; 16]; 12],
    /// 32 columns each.
    pub sub_blocks: [ThreeBits; 8],
}
const _: () = assert!(size_of::<PanelQ3K>() == 1760);

/// 16 rows x 32 columns of 3 bits.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq)]
#[repr(C)]
pub struct ThreeBits {
    /// Low 2 bits: bits `2 g` and `2 g + 1` of byte `64 h + 4 r + i` are those of column `16 h + 4 g + i` of row `r`.
    pub low: [u8; 128],
    /// The third bits: bit `4 h + g` of byte `4 r + i`.
    pub high: [u8; 64],
}

impl PanelQ3K {
    /// Sixteen rows' blocks of the same 256 columns as one panel. Loses nothing.
    pub fn pack(rows: &[BlockQ3K; PANEL_ROWS]) -> Self {
        let mut panel = Self::zeroed();
        for (r, row) in rows.iter().enumerate() {
            panel.d[r] = row.d;
            for (scales, &byte) in panel.scales.iter_mut().zip(&row.scales) {
                scales[r] = byte;
            }
            let q = row.quants().map(|q| (q + 4) as u8);
            for (q, out) in q.as_chunks::<32>().0.iter().zip(&mut panel.sub_blocks) {
                for (k, q) in q.iter().enumerate() {
                    let (line, byte, g) = (k / 16, 4 * r + k % 4, k / 4);
                    out.low[64 * line + byte] |= (q & 3) << (2 * (g % 4));
                    out.high[byte] |= (q >> 2) << g;
                }
            }
        }
        panel
    }

    /// The inverse of [`PanelQ3K::pack`].
    pub fn unpack(&self) -> [BlockQ3K; PANEL_ROWS] {
        std::array::from_fn(|r| {
            let (hmask, qs) = BlockQ3K::pack_quants(&self.quants(r).map(|q| (q + 4) as u8));
            BlockQ3K { hmask, qs, scales: self.scales.map(|bytes| bytes[r]), d: self.d[r] }
        })
    }

    /// The 3-bit numbers less 4 of row `r < 16`, by column.
    pub fn quants(&self, r: usize) -> [i8; QK] {
        let mut q = [0; QK];
        for (bits, q) in self.sub_blocks.iter().zip(q.as_chunks_mut::<32>().0) {
            for (k, q) in q.iter_mut().enumerate() {
                let (line, byte, g) = (k / 16, 4 * r + k % 4, k / 4);
                let (low, high) = (bits.low[64 * line + byte] >> (2 * (g % 4)), bits.high[byte] >> g);
                *q = ((low & 3) | (high & 1) << 2) as i8 - 4;
            }
        }
        q
    }

    /// The sixteen scales of row `r < 16`, -32..=31.
    pub fn scales_of(&self, r: usize) -> [i8; 16] {
        BlockQ3K { scales: self.scales.map(|bytes| bytes[r]), ..BlockQ3K::zeroed() }.unpack_scales()
    }
}

/// Sixteen rows of `Q6_K`.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq)]
#[repr(C)]
pub struct PanelQ6K {
    /// Scale of the scales, by row.
    pub d: [f16; 16],
    /// Scale of columns `16 s..16 s + 16` of row `r`: `scales[s][r]`.
    pub scales: [[i8; 16]; 16],
    /// 32 columns each.
    pub sub_blocks: [SixBits; 8],
}
const _: () = assert!(size_of::<PanelQ6K>() == 3360);

/// 16 rows x 32 columns of 6 bits.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq)]
#[repr(C)]
pub struct SixBits {
    /// Low 4 bits: byte `64 g + 4 r + i`, as in panels of 4 bits.
    pub low: [u8; 256],
    /// Upper 2 bits of line `g` of `low`: byte `64 (g / 2) + 4 r + i` has, from bit `4 (g % 2)` on, first those of the low
    /// nibble and then those of the high one.
    pub high: [u8; 128],
}

impl PanelQ6K {
    /// Sixteen rows' blocks of the same 256 columns as one panel. Loses nothing.
    pub fn pack(rows: &[BlockQ6K; PANEL_ROWS]) -> Self {
        let mut panel = Self::zeroed();
        for (r, row) in rows.iter().enumerate() {
            panel.d[r] = row.d;
            for (scales, &scale) in panel.scales.iter_mut().zip(&row.scales) {
                scales[r] = scale;
            }
            let q = row.quants().map(|q| (q + 32) as u8);
            for (q, out) in q.as_chunks::<32>().0.iter().zip(&mut panel.sub_blocks) {
                for k in 0..16 {
                    out.low[nibbles_at(0, r, k)] = (q[k] & 15) | (q[k + 16] << 4);
                }
                for k in [0, 1, 2, 3, 8, 9, 10, 11] {
                    let four = [q[k], q[k + 16], q[k + 4], q[k + 20]].map(|q| q >> 4);
                    out.high[upper_at(r, k).0] = four[0] | four[1] << 2 | four[2] << 4 | four[3] << 6;
                }
            }
        }
        panel
    }

    /// The inverse of [`PanelQ6K::pack`].
    pub fn unpack(&self) -> [BlockQ6K; PANEL_ROWS] {
        std::array::from_fn(|r| {
            let (ql, qh) = BlockQ6K::pack_quants(&self.quants(r).map(|q| (q + 32) as u8));
            BlockQ6K { ql, qh, scales: self.scales.map(|s| s[r]), d: self.d[r] }
        })
    }

    /// The 6-bit numbers less 32 of row `r < 16`, by column.
    pub fn quants(&self, r: usize) -> [i8; QK] {
        let mut q = [0; QK];
        for (bits, q) in self.sub_blocks.iter().zip(q.chunks_exact_mut(32)) {
            for k in 0..16 {
                let pair = bits.low[nibbles_at(0, r, k)];
                let (at, shift) = upper_at(r, k);
                let upper = bits.high[at] >> shift;
                q[k] = ((pair & 15) | (upper & 3) << 4) as i8 - 32;
                q[k + 16] = ((pair >> 4) | (upper >> 2 & 3) << 4) as i8 - 32;
            }
        }
        q
    }
}

/// The byte of [`SixBits::high`], and the bit in it, where the upper bits of those columns of row `r` begin.
const fn upper_at(r: usize, k: usize) -> (usize, usize) {
    let g = k / 4;
    (64 * (g / 2) + 4 * r + k % 4, 4 * (g % 2))
}
