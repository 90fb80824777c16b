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
    /// The value of a quant in a column.
    fn value(&self, column: usize, quant: f32) -> f32;
    /// The block with these quants.
    fn pack(&self, quants: &[f32; N]) -> Self::Block;
    /// The grid on which these quants are nearest to `target`, among those near this one, where blocks have 256 columns: the errors E cost `E cost Eᵀ`. `None` where
    /// no other is looked for.
    #[inline(always)]
    fn refit(&self, _quants: &[f32; N], _target: &[f32; N], _cost: &[f32]) -> Option<Self> {
        None
    }
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

/// What is known of 256 columns of a row.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// What the squared error of each is worth, above 0.
    pub worth: &'a [f32],
    /// Of each column a row that says what an error of it asks of the columns from the first of the 256 on.
    pub factor: &'a [f32],
    /// How far apart the rows of `factor` are.
    pub stride: usize,
    /// What errors of two of the columns cost together, [256, 256], once those behind them have made up for what they can: `U D Uᵀ`, of rows of `factor` and `worth`.
    pub cost: &'a [f32],
}

/// How often scales and quants are looked for again, each with the others as they are.
const ROUNDS: usize = 3;

/// 256 weights of a row, column by column: what a column loses is made up for in those behind it. Then scales and quants are changed as long as all errors together cost less.
///
/// `moved` are the weights with what the columns before have asked for, of this block first. `errors` receives `weights` less the values of the blocks in `out`.
#[inline(always)]
pub(super) fn feedback<G: Grid<N>, const N: usize>(
    weights: &[f32],
    moved: &mut [f32],
    columns: &Columns<'_>,
    errors: &mut [f32],
    out: &mut [u8],
) {
    let Columns { worth, factor, stride, cost } = *columns;
    let moved = &mut moved[..QK];
    assert!(weights.len() == QK && worth.len() == QK && errors.len() == QK, "256 columns");
    assert!(cost.len() == QK * QK, "what 256 columns cost together");
    assert_eq!(out.len(), QK / N * size_of::<G::Block>(), "bytes of the blocks");
    let target = <[f32; QK]>::try_from(&*moved).expect("256 columns");
    let mut grids = Vec::with_capacity(QK / N);
    let (mut quants, mut values) = ([0.0; QK], [0.0; QK]);
    for first in (0..QK).step_by(N) {
        let block = |x: &[f32]| <[f32; N]>::try_from(&x[first..first + N]).expect("a block");
        let grid = G::fit(&block(moved), &block(worth));
        for k in 0..N {
            let c = first + k;
            (quants[c], values[c]) = grid.nearest(k, moved[c]);
            let error = weights[c] - values[c];
            let asked = &factor[c * stride..][..QK];
            for (moved, asked) in moved[c + 1..].iter_mut().zip(&asked[c + 1..]) {
                *moved += error * asked;
            }
        }
        grids.push(grid);
    }
    improve(&mut grids, &mut quants, &mut values, &target, cost);
    for ((error, weight), value) in errors.iter_mut().zip(weights).zip(&values) {
        *error = weight - value;
    }
    for ((grid, quants), out) in
        grids.iter().zip(quants.as_chunks().0).zip(out.chunks_exact_mut(size_of::<G::Block>()))
    {
        out.copy_from_slice(bytes_of(&grid.pack(quants)));
    }
}

/// Coordinate descent: each quant in turn becomes the one that costs the least with all others as they are, and scales become those that suit the quants.
#[inline(always)]
fn improve<G: Grid<N>, const N: usize>(
    grids: &mut Vec<G>,
    quants: &mut [f32; QK],
    values: &mut [f32; QK],
    target: &[f32; QK],
    cost: &[f32],
) {
    let (cost, _) = cost.as_chunks::<QK>();
    let mut asked = asked_by(target, values, cost);
    let mut least = costs(target, values, &asked);
    for _ in 0..ROUNDS {
        let (mut new_quants, mut new_values) = (*quants, *values);
        let refit = |(grid, b): (&G, usize)| {
            let block = |x: &[f32; QK]| <[f32; N]>::try_from(&x[b * N..][..N]).expect("a block");
            grid.refit(&block(quants), &block(target), cost.as_flattened())
        };
        let new_grids: Option<Vec<G>> = grids.iter().zip(0..).map(refit).collect();
        let current = new_grids.as_ref().unwrap_or(grids);
        if new_grids.is_some() {
            for (c, (quant, value)) in new_quants.iter().zip(&mut new_values).enumerate() {
                *value = current[c / N].value(c % N, *quant);
            }
            asked = asked_by(target, &new_values, cost);
        }
        for _ in 0..2 {
            for c in 0..QK {
                let wanted = new_values[c] + asked[c] / cost[c][c];
                let (quant, value) = current[c / N].nearest(c % N, wanted);
                let step = value - new_values[c];
                if step != 0.0 {
                    (new_quants[c], new_values[c]) = (quant, value);
                    asked.iter_mut().zip(&cost[c]).for_each(|(asked, cost)| *asked -= step * cost);
                }
            }
        }
        // What was added up step by step has lost some digits.
        asked = asked_by(target, &new_values, cost);
        let found = costs(target, &new_values, &asked);
        if found.is_nan() || found >= least {
            break;
        }
        (least, *quants, *values) = (found, new_quants, new_values);
        if let Some(new_grids) = new_grids {
            *grids = new_grids;
        }
    }
}

/// Of each column, what all errors ask of it.
#[inline(always)]
fn asked_by(target: &[f32; QK], values: &[f32; QK], cost: &[[f32; QK]]) -> [f32; QK] {
    let mut asked = [0.0; QK];
    for ((target, value), cost) in target.iter().zip(values).zip(cost) {
        let error = target - value;
        asked.iter_mut().zip(cost).for_each(|(asked, cost)| *asked += error * cost);
    }
    asked
}

/// What all errors cost.
#[inline(always)]
fn costs(target: &[f32; QK], values: &[f32; QK], asked: &[f32; QK]) -> f32 {
    target.iter().zip(values).zip(asked).map(|((target, value), asked)| (target - value) * asked).sum()
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
