//! Weights to blocks: the encoders of every quantized format.
//!
//! Each encoder is written once, in plain Rust over fixed lanes, and compiled once more for AVX2, where the same loops
//! become wider vectors. No sum is reordered and nothing is fused, so the blocks are the same on every machine.

mod q4_k;
mod sixteens;
mod small;

use bytemuck::{Pod, bytes_of};

use crate::hadamard::rotate;

/// An encoder of one format: whole blocks of finite weights into exactly the bytes that they take.
pub type Encoder = fn(weights: &[f32], out: &mut [u8]);

/// The rotation of blocks of `width` numbers, a power of two, in place (`hadamard.rs`).
pub type Rotation = fn(x: &mut [f32], width: usize);

/// The encoders, all compiled for one instruction set.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Encoders {
    /// `baseline`, `avx2`
    pub name: &'static str,
    pub q4_0: Encoder,
    pub q8_0: Encoder,
    pub q3_k: Encoder,
    pub q4_k: Encoder,
    pub q6_k: Encoder,
    pub rotate: Rotation,
}

static BASELINE: Encoders = Encoders {
    name: "baseline",
    q4_0: |weights, out| each(weights, out, small::q4_0),
    q8_0: |weights, out| each(weights, out, small::q8_0),
    q3_k: |weights, out| each(weights, out, sixteens::q3_k),
    q4_k: |weights, out| each(weights, out, q4_k::encode),
    q6_k: |weights, out| each(weights, out, sixteens::q6_k),
    rotate,
};

/// The encoders that this CPU runs, fastest first. All give the same bytes.
pub fn encoders() -> impl Iterator<Item = &'static Encoders> {
    let tables = [
        #[cfg(target_arch = "x86_64")]
        avx2::table(),
        Some(&BASELINE),
    ];
    tables.into_iter().flatten()
}

/// The fastest encoders that this CPU runs.
pub fn best_encoders() -> &'static Encoders {
    encoders().next().unwrap_or(&BASELINE)
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Encoders, each, q4_k, sixteens, small};
    use crate::hadamard;

    pub fn table() -> Option<&'static Encoders> {
        /// A plain function of one that needs the instructions.
        macro_rules! enter {
            ($function:ident) => {
                // SAFETY: `table` gives `TABLE` away only where this CPU has AVX2.
                |from, to| unsafe { $function(from, to) }
            };
        }
        static TABLE: Encoders = Encoders {
            name: "avx2",
            q4_0: enter!(q4_0),
            q8_0: enter!(q8_0),
            q3_k: enter!(q3_k),
            q4_k: enter!(q4_k),
            q6_k: enter!(q6_k),
            rotate: enter!(rotate),
        };
        is_x86_feature_detected!("avx2").then_some(&TABLE)
    }

    #[target_feature(enable = "avx2")]
    fn q4_0(weights: &[f32], out: &mut [u8]) {
        each(weights, out, small::q4_0);
    }

    #[target_feature(enable = "avx2")]
    fn q8_0(weights: &[f32], out: &mut [u8]) {
        each(weights, out, small::q8_0);
    }

    #[target_feature(enable = "avx2")]
    fn q3_k(weights: &[f32], out: &mut [u8]) {
        each(weights, out, sixteens::q3_k);
    }

    #[target_feature(enable = "avx2")]
    fn q4_k(weights: &[f32], out: &mut [u8]) {
        each(weights, out, q4_k::encode);
    }

    #[target_feature(enable = "avx2")]
    fn q6_k(weights: &[f32], out: &mut [u8]) {
        each(weights, out, sixteens::q6_k);
    }

    #[target_feature(enable = "avx2")]
    fn rotate(x: &mut [f32], width: usize) {
        hadamard::rotate(x, width);
    }
}

/// Block by block: one `B` of `N` weights.
#[inline(always)]
fn each<B: Pod, const N: usize>(weights: &[f32], out: &mut [u8], encode: impl Fn(&[f32; N]) -> B) {
    let (blocks, rest) = weights.as_chunks();
    assert!(
        rest.is_empty() && out.len() == blocks.len() * size_of::<B>(),
        "bytes of {} weights",
        weights.len()
    );
    for (weights, out) in blocks.iter().zip(out.chunks_exact_mut(size_of::<B>())) {
        out.copy_from_slice(bytes_of(&encode(weights)));
    }
}

/// The weights of `S` sub-blocks of `N`, with those of the same column side by side.
#[inline(always)]
fn side_by_side<const S: usize, const N: usize>(x: &[f32; 256]) -> [[f32; S]; N] {
    let mut columns = [[0.0; S]; N];
    for (s, x) in x.chunks_exact(N).enumerate() {
        for (column, x) in columns.iter_mut().zip(x) {
            column[s] = *x;
        }
    }
    columns
}

/// One number for each lane. (`std::array::from_fn` is at times not inlined, and then compiled for the baseline.)
#[inline(always)]
fn lanes<const S: usize>(number: impl Fn(usize) -> f32) -> [f32; S] {
    let mut lanes = [0.0; S];
    for (s, lane) in lanes.iter_mut().enumerate() {
        *lane = number(s);
    }
    lanes
}

/// The larger one, as one instruction; `f32::max` has more to say about NaN.
#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The smaller one.
#[inline(always)]
fn min(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// 1.5 * 2^23: floats of this size are whole numbers.
const SHIFT: f32 = 12_582_912.0;

/// The nearest whole number, ties to even, of a number below 2^22.
#[inline(always)]
fn round(x: f32) -> f32 {
    (x + SHIFT) - SHIFT
}

/// A whole number, 0..=255, or -128..=127 in two's complement. A cast would have to look after all the others.
#[inline(always)]
fn byte(x: f32) -> u8 {
    (x + SHIFT).to_bits() as u8
}

/// `1 / x`, or 0 where that is no number.
#[inline(always)]
fn inverse(x: f32) -> f32 {
    let inverse = 1.0 / x;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The scale as it is stored. One that is too large for f16 becomes the largest: an infinite one would turn a row's
/// products into NaN.
#[inline(always)]
fn to_f16(scale: f32) -> half::f16 {
    half::f16::from_f32(max(min(scale, 65504.0), -65504.0))
}
