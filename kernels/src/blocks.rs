//! Block formats: how weights and activations lie in memory, byte for byte as GGUF files hold them.
//!
//! The layouts of `Q4_0`, `Q8_0`, `Q3_K`, `Q4_K` and `Q6_K` are those of the GGUF specification (ggml `ggml-common.h`);
//! [`BlockQ8`] and [`BlockQ8x8`] are our own blocks of activations.

use bytemuck::{Pod, Zeroable};
use half::f16;

const _: () =
    assert!(cfg!(target_endian = "little"), "the blocks are read as they lie, in little-endian order");

/// Weights in one superblock, and columns in one [`BlockQ8`] or [`BlockQ8x8`].
pub const QK: usize = 256;
/// Weights in one small block (`Q4_0`, `Q8_0`), and columns in one sub-block of a superblock.
pub const QK_SMALL: usize = 32;

/// The types that a matrix can have, with their ggml numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs, non_camel_case_types)]
pub enum DType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q8_0 = 8,
    Q3_K = 11,
    Q4_K = 12,
    Q6_K = 14,
    Bf16 = 30,
}

impl DType {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::F32, Self::F16, Self::Q4_0, Self::Q8_0, Self::Q3_K, Self::Q4_K, Self::Q6_K, Self::Bf16];

    /// Name, weights in a block, bytes of a block: the table of the formats.
    const fn facts(self) -> (&'static str, usize, usize) {
        match self {
            Self::F32 => ("f32", 1, 4),
            Self::F16 => ("f16", 1, 2),
            Self::Bf16 => ("bf16", 1, 2),
            Self::Q4_0 => ("q4_0", QK_SMALL, size_of::<BlockQ4_0>()),
            Self::Q8_0 => ("q8_0", QK_SMALL, size_of::<BlockQ8_0>()),
            Self::Q3_K => ("q3_k", QK, size_of::<BlockQ3K>()),
            Self::Q4_K => ("q4_k", QK, size_of::<BlockQ4K>()),
            Self::Q6_K => ("q6_k", QK, size_of::<BlockQ6K>()),
        }
    }

    /// Weights in one block.
    pub const fn block_len(self) -> usize {
        self.facts().1
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        self.facts().2
    }

    /// Bytes of a row of `cols` weights, or `None` where `cols` is no multiple of the block or the product overflows.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// The lower-case name of the command line and of the documents.
    pub const fn name(self) -> &'static str {
        self.facts().0
    }

    /// The inverse of [`DType::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// The type with this ggml number.
    pub fn from_ggml(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| *t as u32 == id)
    }

    /// Whether products with this type use integer arithmetic on quantized activations ([`BlockQ8`], or [`BlockQ8x8`] with `q8_0`).
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }
}

/// 32 weights: `w[j] = d * (nibble(j) - 8)`; low nibbles are weights 0..16, high nibbles 16..32.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq)]
#[repr(C)]
pub struct BlockQ4_0 {
    /// Scale.
    pub d: f16,
    /// Nibbles.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ4_0>() == 18);

impl BlockQ4_0 {
    /// The nibbles less 8, by column: -8..=7.
    pub fn quants(&self) -> [i8; QK_SMALL] {
        let mut q = [0; QK_SMALL];
        for (k, pair) in self.qs.into_iter().enumerate() {
            q[k] = (pair & 15) as i8 - 8;
            q[k + 16] = (pair >> 4) as i8 - 8;
        }
        q
    }
}

/// 32 weights: `w[j] = d * qs[j]`.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// Scale.
    pub d: f16,
    /// Signed weights.
    pub qs: [i8; 32],
}
const _: () = assert!(size_of::<BlockQ8_0>() == 34);

/// 256 weights in 16 sub-blocks of 16: `w = d * scale[s] * (q - 4)`, `q` of 3 bits, `scale` -32..=31 of 6 bits.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq)]
#[repr(C)]
pub struct BlockQ3K {
    /// The third bit of `q`: bit `j` of byte `k` is that of column `32 j + k`.
    pub hmask: [u8; 32],
    /// The low two bits of `q`: bits `2 j` and `2 j + 1` of byte `32 h + k` are those of column `128 h + 32 j + k`.
    pub qs: [u8; 64],
    /// Sixteen 6-bit numbers, the scales plus 32. Byte `s < 8` has the low 4 bits of numbers `s` (low nibble) and `s + 8`, byte
    /// `8 + j` from bit `2 i` on the upper 2 bits of number `4 i + j`.
    pub scales: [u8; 12],
    /// Scale of the scales.
    pub d: f16,
}
const _: () = assert!(size_of::<BlockQ3K>() == 110);

impl BlockQ3K {
    /// The numbers of 3 bits less 4, by column: -4..=3.
    pub fn quants(&self) -> [i8; QK] {
        let mut q = [0; QK];
        for (j, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (k, q) in q.iter_mut().enumerate() {
                let (low, high) = (self.qs[32 * (j / 4) + k] >> (2 * (j % 4)), self.hmask[k] >> j);
                *q = ((low & 3) | (high & 1) << 2) as i8 - 4;
            }
        }
        q
    }

    /// `hmask` and `qs` of 3-bit numbers, by column: [`BlockQ3K::quants`] are those less 4.
    #[inline]
    pub fn pack_quants(q: &[u8; QK]) -> ([u8; 32], [u8; 64]) {
        let (mut hmask, mut qs) = ([0; 32], [0; 64]);
        for (j, q) in q.as_chunks::<32>().0.iter().enumerate() {
            for (k, q) in q.iter().enumerate() {
                qs[32 * (j / 4) + k] |= (q & 3) << (2 * (j % 4));
                hmask[k] |= (q >> 2 & 1) << j;
            }
        }
        (hmask, qs)
    }

    /// The sixteen scales, -32..=31.
    pub fn unpack_scales(&self) -> [i8; 16] {
        std::array::from_fn(|s| {
            let (low, high) = (self.scales[s % 8] >> (4 * (s / 8)), self.scales[8 + s % 4] >> (2 * (s / 4)));
            ((low & 15) | (high & 3) << 4) as i8 - 32
        })
    }

    /// The inverse of [`BlockQ3K::unpack_scales`].
    #[inline]
    pub fn pack_scales(scales: &[i8; 16]) -> [u8; 12] {
        let mut packed = [0; 12];
        for (s, scale) in scales.iter().enumerate() {
            let number = (scale + 32) as u8;
            packed[s % 8] |= (number & 15) << (4 * (s / 8));
            packed[8 + s % 4] |= (number >> 4) << (2 * (s / 4));
        }
        packed
    }
}

/// 256 weights in 8 sub-blocks of 32: `w = d * scale[s] * nibble - dmin * min[s]`, scales and mins of 6 bits.
/// `qs[32 * p..][..32]` holds sub-block `2p` in its low nibbles and `2p + 1` in its high ones.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq)]
#[repr(C)]
pub struct BlockQ4K {
    /// Scale of the scales.
    pub d: f16,
    /// Scale of the mins.
    pub dmin: f16,
    /// Eight 6-bit scales and eight 6-bit mins, packed as ggml packs them.
    pub scales: [u8; 12],
    /// Nibbles.
    pub qs: [u8; 128],
}
const _: () = assert!(size_of::<BlockQ4K>() == 144);

impl BlockQ4K {
    /// The nibbles, by column: 0..=15.
    pub fn quants(&self) -> [i8; QK] {
        let mut q = [0; QK];
        for (pair, shared) in q.chunks_exact_mut(64).zip(self.qs.chunks_exact(32)) {
            for (k, byte) in shared.iter().enumerate() {
                pair[k] = (byte & 15) as i8;
                pair[k + 32] = (byte >> 4) as i8;
            }
        }
        q
    }

    /// The eight scales and the eight mins, each of 6 bits.
    ///
    /// Bytes 0..4 hold scales 0..4 in their low 6 bits, bytes 4..8 mins 0..4; bytes 8..12 hold the low 4 bits of
    /// scales 4..8 (low nibble) and mins 4..8 (high nibble), whose upper 2 bits lie above those first eight.
    pub fn unpack_scales(&self) -> ([u8; 8], [u8; 8]) {
        // Four bytes at a time.
        let [a, b, c]: [u32; 3] = bytemuck::cast(self.scales);
        let upper = |word: u32| (word >> 2) & 0x3030_3030;
        let scales = [a & 0x3f3f_3f3f, (c & 0x0f0f_0f0f) | upper(a)];
        let mins = [b & 0x3f3f_3f3f, ((c >> 4) & 0x0f0f_0f0f) | upper(b)];
        (bytemuck::cast(scales), bytemuck::cast(mins))
    }

    /// The inverse of [`BlockQ4K::unpack_scales`]. Values above 63 lose their upper bits.
    pub fn pack_scales(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
        let mut q = [0; 12];
        for j in 0..4 {
            q[j] = (scales[j] & 63) | ((scales[j + 4] & 0x30) << 2);
            q[j + 4] = (mins[j] & 63) | ((mins[j + 4] & 0x30) << 2);
            q[j + 8] = (scales[j + 4] & 15) | ((mins[j + 4] & 15) << 4);
        }
        q
    }
}

/// 256 weights in 16 sub-blocks of 16: `w = d * scales[s] * (q - 32)`, `q` of 6 bits.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq)]
#[repr(C)]
pub struct BlockQ6K {
    /// Low 4 bits.
    pub ql: [u8; 128],
    /// High 2 bits.
    pub qh: [u8; 64],
    /// Signed scales.
    pub scales: [i8; 16],
    /// Scale of the scales.
    pub d: f16,
}
const _: () = assert!(size_of::<BlockQ6K>() == 210);

impl BlockQ6K {
    /// The 6-bit numbers less 32, by column: -32..=31. Column `k` has the scale `scales[k / 16]`.
    pub fn quants(&self) -> [i8; QK] {
        let mut q = [0; QK];
        // Each half of 128 columns has 64 bytes of low and 32 bytes of high bits, each byte shared by columns 32 apart.
        for (half, out) in q.chunks_exact_mut(128).enumerate() {
            let (ql, qh) = (&self.ql[64 * half..][..64], &self.qh[32 * half..][..32]);
            for k in 0..32 {
                let join = |low: u8, high: u8| (low | ((high & 3) << 4)) as i8 - 32;
                out[k] = join(ql[k] & 15, qh[k]);
                out[k + 32] = join(ql[k + 32] & 15, qh[k] >> 2);
                out[k + 64] = join(ql[k] >> 4, qh[k] >> 4);
                out[k + 96] = join(ql[k + 32] >> 4, qh[k] >> 6);
            }
        }
        q
    }

    /// `ql` and `qh` of 6-bit numbers, by column: [`BlockQ6K::quants`] are those less 32.
    #[inline]
    pub fn pack_quants(q: &[u8; QK]) -> ([u8; 128], [u8; 64]) {
        let (mut ql, mut qh) = ([0; 128], [0; 64]);
        for half in 0..2 {
            for k in 0..32 {
                let q = |part: usize| q[128 * half + 32 * part + k];
                ql[64 * half + k] = (q(0) & 15) | ((q(2) & 15) << 4);
                ql[64 * half + 32 + k] = (q(1) & 15) | ((q(3) & 15) << 4);
                qh[32 * half + k] =
                    (q(0) >> 4) | ((q(1) >> 4) << 2) | ((q(2) >> 4) << 4) | ((q(3) >> 4) << 6);
            }
        }
        (ql, qh)
    }
}

/// 256 activations: `x[j] = d * qs[j]`, `qs` within ±127 (the kernels rely on it), with the sum of each 32 of them.
/// A row of activations that is no multiple of 256 long is filled up with zeros.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq)]
#[repr(C, align(16))]
pub struct BlockQ8 {
    /// Signed activations.
    pub qs: [i8; 256],
    /// Sums of `qs` over each sub-block of 32.
    pub sums: [i16; 8],
    /// Scale.
    pub d: f32,
    /// Zero: fills the block up to its alignment.
    pub pad: [u32; 3],
}
const _: () = assert!(size_of::<BlockQ8>() == 288);

/// 256 activations in eight blocks of 32: `x[j] = d[j / 32] * qs[j]`, `qs` within ±127. What 8 bits cost is then as little as it is of weights in `Q8_0`,
/// with which they are multiplied. A row of activations that is no multiple of 256 long is filled up with zeros.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq)]
#[repr(C, align(16))]
pub struct BlockQ8x8 {
    /// Signed activations.
    pub qs: [i8; 256],
    /// -128 times the sum of each 32 of them: where products begin whose weights have 128 added, which makes them unsigned.
    pub starts: [i32; 8],
    /// Scale of each 32.
    pub d: [f32; 8],
}
const _: () = assert!(size_of::<BlockQ8x8>() == 320);
