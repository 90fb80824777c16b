//! Encoding by importance: what a matrix is multiplied with says which errors matter.
//!
//! With the inputs' second moments H (a Gram matrix), the error E of a row costs `E H Eᵀ`. With `H = U D Uᵀ`, U unit upper triangular, that is
//! `sum over columns k of D[k] (E U)[k]²`: each column, rounded after what the errors before it ask of it (row by row of U), costs only its own rounding, times D.
//! This is the error feedback of GPTQ (arXiv 2210.17323) in the form of LDLQ (arXiv 2307.13304), on the grids of the block formats, whose scales are searched for by D.
//!
//! Where errors of a matrix's outputs matter more in some directions than in others, the errors E of all its rows cost `tr(G E H Eᵀ)`, G [rows, rows]. Taken apart in the
//! same way, G asks of each row to make up for the errors of the rows before it, in the directions that matter.

use std::sync::Arc;

use rayon::prelude::*;
use yuan_kernels::{
    DType,
    blocks::QK,
    dequantize,
    encode::{ByImportance, Columns, best_encoders},
};

use crate::error::Result;

/// What is known of the inputs of a matrix.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// What the squared error of each column is worth, all above 0.
    pub columns: Vec<f32>,
    /// Of consecutive blocks of columns what an error in one asks of the others; empty where that is not known.
    pub factors: Vec<Arc<Factor>>,
    /// What an error in one row asks of the rows behind it, as far as that is known.
    pub outputs: Option<Arc<Factor>>,
}

/// Where what is known of inputs comes from.
pub trait Importance: Sync {
    /// Of the matrix with this Hugging Face name, as it is stored, with `cols` columns; `None` where nothing is known.
    ///
    /// # Errors
    /// When the source cannot be read, or is of another model.
    fn inputs(&self, name: &str, cols: usize) -> Result<Option<Inputs>>;
}

/// Second moments of the inputs of some columns, taken apart.
#[derive(Debug)]
pub struct Factor {
    width: usize,
    /// D, scaled so that its mean is 1.
    worth: Vec<f32>,
    /// U, row by row, [width, width].
    unit: Vec<f32>,
    /// Of each 256 columns, [256, 256]: what their errors cost together when those behind them make up for what they can, `U D Uᵀ` of their rows and columns.
    cost: Vec<f32>,
}

/// Rows that pass through a factor together.
const ROWS: usize = 16;
/// Numbers that are added up side by side.
const LANES: usize = 8;

impl Factor {
    /// Takes the second moments `gram` [width, width] of some columns apart, of which the lower triangle is read, with `damping` times the mean of the
    /// diagonal added to the diagonal. `None` where they are none: not finite, or not positive.
    pub fn of(gram: &[f32], width: usize, damping: f64) -> Option<Self> {
        assert_eq!(gram.len(), width * width, "a square");
        let mean = (0..width).map(|i| f64::from(gram[i * width + i])).sum::<f64>() / width as f64;
        if !(mean.is_finite() && mean >= 0.0) {
            return None;
        }
        let added = if mean > 0.0 { damping * mean } else { 1.0 };
        // Cholesky's method from the last column to the first: row i of `l` is column width - 1 - i of U sqrt(D), from its diagonal up.
        let from_last = |i: usize| width - 1 - i;
        let mut l: Vec<Vec<f64>> = (0..width)
            .map(|i| {
                let row = (0..=i).map(|j| f64::from(gram[from_last(j) * width + from_last(i)]));
                row.collect()
            })
            .collect();
        for j in 0..width {
            let (done, behind) = l.split_at_mut(j + 1);
            let pivot = &mut done[j];
            let square = pivot[j] + added - dot(&pivot[..j], &pivot[..j]);
            if !(square.is_finite() && square > 0.0) {
                return None;
            }
            let root = square.sqrt();
            pivot[j] = root;
            let pivot = &pivot[..j];
            behind.par_iter_mut().with_min_len(64).for_each(|row| {
                row[j] = (row[j] - dot(&row[..j], pivot)) / root;
            });
        }
        let diagonal: Vec<f64> = (0..width).map(|k| l[from_last(k)][from_last(k)]).collect();
        let mean = diagonal.iter().map(|d| d * d).sum::<f64>() / width as f64;
        let worth: Vec<f32> = diagonal.iter().map(|d| (d * d / mean).max(1e-6) as f32).collect();
        let mut unit = vec![0.0; width * width];
        unit.par_chunks_exact_mut(width).enumerate().for_each(|(i, row)| {
            for k in i..width {
                row[k] = (l[from_last(i)][from_last(k)] / diagonal[k]) as f32;
            }
        });
        let cost = costs(&unit, &worth);
        unit.iter().all(|u| u.is_finite()).then_some(Self { width, worth, unit, cost })
    }

    /// Columns that it is of.
    pub const fn width(&self) -> usize {
        self.width
    }
}

/// [`Factor::cost`].
fn costs(unit: &[f32], worth: &[f32]) -> Vec<f32> {
    let width = worth.len();
    let mut cost = vec![0.0; width / QK * QK * QK];
    cost.par_chunks_exact_mut(QK).enumerate().for_each(|(row, cost)| {
        let block = row / QK * QK;
        let unit = |row: usize| &unit[row * width + block..][..QK];
        let weighed: Vec<f64> =
            unit(row).iter().zip(&worth[block..]).map(|(u, d)| f64::from(*u) * f64::from(*d)).collect();
        for (column, cost) in cost.iter_mut().enumerate() {
            // U is triangular: rows begin at their own columns.
            let first = column.max(row - block);
            let other = &unit(block + column)[first..];
            *cost = weighed[first..].iter().zip(other).map(|(a, b)| a * f64::from(*b)).sum::<f64>() as f32;
        }
    });
    cost
}

/// The dot product, added up in lanes.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

impl Inputs {
    /// Whether blocks of this type can be chosen by importance.
    pub fn serve(dtype: DType) -> bool {
        by_importance(dtype).is_some()
    }

    /// Whether columns make up for the errors of those before them.
    fn feeds_back(&self) -> bool {
        let widths = || self.factors.iter().map(|f| f.width);
        widths().sum::<usize>() == self.columns.len() && widths().all(|width| width.is_multiple_of(QK))
    }

    /// Whether the rows of a matrix of so many depend on each other, so that [`Inputs::encode_whole`] is asked for them.
    pub fn joins_rows(&self, rows: usize) -> bool {
        self.feeds_back() && self.outputs.as_ref().is_some_and(|outputs| outputs.width == rows)
    }

    /// Encodes all rows of a matrix of finite weights, each of which makes up for the errors of those before it. The bytes are the same for any number of threads.
    ///
    /// # Panics
    /// If rows are not joined, the type is none of blocks, or the lengths are not those of the matrix.
    pub fn encode_whole(&self, dtype: DType, weights: &[f32], out: &mut [u8]) {
        let cols = self.columns.len();
        let rows = weights.len() / cols;
        assert!(self.joins_rows(rows) && weights.len() == rows * cols, "a whole matrix");
        let row_bytes = dtype.row_bytes(cols).expect("whole blocks");
        assert_eq!(out.len(), rows * row_bytes, "bytes of the rows");
        let Some(outputs) = &self.outputs else { return };
        let block_bytes = row_bytes / (cols / QK);
        let mut first = 0;
        let starts = self.factors.iter().map(|factor| {
            first += factor.width;
            (first - factor.width, &**factor)
        });
        let starts: Vec<(usize, &Factor)> = starts.collect();
        // Between blocks of columns nothing is known: each is encoded by itself.
        let blocks: Vec<Vec<u8>> = starts
            .par_iter()
            .map(|(first, factor)| {
                let columns = weights.chunks_exact(cols).flat_map(|row| &row[*first..][..factor.width]);
                factor.encode_rows(dtype, outputs, &columns.copied().collect::<Vec<f32>>())
            })
            .collect();
        for ((first, factor), block) in starts.iter().zip(&blocks) {
            let bytes = factor.width / QK * block_bytes;
            for (row, block) in out.chunks_exact_mut(row_bytes).zip(block.chunks_exact(bytes)) {
                row[first / QK * block_bytes..][..bytes].copy_from_slice(block);
            }
        }
    }

    /// Encodes finite weights [rows, columns] into the bytes of as many rows. Each row's bytes are the same, whatever rows are beside it.
    ///
    /// # Panics
    /// If the type is none of blocks, or the weights are no whole rows of blocks.
    pub fn encode(&self, dtype: DType, weights: &[f32], out: &mut [u8]) {
        let way = by_importance(dtype).expect("a type of blocks");
        let cols = self.columns.len();
        let row_bytes = dtype.row_bytes(cols).expect("whole blocks");
        assert_eq!(weights.len() / cols * row_bytes, out.len(), "bytes of the rows");
        let factors = &self.factors;
        if !self.feeds_back() {
            for (weights, out) in weights.chunks_exact(cols).zip(out.chunks_exact_mut(row_bytes)) {
                (way.weighted)(weights, &self.columns, out);
            }
            return;
        }
        let block_bytes = row_bytes / (cols / QK);
        for (weights, out) in weights.chunks(ROWS * cols).zip(out.chunks_mut(ROWS * row_bytes)) {
            let mut first = 0;
            for factor in factors {
                factor.encode(way, weights, cols, first, block_bytes, out);
                first += factor.width;
            }
        }
    }
}

impl Factor {
    /// The bytes of all rows of its columns, `weights` [rows, width], each moved by what the errors of the rows before ask of it.
    fn encode_rows(&self, dtype: DType, outputs: &Self, weights: &[f32]) -> Vec<u8> {
        let (width, rows) = (self.width, outputs.width);
        let row_bytes = dtype.row_bytes(width).expect("whole blocks");
        let way = by_importance(dtype).expect("a type of blocks");
        let mut out = vec![0; rows * row_bytes];
        let (mut errors, mut moved) = (vec![0.0; rows * width], vec![0.0; ROWS * width]);
        for first in (0..rows).step_by(ROWS) {
            let group = first..rows.min(first + ROWS);
            let moved = &mut moved[..group.len() * width];
            moved.copy_from_slice(&weights[first * width..][..group.len() * width]);
            if first > 0 {
                // What the rows before the group ask of it.
                let asked = |row| (0..first).map(move |before| outputs.unit[before * rows + row]);
                let asked: Vec<f32> = group.clone().flat_map(asked).collect();
                (best_encoders().accumulate)(&asked, first, &errors[..first * width], width, moved, width);
            }
            for (row, moved) in group.zip(moved.chunks_exact_mut(width)) {
                for before in first..row {
                    let asked = outputs.unit[before * rows + row];
                    let errors = &errors[before * width..][..width];
                    moved.iter_mut().zip(errors).for_each(|(moved, error)| *moved += asked * error);
                }
                let out = &mut out[row * row_bytes..][..row_bytes];
                self.encode(way, moved, width, 0, row_bytes / (width / QK), out);
                let errors = &mut errors[row * width..][..width];
                dequantize(dtype, out, errors);
                let weights = &weights[row * width..][..width];
                errors.iter_mut().zip(weights).for_each(|(error, weight)| *error = weight - *error);
            }
        }
        out
    }

    /// Encodes the columns from `first` on of a few rows of `cols`.
    fn encode(
        &self,
        way: &ByImportance,
        weights: &[f32],
        cols: usize,
        first: usize,
        block_bytes: usize,
        out: &mut [u8],
    ) {
        let (width, rows) = (self.width, weights.len() / cols);
        let mut moved: Vec<f32> =
            weights.chunks_exact(cols).flat_map(|row| &row[first..first + width]).copied().collect();
        let mut errors = vec![0.0; rows * QK];
        let row_bytes = cols / QK * block_bytes;
        for b in (0..width).step_by(QK) {
            let columns = Columns {
                worth: &self.worth[b..b + QK],
                factor: &self.unit[b * width + b..],
                stride: width,
                cost: &self.cost[b * QK..][..QK * QK],
            };
            for r in 0..rows {
                let out = &mut out[r * row_bytes + (first + b) / QK * block_bytes..][..block_bytes];
                (way.feedback)(
                    &weights[r * cols + first + b..][..QK],
                    &mut moved[r * width + b..],
                    &columns,
                    &mut errors[r * QK..][..QK],
                    out,
                );
            }
            let behind = b + QK;
            if behind < width {
                (best_encoders().accumulate)(
                    &errors,
                    QK,
                    &self.unit[b * width + behind..],
                    width,
                    &mut moved[behind..],
                    width - behind,
                );
            }
        }
    }
}

fn by_importance(dtype: DType) -> Option<&'static ByImportance> {
    let best = best_encoders();
    match dtype {
        DType::Q4_0 => Some(&best.q4_0_by_importance),
        DType::Q8_0 => Some(&best.q8_0_by_importance),
        DType::Q3_K => Some(&best.q3_k_by_importance),
        DType::Q4_K => Some(&best.q4_k_by_importance),
        DType::Q6_K => Some(&best.q6_k_by_importance),
        DType::F32 | DType::F16 | DType::Bf16 => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS_OF: usize = 40;

    fn number(i: usize) -> f32 {
        ((i * i % 8191) as f32 * 0.7).sin()
    }

    /// Second moments of 300 rows of numbers that hang together.
    fn moments(width: usize, seed: usize) -> Vec<f32> {
        let rows: Vec<f32> = (0..300 * width).map(|i| number(i + seed) + number(i / 8 + 3 * seed)).collect();
        let mut sums = vec![0.0; width * width];
        for row in rows.chunks_exact(width) {
            for (a, sums) in row.iter().zip(sums.chunks_exact_mut(width)) {
                sums.iter_mut().zip(row).for_each(|(sum, b)| *sum += a * b);
            }
        }
        sums
    }

    /// `tr(G E H Eᵀ)`, of the errors [rows, 256].
    fn cost(outputs: &[f32], gram: &[f32], errors: &[f32]) -> f64 {
        let by_row = |row: &[f32]| -> Vec<f64> {
            let column = |c: usize| {
                row.iter().zip(0..).map(|(e, k)| f64::from(*e) * f64::from(gram[k * QK + c])).sum()
            };
            (0..QK).map(column).collect()
        };
        let asked: Vec<Vec<f64>> = errors.chunks_exact(QK).map(by_row).collect();
        let both = |i: usize, j: usize| -> f64 {
            errors[j * QK..][..QK].iter().zip(&asked[i]).map(|(e, asked)| f64::from(*e) * asked).sum()
        };
        let rows = asked.len();
        (0..rows * rows).map(|at| f64::from(outputs[at]) * both(at / rows, at % rows)).sum()
    }

    #[test]
    fn errors_go_where_they_cost_least() {
        let weights: Vec<f32> = (0..ROWS_OF * QK).map(|i| number(7 * i + 1)).collect();
        let gram = moments(QK, 5);
        // Errors matter in three directions of the outputs most of all.
        let output = |at: usize| {
            let (i, j) = (at / ROWS_OF, at % ROWS_OF);
            let along = |d: usize| number(11 * i + 100 * d) * number(11 * j + 100 * d);
            (0..3).map(|d| 10.0 * along(d)).sum::<f32>() + if i == j { 1.0 } else { 0.0 }
        };
        let outputs: Vec<f32> = (0..ROWS_OF * ROWS_OF).map(output).collect();
        let alone = Inputs {
            columns: vec![1.0; QK],
            factors: vec![Arc::new(Factor::of(&gram, QK, 0.01).unwrap())],
            outputs: None,
        };
        let joined =
            Inputs { outputs: Some(Arc::new(Factor::of(&outputs, ROWS_OF, 0.0).unwrap())), ..alone.clone() };
        let nearest = Inputs { factors: Vec::new(), ..alone.clone() };
        assert!(joined.joins_rows(ROWS_OF) && !joined.joins_rows(ROWS_OF + 1) && !alone.joins_rows(ROWS_OF));
        for dtype in [DType::Q4_K, DType::Q8_0, DType::Q3_K] {
            let errors = |inputs: &Inputs, whole: bool| -> Vec<f32> {
                let mut out = vec![0; ROWS_OF * dtype.row_bytes(QK).unwrap()];
                match whole {
                    true => inputs.encode_whole(dtype, &weights, &mut out),
                    false => inputs.encode(dtype, &weights, &mut out),
                }
                let mut found = vec![0.0; weights.len()];
                dequantize(dtype, &out, &mut found);
                weights.iter().zip(&found).map(|(w, f)| w - f).collect()
            };
            let same: Vec<f32> =
                (0..ROWS_OF * ROWS_OF).map(|at| if at % (ROWS_OF + 1) == 0 { 1.0 } else { 0.0 }).collect();
            let [nearest, alone, joined] =
                [errors(&nearest, false), errors(&alone, false), errors(&joined, true)];
            let inputs = [&nearest, &alone].map(|errors| cost(&same, &gram, errors));
            assert!(inputs[1] < 0.8 * inputs[0], "{}: {inputs:?}", dtype.name());
            let both = [&alone, &joined].map(|errors| cost(&outputs, &gram, errors));
            assert!(both[1] < 0.5 * both[0], "{}: {both:?}", dtype.name());
        }
    }
}
