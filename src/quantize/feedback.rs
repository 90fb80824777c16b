//! Encoding by importance: what a matrix is multiplied with says which errors matter.
//!
//! With the inputs' second moments H (a Gram matrix), the error E of a row costs `E H Eᵀ`. With `H = U D Uᵀ`, U unit upper triangular, that is
//! `sum over columns k of D[k] (E U)[k]²`: each column, rounded after what the errors before it ask of it (row by row of U), costs only its own rounding, times D.
//! This is the error feedback of GPTQ (arXiv 2210.17323) in the form of LDLQ (arXiv 2307.13304), on the grids of the block formats, whose scales are searched for by D.

use std::sync::Arc;

use rayon::prelude::*;
use yuan_kernels::{
    DType,
    blocks::QK,
    encode::{ByImportance, best_encoders},
};

use crate::error::Result;

/// What is known of the inputs of a matrix.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// What the squared error of each column is worth, all above 0.
    pub columns: Vec<f32>,
    /// Of consecutive blocks of columns what an error in one asks of the others; empty where that is not known.
    pub factors: Vec<Arc<Factor>>,
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
        let worth = diagonal.iter().map(|d| (d * d / mean).max(1e-6) as f32).collect();
        let mut unit = vec![0.0; width * width];
        unit.par_chunks_exact_mut(width).enumerate().for_each(|(i, row)| {
            for k in i..width {
                row[k] = (l[from_last(i)][from_last(k)] / diagonal[k]) as f32;
            }
        });
        unit.iter().all(|u| u.is_finite()).then_some(Self { width, worth, unit })
    }

    /// Columns that it is of.
    pub const fn width(&self) -> usize {
        self.width
    }
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
        let whole = factors.iter().map(|f| f.width).sum::<usize>() == cols;
        if !whole || factors.iter().any(|f| !f.width.is_multiple_of(QK)) {
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
            let diagonal = &self.unit[b * width + b..];
            for r in 0..rows {
                let out = &mut out[r * row_bytes + (first + b) / QK * block_bytes..][..block_bytes];
                (way.feedback)(
                    &weights[r * cols + first + b..][..QK],
                    &mut moved[r * width + b..],
                    &self.worth[b..b + QK],
                    diagonal,
                    width,
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
