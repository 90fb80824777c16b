//! Block formats: how weights and activations lie in memory, byte for byte as GGUF files hold them.
//!
//! The layouts of `Q4_0`, `Q8_0`, `Q4_K` and `Q6_K` are those of the GGUF specification (ggml `ggml-common.h`);
//! [`BlockQ8`] is our own activation block.

use bytemuck::{Pod, Zeroable};
use half::f16;

/// Weights in one superblock, and columns in one [`BlockQ8`].
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
    Q4_K = 12,
    Q6_K = 14,
    Bf16 = 30,
}

impl DType {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::F32, Self::F16, Self::Q4_0, Self::Q8_0, Self::Q4_K, Self::Q6_K, Self::Bf16];

    /// Weights in one block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q8_0 => QK_SMALL,
            Self::Q4_K | Self::Q6_K => QK,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => size_of::<BlockQ4_0>(),
            Self::Q8_0 => size_of::<BlockQ8_0>(),
            Self::Q4_K => size_of::<BlockQ4K>(),
            Self::Q6_K => size_of::<BlockQ6K>(),
        }
    }

    /// Bytes of a row of `cols` weights, or `None` where `cols` is no multiple of the block or the product overflows.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if cols % self.block_len() != 0 {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// The lower-case name of the command line and of the documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q4_0 => "q4_0",
            Self::Q8_0 => "q8_0",
            Self::Q4_K => "q4_k",
            Self::Q6_K => "q6_k",
            Self::Bf16 => "bf16",
        }
    }

    /// The inverse of [`DType::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// The type with this ggml number.
    pub fn from_ggml(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| *t as u32 == id)
    }

    /// Whether products with this type use integer arithmetic on quantized activations ([`BlockQ8`]).
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
    /// The eight scales and the eight mins, each of 6 bits.
    ///
    /// Bytes 0..4 hold scales 0..4 in their low 6 bits, bytes 4..8 mins 0..4; bytes 8..12 hold the low 4 bits of
    /// scales 4..8 (low nibble) and mins 4..8 (high nibble), whose upper 2 bits lie above those first eight.
    pub fn unpack_scales(&self) -> ([u8; 8], [u8; 8]) {
        let q = &self.scales;
        let (mut scales, mut mins) = ([0; 8], [0; 8]);
        for j in 0..4 {
            scales[j] = q[j] & 63;
            mins[j] = q[j + 4] & 63;
            scales[j + 4] = (q[j + 8] & 15) | ((q[j] >> 6) << 4);
            mins[j + 4] = (q[j + 8] >> 4) | ((q[j + 4] >> 6) << 4);
        }
        (scales, mins)
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

/// 256 activations: `x[j] = d * qs[j]`, `qs` within ±127, with the sum of each 32 of them.
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
