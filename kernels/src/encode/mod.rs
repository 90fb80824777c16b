//! Weights to blocks: the encoders of every quantized format.
//!
//! Each encoder is written once, in plain Rust over fixed lanes, and compiled once more for AVX2, where the same loops
//! become wider vectors. No sum is reordered and nothing is fused, so the blocks are the same on every machine.

mod grid;
mod q4_k;
mod sixteens;
mod small;

use bytemuck::{Pod, bytes_of};

use crate::hadamard::rotate;
pub use grid::Columns;
use grid::{accumulate, feedback, weighted};
use q4_k::GridQ4K;
use sixteens::{GridOf, Q3K, Q6K};
use small::{GridQ4_0, GridQ8_0};

type GridQ3K = GridOf<Q3K>;
type GridQ6K = GridOf<Q6K>;

/// An encoder of one format: whole blocks of finite weights into exactly the bytes that they take.
pub type Encoder = fn(weights: &[f32], out: &mut [u8]);

/// An encoder that weighs the squared error of each weight by its importance, above 0: whole blocks, as by an [`Encoder`].
pub type Weighted = fn(weights: &[f32], importance: &[f32], out: &mut [u8]);

/// An encoder of 256 weights of a row, column by column: what a column loses is made up for in those behind it. Its arguments are
/// `(weights, moved, columns, errors, out)`.
///
/// `moved` are the weights of the row from the block's first on, with what the columns before have asked for. `errors` receives `weights` less the values
/// of the blocks in `out`.
pub type Feedback = fn(&[f32], &mut [f32], &Columns<'_>, &mut [f32], &mut [u8]);

/// `c += a b`, of `(a, depth, b, stride, c, width)`: rows of `depth` numbers in `a`, of `width` in `b` and `c`, `stride` apart in both. Added up in the order of the
/// rows of `b`, on every machine.
pub type Accumulate = fn(&[f32], usize, &[f32], usize, &mut [f32], usize);

/// The two ways of encoding by importance.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct ByImportance {
    pub weighted: Weighted,
    pub feedback: Feedback,
}

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
    pub q4_0_by_importance: ByImportance,
    pub q8_0_by_importance: ByImportance,
    pub q3_k_by_importance: ByImportance,
    pub q4_k_by_importance: ByImportance,
    pub q6_k_by_importance: ByImportance,
    pub accumulate: Accumulate,
    pub rotate: Rotation,
}

static BASELINE: Encoders = Encoders {
    name: "baseline",
    q4_0: |weights, out| each(weights, out, small::q4_0),
    q8_0: |weights, out| each(weights, out, small::q8_0),
    q3_k: |weights, out| each(weights, out, sixteens::encode::<Q3K>),
    q4_k: |weights, out| each(weights, out, q4_k::encode),
    q6_k: |weights, out| each(weights, out, sixteens::encode::<Q6K>),
    q4_0_by_importance: ByImportance { weighted: weighted::<GridQ4_0, _>, feedback: feedback::<GridQ4_0, _> },
    q8_0_by_importance: ByImportance { weighted: weighted::<GridQ8_0, _>, feedback: feedback::<GridQ8_0, _> },
    q3_k_by_importance: ByImportance { weighted: weighted::<GridQ3K, _>, feedback: feedback::<GridQ3K, _> },
    q4_k_by_importance: ByImportance { weighted: weighted::<GridQ4K, _>, feedback: feedback::<GridQ4K, _> },
    q6_k_by_importance: ByImportance { weighted: weighted::<GridQ6K, _>, feedback: feedback::<GridQ6K, _> },
    accumulate,
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
    use super::{
        ByImportance, Columns, Encoders, GridQ3K, GridQ4_0, GridQ4K, GridQ6K, GridQ8_0, Q3K, Q6K, each, grid,
        q4_k, sixteens, small,
    };
    use crate::hadamard;

    pub fn table() -> Option<&'static Encoders> {
        /// A plain function of one that needs the instructions.
        macro_rules! enter {
            ($function:ident) => {
                // SAFETY: `table` gives `TABLE` away only where this CPU has AVX2.
                |from, to| unsafe { $function(from, to) }
            };
        }
        /// The same, of both ways of encoding by importance.
        macro_rules! by_importance {
            ($way:ident) => {
                ByImportance {
                    // SAFETY: `table` gives `TABLE` away only where this CPU has AVX2.
                    weighted: |weights, importance, out| unsafe { $way::weighted(weights, importance, out) },
                    // SAFETY: as above.
                    feedback: |weights, moved, columns, errors, out| unsafe {
                        $way::feedback(weights, moved, columns, errors, out)
                    },
                }
            };
        }
        static TABLE: Encoders = Encoders {
            name: "avx2",
            q4_0: enter!(q4_0),
            q8_0: enter!(q8_0),
            q3_k: enter!(q3_k),
            q4_k: enter!(q4_k),
            q6_k: enter!(q6_k),
            q4_0_by_importance: by_importance!(q4_0_by_importance),
            q8_0_by_importance: by_importance!(q8_0_by_importance),
            q3_k_by_importance: by_importance!(q3_k_by_importance),
            q4_k_by_importance: by_importance!(q4_k_by_importance),
            q6_k_by_importance: by_importance!(q6_k_by_importance),
            // SAFETY: as above.
            accumulate: |a, depth, b, stride, c, width| unsafe { accumulate(a, depth, b, stride, c, width) },
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
        each(weights, out, sixteens::encode::<Q3K>);
    }

    #[target_feature(enable = "avx2")]
    fn q4_k(weights: &[f32], out: &mut [u8]) {
        each(weights, out, q4_k::encode);
    }

    #[target_feature(enable = "avx2")]
    fn q6_k(weights: &[f32], out: &mut [u8]) {
        each(weights, out, sixteens::encode::<Q6K>);
    }

    /// Both ways of encoding by importance on a grid, compiled for AVX2.
    macro_rules! compile {
        ($($way:ident: $grid:ty;)*) => {$(
            mod $way {
                use super::*;

                #[target_feature(enable = "avx2")]
                pub fn weighted(weights: &[f32], importance: &[f32], out: &mut [u8]) {
                    grid::weighted::<$grid, _>(weights, importance, out);
                }

                #[target_feature(enable = "avx2")]
                pub fn feedback(
                    weights: &[f32],
                    moved: &mut [f32],
                    columns: &Columns<'_>,
                    errors: &mut [f32],
                    out: &mut [u8],
                ) {
                    grid::feedback::<$grid, _>(weights, moved, columns, errors, out);
                }
            }
        )*};
    }
    compile! {
        q4_0_by_importance: GridQ4_0;
        q8_0_by_importance: GridQ8_0;
        q3_k_by_importance: GridQ3K;
        q4_k_by_importance: GridQ4K;
        q6_k_by_importance: GridQ6K;
    }

    #[target_feature(enable = "avx2")]
    fn accumulate(a: &[f32], depth: usize, b: &[f32], stride: usize, c: &mut [f32], width: usize) {
        grid::accumulate(a, depth, b, stride, c, width);
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
