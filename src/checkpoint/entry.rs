//! One tensor as a file describes it, whatever the format of the file.

use std::fmt;

use half::{f16, slice::HalfFloatSliceExt};

/// The type of a stored tensor's elements. Three can be read as weights; the others are known by their name only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
    /// Anything else, with the file's own name for it.
    Other(String),
}

impl ElementType {
    /// The type with this safetensors name (`F32`, `BF16`, `I8`, …).
    pub fn from_safetensors(name: &str) -> Self {
        match name {
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            other => Self::Other(other.to_owned()),
        }
    }

    /// The type of the storages of this PyTorch class (`FloatStorage`, …); `None` for a class that is no storage.
    pub fn from_torch(class: &str) -> Option<Self> {
        Some(match class {
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::Bf16,
            "DoubleStorage" | "LongStorage" | "IntStorage" | "ShortStorage" | "CharStorage"
            | "ByteStorage" | "BoolStorage" => Self::Other(class.to_owned()),
            _ => return None,
        })
    }

    /// Bytes of one element; `None` for a type that is not known, or is smaller than a byte.
    pub fn bytes(&self) -> Option<u64> {
        Some(match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other(name) => match name.as_str() {
                "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 1,
                "CharStorage" | "ByteStorage" | "BoolStorage" => 1,
                "I16" | "U16" | "ShortStorage" => 2,
                "I32" | "U32" | "IntStorage" => 4,
                "I64" | "U64" | "F64" | "C64" | "LongStorage" | "DoubleStorage" => 8,
                _ => return None,
            },
        })
    }

    /// Bytes of one element of a weight; `None` for a type that weights cannot have.
    pub const fn weight_bytes(&self) -> Option<u64> {
        match self {
            Self::F32 => Some(4),
            Self::F16 | Self::Bf16 => Some(2),
            Self::Other(_) => None,
        }
    }

    /// Appends little-endian elements to `out`, widened without loss. A type that weights cannot have adds nothing.
    pub fn widen(&self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::F32 => out.extend(words(bytes).map(f32::from_le_bytes)),
            Self::Bf16 => {
                out.extend(words(bytes).map(|w| f32::from_bits(u32::from(u16::from_le_bytes(w)) << 16)))
            }
            Self::F16 => {
                let halves: Vec<f16> = words(bytes).map(f16::from_le_bytes).collect();
                let start = out.len();
                out.resize(start + halves.len(), 0.0);
                halves.convert_to_f32_slice(&mut out[start..]);
            }
            Self::Other(_) => {}
        }
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks().0.iter().copied()
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Other(name) => name,
        })
    }
}

/// One tensor of a file. Whoever makes an `Entry` has checked that its elements lie inside of the file, dense and
/// row-major, wherever [`ElementType::bytes`] knows their size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name in the checkpoint.
    pub name: String,
    /// Type of the elements.
    pub element: ElementType,
    /// Shape, outermost first.
    pub shape: Vec<u64>,
    /// Byte of the file at which the elements begin.
    pub offset: u64,
}

impl Entry {
    /// Bytes of the elements, where their size is known and can be counted.
    pub(super) fn bytes(&self) -> Option<u64> {
        elements(&self.shape)?.checked_mul(self.element.bytes()?)
    }
}

/// The product of the dims, if it does not overflow.
pub(super) fn elements(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_and_bf16_is_widened_exactly() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let (mut halves, mut brains) = (vec![1.0], Vec::new());
        ElementType::F16.widen(&bytes, &mut halves);
        ElementType::Bf16.widen(&bytes, &mut brains);
        assert_eq!(halves[0], 1.0, "widen appends");
        for (bits, (half, brain)) in (0..=u16::MAX).zip(halves[1..].iter().zip(&brains)) {
            assert!(f16::from_bits(bits).is_nan() || *half == f16::from_bits(bits).to_f32());
            assert_eq!(brain.to_bits(), u32::from(bits) << 16);
        }
    }

    #[test]
    fn floats_keep_their_bits() {
        let floats = [1.5f32, -0.0, f32::MIN_POSITIVE, f32::INFINITY];
        let bytes: Vec<u8> = floats.iter().flat_map(|f| f.to_le_bytes()).collect();
        let mut out = Vec::new();
        ElementType::F32.widen(&bytes, &mut out);
        assert!(out.iter().zip(floats).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert_eq!(out.len(), floats.len());
    }

    #[test]
    fn a_shape_too_large_to_count_is_noticed() {
        assert_eq!(elements(&[]), Some(1));
        assert_eq!(elements(&[3, 0]), Some(0));
        assert_eq!(elements(&[1 << 40, 1 << 40]), None);
    }
}
