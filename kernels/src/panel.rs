//! Panels: 16 rows x 256 columns of weights, the superblock of the neuron tile and of the trunk's matrices.
//!
//! A panel is a lossless permutation of sixteen rows' standard blocks, so that one vector load serves 8 or 16 rows
//! against a broadcast word of activations.
//!
//! 4 bits: 2304 bytes, a 256-byte header and 2048 bytes of nibbles, from sixteen rows' `Q4_K` blocks or from
//! sixteen rows' eight `Q4_0` blocks. For every sub-block `s` of 32 columns there are four lines of
//! 64 bytes; in line `g` byte `4r + i` belongs to row `r` and holds column `4g + i` in its low nibble and column
//! `16 + 4g + i` in its high nibble.
//!
//! 8 bits: 4352 bytes from sixteen rows' eight `Q8_0` blocks. For every sub-block there are eight lines of 64 bytes; in
//! line `g` byte `4r + i` is row `r`, column `4g + i`.
//!
//! 3 bits: 1760 bytes from sixteen rows' `Q3_K` blocks. Every sub-block has two lines of 64 bytes with the low 2 bits, byte `4r + i` of line `h` those
//! of columns `16h + i`, `16h + 4 + i`, …, and one with the third bits of all of them.
//!
//! 6 bits: 3360 bytes from sixteen rows' `Q6_K` blocks. Behind the four lines of nibbles of a sub-block, the low 4 bits, come two
//! lines of 64 bytes with the upper 2 bits, each for two lines of nibbles.

mod sixteens;

use bytemuck::{Pod, Zeroable};
use half::f16;

pub use sixteens::{PanelQ3K, PanelQ6K, SixBits, ThreeBits};

use crate::{
    Kernels,
    blocks::{BlockQ3K, BlockQ4_0, BlockQ4K, BlockQ6K, BlockQ8, BlockQ8_0, BlockQ8x8, DType, QK, QK_SMALL},
    dequantize,
};

/// Rows of a panel.
pub const PANEL_ROWS: usize = 16;
/// Bytes of a panel of 4-bit weights.
pub const PANEL_BYTES: usize = 2304;

/// A block of 256 activations, as products with some kind of weights take them.
pub trait ActivationBlock: Pod + Send + Sync {
    /// Columns that share a scale.
    const SCALE_COLUMNS: usize;
    /// Rows of f32 to blocks: [`Kernels::quantize`] or [`Kernels::quantize_x8`].
    fn quantize(kernels: &Kernels, x: &[f32], out: &mut [Self]);
    /// The activations in f32.
    fn widen(&self, out: &mut [f32; QK]);
}

impl ActivationBlock for BlockQ8 {
    const SCALE_COLUMNS: usize = QK;

    fn quantize(kernels: &Kernels, x: &[f32], out: &mut [Self]) {
        (kernels.quantize)(x, out);
    }

    fn widen(&self, out: &mut [f32; QK]) {
        out.iter_mut().zip(self.qs).for_each(|(x, q)| *x = self.d * f32::from(q));
    }
}

impl ActivationBlock for BlockQ8x8 {
    const SCALE_COLUMNS: usize = QK_SMALL;

    fn quantize(kernels: &Kernels, x: &[f32], out: &mut [Self]) {
        (kernels.quantize_x8)(x, out);
    }

    fn widen(&self, out: &mut [f32; QK]) {
        out.iter_mut()
            .zip(self.qs)
            .enumerate()
            .for_each(|(i, (x, q))| *x = self.d[i / QK_SMALL] * f32::from(q));
    }
}

/// One of the panel formats.
pub trait Panel: Pod + Send + Sync {
    /// Type of the rows that it permutes.
    const DTYPE: DType;
    /// A row's standard blocks of 256 columns.
    type Row: Pod;
    /// What it is multiplied with.
    type X: ActivationBlock;
    /// The panel of sixteen rows. Loses nothing.
    fn from_rows(rows: &[Self::Row; PANEL_ROWS]) -> Self;
    /// The inverse of [`Panel::from_rows`].
    fn to_rows(&self) -> [Self::Row; PANEL_ROWS];
    /// Adds the products of a row of panels with `acc.len()` rows of activations to `acc`.
    fn product(kernels: &Kernels, panels: &[Self], x: &[Self::X], acc: &mut [[f32; PANEL_ROWS]]);

    /// The 16 x 256 weights in f32.
    fn dequantize(&self, out: &mut [[f32; QK]; PANEL_ROWS]) {
        for (row, out) in self.to_rows().iter().zip(out) {
            dequantize(Self::DTYPE, bytemuck::bytes_of(row), out);
        }
    }
}

/// Adds the products of a row of panels with `acc.len()` rows of f32 activations to `acc`, the weights widened to f32:
/// slow, for comparison.
pub fn panels_float<P: Panel>(kernels: &Kernels, panels: &[P], x: &[f32], acc: &mut [[f32; PANEL_ROWS]]) {
    let mut weights = [[0f32; QK]; PANEL_ROWS];
    for (i, panel) in panels.iter().enumerate() {
        panel.dequantize(&mut weights);
        for (x, acc) in x.chunks_exact(panels.len() * QK).zip(&mut *acc) {
            for (w, acc) in weights.iter().zip(acc) {
                *acc += (kernels.dot_f32)(w, &x[i * QK..][..QK]);
            }
        }
    }
}

/// The types that have panels, each on a line of its own: what panels there are stands here and nowhere else. `$d` is a `$`.
macro_rules! panels {
    ($d:tt $($dtype:ident: $panel:ident of $row:ty, $x:ident, $product:ident;)*) => {
        $(
            impl Panel for $panel {
                const DTYPE: DType = DType::$dtype;
                type Row = $row;
                type X = $x;

                fn from_rows(rows: &[Self::Row; PANEL_ROWS]) -> Self {
                    Self::pack(rows)
                }

                fn to_rows(&self) -> [Self::Row; PANEL_ROWS] {
                    self.unpack()
                }

                fn product(kernels: &Kernels, panels: &[Self], x: &[$x], acc: &mut [[f32; PANEL_ROWS]]) {
                    (kernels.$product)(panels, x, acc, kernels.ahead);
                }
            }
        )*

        /// Bytes of a panel of this type, or `None` where there are no such panels.
        pub const fn panel_bytes(dtype: DType) -> Option<usize> {
            match dtype {
                $(DType::$dtype => Some(size_of::<$panel>()),)*
                _ => None,
            }
        }

        /// `with_panel!(dtype, P => a, _ => b)` is `a` with `P` as the [`Panel`] of a [`DType`], and `b` where it has none.
        #[macro_export]
        macro_rules! with_panel {
            ($d dtype:expr, $d P:ident => $d body:expr, _ => $d other:expr) => {
                match $d dtype {
                    $($crate::DType::$dtype => {
                        type $d P = $crate::$panel;
                        $d body
                    })*
                    _ => $d other,
                }
            };
        }
    };
}
panels! { $
    Q8_0: PanelQ8_0 of [BlockQ8_0; 8], BlockQ8x8, panels_q8_0;
    Q4_0: PanelQ4_0 of [BlockQ4_0; 8], BlockQ8, panels_q4_0;
    Q3_K: PanelQ3K of BlockQ3K, BlockQ8, panels_q3_k;
    Q4_K: PanelQ4K of BlockQ4K, BlockQ8, panels_q4_k;
    Q6_K: PanelQ6K of BlockQ6K, BlockQ8, panels_q6_k;
}

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

impl PanelQ4K {
    /// Sixteen rows' blocks of the same 256 columns as one panel. Loses nothing.
    pub fn pack(rows: &[BlockQ4K; PANEL_ROWS]) -> Self {
        let mut panel = Self::zeroed();
        for (r, row) in rows.iter().enumerate() {
            panel.d[r] = row.d;
            panel.dmin[r] = row.dmin;
            let (scale, min) = row.unpack_scales();
            for s in 0..4 {
                panel.scales_lo[16 * s + r] = (scale[s] & 15) | (scale[s + 4] << 4);
                panel.mins_lo[16 * s + r] = (min[s] & 15) | (min[s + 4] << 4);
                panel.hi[16 * s + r] = (scale[s] >> 4)
                    | ((scale[s + 4] >> 4) << 2)
                    | ((min[s] >> 4) << 4)
                    | ((min[s + 4] >> 4) << 6);
            }
            for s in 0..8 {
                // Sub-blocks 2p and 2p + 1 share 32 bytes of the row: the even one has the low nibbles.
                let shared = &row.qs[32 * (s / 2)..][..32];
                let nibble = |column: usize| (shared[column] >> (4 * (s % 2))) & 15;
                for k in 0..16 {
                    panel.qs[nibbles_at(s, r, k)] = nibble(k) | (nibble(k + 16) << 4);
                }
            }
        }
        panel
    }

    /// The inverse of [`PanelQ4K::pack`].
    pub fn unpack(&self) -> [BlockQ4K; PANEL_ROWS] {
        std::array::from_fn(|r| {
            let (scales, mins) = self.scales_of(r);
            let mut qs = [0; 128];
            for s in 0..8 {
                let shared = &mut qs[32 * (s / 2)..][..32];
                let shift = 4 * (s % 2);
                for k in 0..16 {
                    let pair = self.qs[nibbles_at(s, r, k)];
                    shared[k] |= (pair & 15) << shift;
                    shared[k + 16] |= (pair >> 4) << shift;
                }
            }
            BlockQ4K { d: self.d[r], dmin: self.dmin[r], scales: BlockQ4K::pack_scales(&scales, &mins), qs }
        })
    }

    /// The eight scales and the eight mins of row `r < 16`, each of 6 bits.
    pub fn scales_of(&self, r: usize) -> ([u8; 8], [u8; 8]) {
        let (mut scales, mut mins) = ([0; 8], [0; 8]);
        for s in 0..4 {
            let (scale, min, hi) =
                (self.scales_lo[16 * s + r], self.mins_lo[16 * s + r], self.hi[16 * s + r]);
            scales[s] = (scale & 15) | ((hi & 3) << 4);
            scales[s + 4] = (scale >> 4) | (((hi >> 2) & 3) << 4);
            mins[s] = (min & 15) | (((hi >> 4) & 3) << 4);
            mins[s + 4] = (min >> 4) | ((hi >> 6) << 4);
        }
        (scales, mins)
    }
}

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

impl PanelQ4_0 {
    /// Sixteen rows' eight blocks of the same 256 columns as one panel. Loses nothing.
    pub fn pack(rows: &[[BlockQ4_0; 8]; PANEL_ROWS]) -> Self {
        let mut panel = Self::zeroed();
        for (r, row) in rows.iter().enumerate() {
            for (s, block) in row.iter().enumerate() {
                panel.d[s][r] = block.d;
                // A byte of Q4_0 pairs columns k and k + 16, as a byte of the panel does. Four of them lie together.
                for (g, four) in block.qs.as_chunks::<4>().0.iter().enumerate() {
                    panel.qs.as_chunks_mut().0[nibbles_at(s, r, 4 * g) / 4] = *four;
                }
            }
        }
        panel
    }

    /// The inverse of [`PanelQ4_0::pack`].
    pub fn unpack(&self) -> [[BlockQ4_0; 8]; PANEL_ROWS] {
        std::array::from_fn(|r| {
            std::array::from_fn(|s| BlockQ4_0 {
                d: self.d[s][r],
                qs: std::array::from_fn(|k| self.qs[nibbles_at(s, r, k)]),
            })
        })
    }
}

/// Sixteen rows of `Q8_0`.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq)]
#[repr(C)]
pub struct PanelQ8_0 {
    /// Scale of sub-block `s` of row `r`: `d[s][r]`.
    pub d: [[f16; 16]; 8],
    /// Weights: byte `512 s + 64 g + 4 r + i` is column `32 s + 4 g + i` of row `r`.
    pub qs: [i8; 4096],
}
const _: () = assert!(size_of::<PanelQ8_0>() == 4352);

impl PanelQ8_0 {
    /// Sixteen rows' eight blocks of the same 256 columns as one panel. Loses nothing.
    pub fn pack(rows: &[[BlockQ8_0; 8]; PANEL_ROWS]) -> Self {
        let mut panel = Self::zeroed();
        for (r, row) in rows.iter().enumerate() {
            for (s, block) in row.iter().enumerate() {
                panel.d[s][r] = block.d;
                for (g, four) in block.qs.as_chunks::<4>().0.iter().enumerate() {
                    panel.qs.as_chunks_mut().0[weight_at(s, r, 4 * g) / 4] = *four;
                }
            }
        }
        panel
    }

    /// The inverse of [`PanelQ8_0::pack`].
    pub fn unpack(&self) -> [[BlockQ8_0; 8]; PANEL_ROWS] {
        std::array::from_fn(|r| {
            std::array::from_fn(|s| BlockQ8_0 {
                d: self.d[s][r],
                qs: std::array::from_fn(|k| self.qs[weight_at(s, r, k)]),
            })
        })
    }
}

/// Where column `k` of sub-block `s` of row `r` lies in the `qs` of a panel of 8-bit weights.
const fn weight_at(s: usize, r: usize, k: usize) -> usize {
    512 * s + 64 * (k / 4) + 4 * r + k % 4
}

/// The nibbles of sub-block `s`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline]
pub(crate) fn sub_block(qs: &[u8; 2048], s: usize) -> &[u8; 256] {
    let sub_blocks: &[[u8; 256]; 8] = bytemuck::cast_ref(qs);
    &sub_blocks[s]
}

/// Where the nibbles of columns `k` and `k + 16` (`k < 16`) of sub-block `s` of row `r` lie in a panel's `qs`.
const fn nibbles_at(s: usize, r: usize, k: usize) -> usize {
    256 * s + 64 * (k / 4) + 4 * r + k % 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::pod_read_unaligned;
    use proptest::prelude::*;

    fn bytes_of<T: Pod>(value: T) -> Vec<u8> {
        bytemuck::bytes_of(&value).to_vec()
    }

    proptest! {
        #[test]
        fn q4_k_panels_lose_nothing(bytes in prop::collection::vec(any::<u8>(), PANEL_BYTES)) {
            let panel: PanelQ4K = pod_read_unaligned(&bytes);
            prop_assert_eq!(bytes_of(PanelQ4K::pack(&panel.unpack())), &bytes[..]);
            let rows: [BlockQ4K; 16] = pod_read_unaligned(&bytes);
            prop_assert_eq!(bytes_of(PanelQ4K::pack(&rows).unpack()), &bytes[..]);
        }

        #[test]
        fn q4_0_panels_lose_nothing(bytes in prop::collection::vec(any::<u8>(), PANEL_BYTES)) {
            let panel: PanelQ4_0 = pod_read_unaligned(&bytes);
            prop_assert_eq!(bytes_of(PanelQ4_0::pack(&panel.unpack())), &bytes[..]);
            let rows: [[BlockQ4_0; 8]; 16] = pod_read_unaligned(&bytes);
            prop_assert_eq!(bytes_of(PanelQ4_0::pack(&rows).unpack()), &bytes[..]);
        }

        #[test]
        fn q8_0_panels_lose_nothing(bytes in prop::collection::vec(any::<u8>(), size_of::<PanelQ8_0>())) {
            let panel: PanelQ8_0 = pod_read_unaligned(&bytes);
            prop_assert_eq!(bytes_of(PanelQ8_0::pack(&panel.unpack())), &bytes[..]);
            let rows: [[BlockQ8_0; 8]; 16] = pod_read_unaligned(&bytes);
            prop_assert_eq!(bytes_of(PanelQ8_0::pack(&rows).unpack()), &bytes[..]);
        }

        #[test]
        fn q6_k_panels_lose_nothing(bytes in prop::collection::vec(any::<u8>(), size_of::<PanelQ6K>())) {
            let panel: PanelQ6K = pod_read_unaligned(&bytes);
            prop_assert_eq!(bytes_of(PanelQ6K::pack(&panel.unpack())), &bytes[..]);
            let rows: [BlockQ6K; 16] = pod_read_unaligned(&bytes);
            prop_assert_eq!(bytes_of(PanelQ6K::pack(&rows).unpack()), &bytes[..]);
        }

        #[test]
        fn q3_k_panels_lose_nothing(bytes in prop::collection::vec(any::<u8>(), size_of::<PanelQ3K>())) {
            let panel: PanelQ3K = pod_read_unaligned(&bytes);
            prop_assert_eq!(bytes_of(PanelQ3K::pack(&panel.unpack())), &bytes[..]);
            let rows: [BlockQ3K; 16] = pod_read_unaligned(&bytes);
            prop_assert_eq!(bytes_of(PanelQ3K::pack(&rows).unpack()), &bytes[..]);
        }

        #[test]
        fn scales_pack_to_what_they_were(bytes: [u8; 16]) {
            let signed = bytes.map(|b| (b & 63) as i8 - 32);
            let block = BlockQ3K { scales: BlockQ3K::pack_scales(&signed), ..BlockQ3K::zeroed() };
            prop_assert_eq!(block.unpack_scales(), signed);
            let [scales, mins]: [[u8; 8]; 2] = bytemuck::cast(bytes.map(|b| b & 63));
            let block = BlockQ4K { scales: BlockQ4K::pack_scales(&scales, &mins), ..BlockQ4K::zeroed() };
            prop_assert_eq!(block.unpack_scales(), (scales, mins));
        }
    }

    /// The layout, spelled out for one weight: row 5, column 3 * 32 + 16 + 6 has the nibble 9, all others 0.
    #[test]
    fn a_weight_lies_where_the_format_says() {
        let mut rows = [BlockQ4K::zeroed(); 16];
        rows[5].qs[32 + 16 + 6] = 9 << 4;
        let panel = PanelQ4K::pack(&rows);
        for (at, &byte) in panel.qs.iter().enumerate() {
            assert_eq!(byte, if at == 256 * 3 + 64 + 4 * 5 + 2 { 9 << 4 } else { 0 }, "byte {at}");
        }
    }
}
