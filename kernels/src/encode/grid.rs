//! Encoding by importance: what a block's weights can become, once its scales are chosen, and error feedback on top of it.

use bytemuck::{Pod, bytes_of};

use crate::blocks::QK;

/// What the squared errors of the columns of a block are worth, which lie side by side in `S` sub-blocks of `N`.
pub(super) trait Worth<const S: usize, const N: usize> {
    /// Column `k` of sub-block `s`.
    fn of(&self, k: usize, s: usize) -> f32;
}

/// All columns are worth 1. Products with it are left out by the compiler: the plain encoders pay nothing for [`Worth`].
pub(super) struct Same;

impl<const S: usize, const N: usize> Worth<S, N> for Same {
    #[inline(always)]
    fn of(&self, _: usize, _: usize) -> f32 {
        1.0
    }
}

impl<const S: usize, const N: usize> Worth<S, N> for [[f32; S]; N] {
    #[inline(always)]
    fn of(&self, k: usize, s: usize) -> f32 {
        self[k][s]
    }
}

/// The values that the `N` weights of a block can take.
pub(super) trait Grid<const N: usize>: Sized {
    /// The block.
    type Block: Pod;
    /// The grid with the least squared error, weighed by the importance of the columns, which is above 0, among candidates.
    fn fit(weights: &[f32; N], importance: &[f32; N]) -> Self;
    /// The quant, a whole number, that is nearest to a weight in a column, and its value.
    fn nearest(&self, column: usize, weight: f32) -> (f32, f32);
    /// The block with these quants.
    fn pack(&self, quants: &[f32; N]) -> Self::Block;
}

/// Block by block, each weight to the nearest value.
#[inline(always)]
pub(super) fn weighted<G: Grid<N>, const N: usize>(weights: &[f32], importance: &[f32], out: &mut [u8]) {
    let (weights, rest) = weights.as_chunks::<N>();
    let (importance, _) = importance.as_chunks::<N>();
    assert!(rest.is_empty() && importance.len() == weights.len(), "whole blocks");
    assert_eq!(out.len(), weights.len() * size_of::<G::Block>(), "bytes of the blocks");
    for ((weights, importance), out) in
        weights.iter().zip(importance).zip(out.chunks_exact_mut(size_of::<G::Block>()))
    {
        let grid = G::fit(weights, importance);
        let mut quants = [0.0; N];
        for (k, (quant, weight)) in quants.iter_mut().zip(weights).enumerate() {
            *quant = grid.nearest(k, *weight).0;
        }
        out.copy_from_slice(bytes_of(&grid.pack(&quants)));
    }
}

/// 256 weights of a row, column by column: what a column loses is made up for in those behind it.
///
/// `moved` are the weights with what the columns before have asked for, of this block first; the `256` rows of `factor`, `stride` apart, say what an error of
/// each column asks of the columns from the block's first on. `errors` receives `weights` less the values of the blocks in `out`.
#[inline(always)]
pub(super) fn feedback<G: Grid<N>, const N: usize>(
    weights: &[f32],
    moved: &mut [f32],
    importance: &[f32],
    factor: &[f32],
    stride: usize,
    errors: &mut [f32],
    out: &mut [u8],
) {
    let moved = &mut moved[..QK];
    assert!(weights.len() == QK && importance.len() == QK && errors.len() == QK, "256 columns");
    assert_eq!(out.len(), QK / N * size_of::<G::Block>(), "bytes of the blocks");
    for (b, out) in out.chunks_exact_mut(size_of::<G::Block>()).enumerate() {
        let first = b * N;
        let block = |x: &[f32]| <[f32; N]>::try_from(&x[first..first + N]).expect("a block");
        let grid = G::fit(&block(moved), &block(importance));
        let mut quants = [0.0; N];
        for (k, nearest) in quants.iter_mut().enumerate() {
            let c = first + k;
            let (quant, value) = grid.nearest(k, moved[c]);
            *nearest = quant;
            let error = weights[c] - value;
            errors[c] = error;
            let asked = &factor[c * stride..][..QK];
            for (moved, asked) in moved[c + 1..].iter_mut().zip(&asked[c + 1..]) {
                *moved += error * asked;
            }
        }
        out.copy_from_slice(bytes_of(&grid.pack(&quants)));
    }
}

/// `c += a b` for rows of `depth` numbers in `a` and of `width` in `b` and `c`, which are `stride` apart in both; added up in the order of the
/// rows of `b`.
#[inline(always)]
pub(super) fn accumulate(a: &[f32], depth: usize, b: &[f32], stride: usize, c: &mut [f32], width: usize) {
    /// Columns that stay in the first cache for all rows.
    const TILE: usize = 256;
    for first in (0..width).step_by(TILE) {
        let tile = TILE.min(width - first);
        for k in 0..depth {
            let b = &b[k * stride + first..][..tile];
            for (a, c) in a.chunks_exact(depth).zip(c.chunks_mut(stride)) {
                let a = a[k];
                for (c, b) in c[first..][..tile].iter_mut().zip(b) {
                    *c += a * b;
                }
            }
        }
    }
}
