//! `Q4_K`: weights as `d * scale * q - dmin * min`, found by search in four steps.
//!
//! 1. For every sub-block, the real-valued scale and minimum with the least squared error ([`search`]).
//! 2. `d` and `dmin`, and 6-bit codes for the scales and the minimums ([`six_bits`]).
//! 3. For every sub-block, the codes near those with the least error on the grid as it is now ([`refine`]).
//! 4. The `d` and `dmin` that fit best what was chosen ([`refit`]), and the final quants.
//!
//! The eight sub-blocks sit in eight lanes, so that all of them are searched at once and no sum crosses lanes. Squared errors are weighed by the
//! importance of their columns, where it is known ([`Worth`]).

use half::f16;

use super::{
    byte,
    grid::{Grid, Same, Worth},
    inverse, lanes, max, min, round, side_by_side, to_f16,
};
use crate::blocks::BlockQ4K;

/// One number of each sub-block.
type Lanes = [f32; 8];
/// Columns of a sub-block.
const COLUMNS: usize = 32;

/// 256 weights, all finite, as one block.
#[inline(always)]
pub(super) fn encode(weights: &[f32; 256]) -> BlockQ4K {
    let form = find(weights, &Same);
    let (inverses, mins) = form.inverses_and_mins();
    let mut qs = [0; 128];
    for p in 0..4 {
        for k in 0..COLUMNS {
            let q = |s: usize| quant((weights[COLUMNS * s + k] + mins[s]) * inverses[s]);
            qs[COLUMNS * p + k] = byte(q(2 * p) + 16.0 * q(2 * p + 1));
        }
    }
    form.block(qs)
}

/// The scales and minimums of a block.
#[inline(always)]
fn find(weights: &[f32; 256], worth: &impl Worth<8, COLUMNS>) -> Form {
    let x: [Lanes; COLUMNS] = side_by_side(weights);
    let (mut sums, mut worths) = ([0.0; 8], [0.0; 8]);
    for (k, x) in x.iter().enumerate() {
        for s in 0..8 {
            sums[s] += worth.of(k, s) * x[s];
            worths[s] += worth.of(k, s);
        }
    }
    let columns = Block { x, worth, sums, worths };
    let (scales, mins) = search(&columns);
    let (d, scales) = six_bits(&scales);
    let (dmin, mins) = six_bits(&mins);
    let form = refine(&columns, Form { d, dmin, scales, mins });
    refit(&columns, form)
}

/// What is searched for: a block's weights, with the sums over each sub-block of what they are worth, and of that times them.
struct Block<'w, W> {
    x: [Lanes; COLUMNS],
    worth: &'w W,
    sums: Lanes,
    worths: Lanes,
}

/// All of a block but its quants. The codes are whole numbers, 0..=63.
#[derive(Clone, Copy)]
struct Form {
    d: f16,
    dmin: f16,
    scales: Lanes,
    mins: Lanes,
}

impl Form {
    /// The real-valued inverses of the scales, and the minimums: a weight's quant is `(w + min) * inverse`, rounded.
    #[inline(always)]
    fn inverses_and_mins(&self) -> (Lanes, Lanes) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        (lanes(|s| inverse(d * self.scales[s])), lanes(|s| dmin * self.mins[s]))
    }

    /// The block with these quants, two a byte.
    #[inline(always)]
    fn block(&self, qs: [u8; 128]) -> BlockQ4K {
        let [scales, mins] = [self.scales, self.mins].map(|codes| codes.map(byte));
        BlockQ4K { d: self.d, dmin: self.dmin, scales: BlockQ4K::pack_scales(&scales, &mins), qs }
    }
}

/// A block's form with what it means.
pub(super) struct GridQ4K {
    form: Form,
    scales: Lanes,
    inverses: Lanes,
    mins: Lanes,
}

impl GridQ4K {
    #[inline(always)]
    fn of(form: Form) -> Self {
        let (inverses, mins) = form.inverses_and_mins();
        let d = form.d.to_f32();
        Self { scales: lanes(|s| d * form.scales[s]), inverses, mins, form }
    }
}

impl Grid<256> for GridQ4K {
    type Block = BlockQ4K;

    #[inline(always)]
    fn fit(weights: &[f32; 256], importance: &[f32; 256]) -> Self {
        Self::of(find(weights, &side_by_side::<8, COLUMNS>(importance)))
    }

    #[inline(always)]
    fn nearest(&self, column: usize, weight: f32) -> (f32, f32) {
        let s = column / COLUMNS;
        let q = quant((weight + self.mins[s]) * self.inverses[s]);
        (q, self.scales[s] * q - self.mins[s])
    }

    #[inline(always)]
    fn value(&self, column: usize, quant: f32) -> f32 {
        let s = column / COLUMNS;
        self.scales[s] * quant - self.mins[s]
    }

    #[inline(always)]
    fn refit(&self, quants: &[f32; 256], target: &[f32; 256], cost: &[f32]) -> Option<Self> {
        Some(Self::of(suit(self.form, quants, target, cost)))
    }

    #[inline(always)]
    fn pack(&self, quants: &[f32; 256]) -> BlockQ4K {
        let mut qs = [0; 128];
        for p in 0..4 {
            for k in 0..COLUMNS {
                let q = |s: usize| quants[COLUMNS * s + k];
                qs[COLUMNS * p + k] = byte(q(2 * p) + 16.0 * q(2 * p + 1));
            }
        }
        self.form.block(qs)
    }
}

/// For every sub-block the scale and the minimum (`w = scale * q - min`, neither below 0) with the least squared error
/// among candidates: weights are rounded to a candidate's grid, then a line is fitted through what came out.
#[inline(always)]
fn search(block: &Block<'_, impl Worth<8, COLUMNS>>) -> (Lanes, Lanes) {
    let Block { x, worth, sums, worths } = block;
    let (mut low, mut high) = ([0.0; 8], x[0]);
    for x in x {
        for s in 0..8 {
            low[s] = min(x[s], low[s]);
            high[s] = max(x[s], high[s]);
        }
    }
    let unit: Lanes = lanes(|s| inverse(high[s] - low[s]));
    let (mut scales, mut mins) = (lanes(|s| (high[s] - low[s]) / 15.0), lanes(|s| -low[s]));
    let mut best = [f32::NEG_INFINITY; 8];
    // The range is cut into 12.5 to 17.5 steps; with more than 15.5 of them the largest weights are cut off.
    for candidate in 0..21 {
        let steps = 12.5 + 0.25 * candidate as f32;
        let (mut sum_q, mut sum_qq, mut sum_xq) = ([0.0; 8], [0.0; 8], [0.0; 8]);
        for (k, x) in x.iter().enumerate() {
            for s in 0..8 {
                let q = quant((x[s] - low[s]) * (unit[s] * steps));
                sum_q[s] += worth.of(k, s) * q;
                sum_qq[s] += worth.of(k, s) * (q * q);
                sum_xq[s] += worth.of(k, s) * (x[s] * q);
            }
        }
        for s in 0..8 {
            let determinant = worths[s] * sum_qq[s] - sum_q[s] * sum_q[s];
            let scale = (worths[s] * sum_xq[s] - sum_q[s] * sums[s]) / determinant;
            let min = (sum_q[s] * sum_xq[s] - sum_qq[s] * sums[s]) / determinant;
            // No minimum below 0 can be stored: the line then goes through the origin.
            let free = min > 0.0;
            let scale = if free { scale } else { sum_xq[s] / sum_qq[s] };
            let min = if free { min } else { 0.0 };
            // What the fit takes from the sum of the squares; NaN, where there is no fit, is never better.
            let gain = scale * sum_xq[s] - min * sums[s];
            let better = gain > best[s];
            best[s] = if better { gain } else { best[s] };
            scales[s] = if better { scale } else { scales[s] };
            mins[s] = if better { min } else { mins[s] };
        }
    }
    (scales, mins)
}

/// A common factor, and for each number the nearest multiple of it.
#[inline(always)]
fn six_bits(numbers: &Lanes) -> (f16, Lanes) {
    let d = to_f16(numbers.iter().fold(0.0, |a, &b| max(b, a)) / 63.0);
    let inverse = inverse(d.to_f32());
    (d, lanes(|s| code(numbers[s] * inverse)))
}

/// Tries the scales as they are, a step down and a step up, each with the minimum that suits it.
#[inline(always)]
fn refine(block: &Block<'_, impl Worth<8, COLUMNS>>, grid: Form) -> Form {
    let Block { x, worth, sums, worths } = block;
    let (d, dmin) = (grid.d.to_f32(), grid.dmin.to_f32());
    let inverse_dmin = inverse(dmin);
    let old_mins: Lanes = lanes(|s| dmin * grid.mins[s]);
    let (mut best, mut refined) = ([f32::INFINITY; 8], grid);
    for step in [0.0, -1.0, 1.0] {
        let codes: Lanes = lanes(|s| code(grid.scales[s] + step));
        let scales: Lanes = lanes(|s| d * codes[s]);
        let inverses: Lanes = lanes(|s| inverse(scales[s]));
        let mut sum_q = [0.0; 8];
        for (k, x) in x.iter().enumerate() {
            for s in 0..8 {
                sum_q[s] += worth.of(k, s) * quant((x[s] + old_mins[s]) * inverses[s]);
            }
        }
        let min_codes: Lanes = lanes(|s| code((scales[s] * sum_q[s] - sums[s]) / worths[s] * inverse_dmin));
        let mins: Lanes = lanes(|s| dmin * min_codes[s]);
        let mut error = [0.0; 8];
        for (k, x) in x.iter().enumerate() {
            for s in 0..8 {
                let q = quant((x[s] + mins[s]) * inverses[s]);
                let difference = scales[s] * q - mins[s] - x[s];
                error[s] += worth.of(k, s) * (difference * difference);
            }
        }
        for s in 0..8 {
            let better = error[s] < best[s];
            best[s] = if better { error[s] } else { best[s] };
            refined.scales[s] = if better { codes[s] } else { refined.scales[s] };
            refined.mins[s] = if better { min_codes[s] } else { refined.mins[s] };
        }
    }
    refined
}

/// Fits `d` and `dmin` to the codes and their quants by least squares over the whole block.
#[inline(always)]
fn refit(block: &Block<'_, impl Worth<8, COLUMNS>>, grid: Form) -> Form {
    let Block { x, worth, sums, worths } = block;
    let (inverses, mins) = grid.inverses_and_mins();
    let (mut sum_q, mut sum_qq, mut sum_xq) = ([0.0; 8], [0.0; 8], [0.0; 8]);
    for (k, x) in x.iter().enumerate() {
        for s in 0..8 {
            let q = quant((x[s] + mins[s]) * inverses[s]);
            sum_q[s] += worth.of(k, s) * q;
            sum_qq[s] += worth.of(k, s) * (q * q);
            sum_xq[s] += worth.of(k, s) * (x[s] * q);
        }
    }
    // Sums over the block of products of a = scale * q, b = min and x.
    let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for s in 0..8 {
        let (scale, min) = (grid.scales[s], grid.mins[s]);
        aa += scale * scale * sum_qq[s];
        ab += scale * min * sum_q[s];
        bb += min * min * worths[s];
        ax += scale * sum_xq[s];
        bx += min * sums[s];
    }
    // Both at once where the two are distinct enough, else `d` with `dmin` as it is; then `dmin` to the `d` as stored.
    let determinant = aa * bb - ab * ab;
    let distinct = determinant > 1e-3 * aa * bb;
    let d = if distinct { (ax * bb - ab * bx) / determinant } else { (ax + grid.dmin.to_f32() * ab) / aa };
    let d = if d > 0.0 { to_f16(d) } else { grid.d };
    let dmin = (d.to_f32() * ab - bx) / bb;
    let dmin = if dmin > 0.0 { to_f16(dmin) } else { grid.dmin };
    Form { d, dmin, ..grid }
}

/// The form that suits the quants best, the errors E of the block from `target` costing `E cost Eᵀ`: a quadratic function of the 16 codes, of `d` and of `dmin`. Each code in
/// turn takes its best value with all others as they are, then `d` and `dmin` take theirs.
#[inline(always)]
fn suit(form: Form, quants: &[f32; 256], target: &[f32; 256], cost: &[f32]) -> Form {
    // What a step of each sub-block's scale, and of its minimum with the other sign, asks of all columns.
    let (mut by_scale, mut by_min) = ([[0.0; 256]; 8], [[0.0; 256]; 8]);
    for (k, (quant, cost)) in quants.iter().zip(cost.as_chunks::<256>().0).enumerate() {
        let (by_scale, by_min) = (&mut by_scale[k / COLUMNS], &mut by_min[k / COLUMNS]);
        for j in 0..256 {
            by_scale[j] += quant * cost[j];
            by_min[j] += cost[j];
        }
    }
    // The products of the steps of scales, then of minimums, with each other, and with the target.
    let (mut products, mut wanted) = ([[0.0; 16]; 16], [0.0; 16]);
    for s in 0..8 {
        wanted[s] = dot(&by_scale[s], target);
        wanted[8 + s] = -dot(&by_min[s], target);
        for t in 0..8 {
            let columns = COLUMNS * t..COLUMNS * (t + 1);
            let ones = [1.0; COLUMNS];
            products[s][t] = dot(&by_scale[s][columns.clone()], &quants[columns.clone()]);
            let both = -dot(&by_scale[s][columns.clone()], &ones);
            (products[s][8 + t], products[8 + t][s]) = (both, both);
            products[8 + s][8 + t] = dot(&by_min[s][columns], &ones);
        }
    }
    let Form { mut d, mut dmin, .. } = form;
    let mut codes = [0.0; 16];
    codes[..8].copy_from_slice(&form.scales);
    codes[8..].copy_from_slice(&form.mins);
    for _ in 0..2 {
        for _ in 0..2 {
            for p in 0..16 {
                let sizes = [d.to_f32(), dmin.to_f32()];
                let mut left = wanted[p];
                for (c, code) in codes.iter().enumerate() {
                    left -= products[p][c] * (sizes[c / 8] * code);
                }
                let step = left / products[p][p] * inverse(sizes[p / 8]);
                // A sub-block whose quants are all 0 has any scale.
                if step.is_finite() {
                    codes[p] = code(codes[p] + step);
                }
            }
        }
        // Of a, the codes of the scales, and b, those of the minimums.
        let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for p in 0..8 {
            for c in 0..8 {
                aa += codes[p] * codes[c] * products[p][c];
                ab += codes[p] * codes[8 + c] * products[p][8 + c];
                bb += codes[8 + p] * codes[8 + c] * products[8 + p][8 + c];
            }
            ax += codes[p] * wanted[p];
            bx += codes[8 + p] * wanted[8 + p];
        }
        let determinant = aa * bb - ab * ab;
        let distinct = determinant > 1e-3 * aa * bb;
        let both = if distinct { (ax * bb - ab * bx) / determinant } else { (ax - dmin.to_f32() * ab) / aa };
        d = if both > 0.0 { to_f16(both) } else { d };
        let left = (bx - d.to_f32() * ab) / bb;
        dmin = if left > 0.0 { to_f16(left) } else { dmin };
    }
    Form { d, dmin, scales: lanes(|s| codes[s]), mins: lanes(|s| codes[8 + s]) }
}

/// The dot product of whole eights, added up in lanes.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums: Lanes = [0.0; 8];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        for s in 0..8 {
            sums[s] += a[s] * b[s];
        }
    }
    sums.iter().sum()
}

/// The nearest of the 16 quants.
#[inline(always)]
fn quant(x: f32) -> f32 {
    round(max(min(x, 15.0), 0.0))
}

/// The nearest of the 64 codes.
#[inline(always)]
fn code(x: f32) -> f32 {
    round(max(min(x, 63.0), 0.0))
}
