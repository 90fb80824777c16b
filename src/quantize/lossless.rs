//! Quantized matrices of a checkpoint in blocks that hold them exactly: codes move, and no weight becomes a float.

use std::ops::Range;

use bytemuck::bytes_of;
use half::f16;
use yuan_kernels::{BlockQ4_0, BlockQ8_0, DType};

use crate::checkpoint::gptq::{Facts, Packed};

/// Weights of a block.
const BLOCK: usize = 32;
/// Rows that are made together: a line of the cache holds a word of each.
const TOGETHER: usize = 16;

/// Whether rows of `dtype` hold a quantized matrix exactly.
///
/// # Errors
/// What they cannot hold.
pub fn fits(facts: &Facts, dtype: DType) -> Result<(), &'static str> {
    match dtype {
        DType::F32 => return Ok(()),
        DType::Q4_0 if facts.bits != 4 => return Err("its codes have 8 bits"),
        DType::Q4_0 | DType::Q8_0 if !facts.in_order => {
            return Err("neighbouring columns are of different groups (act-order)");
        }
        DType::Q4_0 if !facts.symmetric => return Err("its zeros are not all 8"),
        DType::Q8_0 if !facts.bytes => return Err("codes less their zeros are not all within -128 to 127"),
        DType::Q4_0 | DType::Q8_0 => {}
        _ => return Err("this type has no scale of its own for each group"),
    }
    if facts.half_scales { Ok(()) } else { Err("f16 does not hold its scales") }
}

/// The rows `rows` of a matrix that fits `dtype` as blocks, each row at the beginning of `row_bytes` bytes of `out`.
///
/// # Panics
/// If `dtype` is neither `q4_0` nor `q8_0`, or `out` has no room for the rows.
pub(super) fn blocks(packed: &Packed, dtype: DType, rows: Range<usize>, row_bytes: usize, out: &mut [u8]) {
    let block_bytes = dtype.block_bytes();
    for (first, out) in rows.step_by(TOGETHER).zip(out.chunks_mut(TOGETHER * row_bytes)) {
        for b in 0..packed.inputs() / BLOCK {
            for (row, out) in (first..).zip(out.chunks_exact_mut(row_bytes)) {
                let out = &mut out[b * block_bytes..][..block_bytes];
                let (scale, zero) = packed.scale_and_zero(b * BLOCK, row);
                let d = f16::from_f32(scale);
                let word = |w: usize| packed.word(b * (BLOCK / packed.per_word()) + w, row);
                match (dtype, packed.per_word()) {
                    (DType::Q4_0, 8) => out.copy_from_slice(bytes_of(&BlockQ4_0 { d, qs: nibbles(word) })),
                    (DType::Q8_0, 8) => {
                        let codes: [u64; 4] = std::array::from_fn(|w| spread(word(w)));
                        let qs =
                            bytemuck::cast::<_, [u8; BLOCK]>(codes).map(|code| code.wrapping_sub(zero) as i8);
                        out.copy_from_slice(bytes_of(&BlockQ8_0 { d, qs }));
                    }
                    (DType::Q8_0, 4) => {
                        let codes: [u32; 8] = std::array::from_fn(word);
                        let qs =
                            bytemuck::cast::<_, [u8; BLOCK]>(codes).map(|code| code.wrapping_sub(zero) as i8);
                        out.copy_from_slice(bytes_of(&BlockQ8_0 { d, qs }));
                    }
                    (other, n) => unreachable!("{} of {n} codes in a word", other.name()),
                }
            }
        }
    }
}

/// The bytes of a `q4_0` block: its first sixteen codes in the low nibbles, the others in the high ones.
fn nibbles(word: impl Fn(usize) -> u32) -> [u8; 16] {
    let both: [u64; 2] = std::array::from_fn(|w| spread(word(w)) | spread(word(w + 2)) << 4);
    bytemuck::cast(both)
}

/// Eight codes of 4 bits as bytes.
const fn spread(word: u32) -> u64 {
    let mut x = word as u64;
    x = (x | x << 16) & 0x0000_FFFF_0000_FFFF;
    x = (x | x << 8) & 0x00FF_00FF_00FF_00FF;
    (x | x << 4) & 0x0F0F_0F0F_0F0F_0F0F
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_keep_their_order() {
        assert_eq!(spread(0x8765_4321).to_le_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
        let words = [0x7654_3210, 0xFEDC_BA98, 0x89AB_CDEF, 0x0123_4567];
        let bytes = nibbles(|w| words[w]);
        assert_eq!(bytes.map(|b| b & 15), std::array::from_fn(|i| i as u8));
        assert_eq!(bytes.map(|b| b >> 4), std::array::from_fn(|i| 15 - i as u8));
    }

    #[test]
    fn a_form_that_loses_something_is_named() {
        let exact = Facts { bits: 4, in_order: true, symmetric: true, half_scales: true, bytes: true };
        for dtype in [DType::Q4_0, DType::Q8_0, DType::F32] {
            assert_eq!(fits(&exact, dtype), Ok(()));
        }
        assert!(fits(&exact, DType::Q4_K).is_err() && fits(&exact, DType::F16).is_err());
        let shuffled = Facts { in_order: false, ..exact };
        let other_zeros = Facts { symmetric: false, ..exact };
        let wide = Facts { bits: 8, bytes: false, symmetric: false, ..exact };
        let brains = Facts { half_scales: false, ..exact };
        for (facts, q4_0, q8_0) in [
            (shuffled, "act-order", "act-order"),
            (other_zeros, "zeros", ""),
            (wide, "8 bits", "-128 to 127"),
            (brains, "scales", "scales"),
        ] {
            let says = |dtype| fits(&facts, dtype).err().unwrap_or_default();
            assert!(says(DType::Q4_0).contains(q4_0) && says(DType::Q8_0).contains(q8_0));
            assert_eq!(says(DType::Q8_0).is_empty(), q8_0.is_empty());
            assert_eq!(fits(&facts, DType::F32), Ok(()));
        }
    }
}
