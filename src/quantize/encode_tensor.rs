//! From the weights of a source to the bytes of one planned tensor, in parallel and in pieces.

use std::ops::Range;

use rayon::prelude::*;
use yuan_kernels::{DType, dequantize, tile::TILE_NEURONS};

use super::{
    Importance, Inputs, encode, first_non_finite, lossless,
    plan::{CHUNK_WEIGHTS, Item, SourceOf},
};
use crate::{
    checkpoint::{Arriving, Checkpoint, gptq::Packed},
    error::{Error, Result},
};

/// Where weights come from: a checkpoint, or a generator.
pub trait Weights: Sync {
    /// Appends elements `range` (row-major) of the tensor with this Hugging Face name to `out`.
    ///
    /// # Errors
    /// When the tensor does not exist or cannot be read.
    fn read_f32(&self, name: &str, range: Range<usize>, out: &mut Vec<f32>) -> Result<()>;

    /// The tensor as it is quantized; `None` where it is not.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    fn packed(&self, _name: &str) -> Result<Option<Packed>> {
        Ok(None)
    }
}

impl Weights for Checkpoint {
    fn read_f32(&self, name: &str, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        Self::read_f32(self, name, range, out)
    }

    fn packed(&self, name: &str) -> Result<Option<Packed>> {
        Self::packed(self, name)
    }
}

impl Weights for Arriving {
    fn read_f32(&self, name: &str, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        Self::read_f32(self, name, range, out)
    }
}

impl<W: Weights + ?Sized> Weights for &W {
    fn read_f32(&self, name: &str, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        (**self).read_f32(name, range, out)
    }

    fn packed(&self, name: &str) -> Result<Option<Packed>> {
        (**self).packed(name)
    }
}

/// What it cost to quantize a quantized matrix once more.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its type in the container.
    pub dtype: DType,
    /// Root of the mean square of what its weights changed by, as a share of that of the weights.
    pub relative: f64,
    /// The most that a weight changed by.
    pub largest: f32,
}

/// The bytes of a planned tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// A row-major matrix.
    Matrix(Vec<u8>),
    /// An expert, still as rows; the container permutes them into tiles.
    Expert {
        /// [2F, H]: gate rows over up rows.
        w1: Vec<u8>,
        /// [H, F'], F' being F filled up with zeros to a multiple of 256.
        w2: Vec<u8>,
    },
}

/// Reads and encodes one tensor, by the importance of its columns where that is known. The bytes do not depend on the number of threads. Quantized matrices
/// that do not fit the type of the item are encoded anew, and `lost` hears what that cost.
///
/// # Errors
/// Those of the source and of the importance; [`Error::Argument`] that names a tensor with a weight that is not a finite number.
pub fn encode_item(
    item: &Item,
    ffn: usize,
    source: &dyn Weights,
    importance: Option<&dyn Importance>,
    lost: &dyn Fn(Loss),
) -> Result<Encoded> {
    let matrix = |name: &str, rows, cols, padded, order| {
        let matrix = Matrix { name, rows, cols, padded, dtype: item.dtype, order };
        let (bytes, loss) = encode_matrix(&matrix, source, importance)?;
        loss.into_iter().for_each(lost);
        Ok::<_, Error>(bytes)
    };
    Ok(match &item.source {
        SourceOf::Matrix(name) => {
            Encoded::Matrix(matrix(name, item.rows, item.cols, item.cols, Order::Plain)?)
        }
        SourceOf::Conv(name) => {
            Encoded::Matrix(matrix(name, item.rows, item.cols, item.cols, Order::SplitTaps)?)
        }
        SourceOf::Tiles { w1, w2 } => Encoded::Expert {
            w1: matrix(w1, 2 * ffn, item.cols, item.cols, Order::Plain)?,
            w2: matrix(w2, item.cols, ffn, ffn.next_multiple_of(TILE_NEURONS), Order::Plain)?,
        },
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Plain,
    /// A row `(previous, current)` input by input becomes all previous, then all current.
    SplitTaps,
}

struct Matrix<'a> {
    name: &'a str,
    rows: usize,
    cols: usize,
    /// Columns as stored: `cols`, or more, filled with zeros.
    padded: usize,
    dtype: DType,
    order: Order,
}

impl Matrix<'_> {
    /// Appends the weights of a row in the order in which they are stored.
    fn store(&self, weights: &[f32], row: &mut Vec<f32>) {
        match self.order {
            Order::Plain => row.extend_from_slice(weights),
            Order::SplitTaps => {
                row.extend(weights.iter().step_by(2));
                row.extend(weights.iter().skip(1).step_by(2));
            }
        }
    }
}

/// What rows changed by: the sums of squares of the changes and of the weights, and the largest change.
#[derive(Clone, Copy, Default)]
struct Change {
    changes: f64,
    weights: f64,
    largest: f32,
}

impl Change {
    fn of(weights: &[f32], found: &[f32]) -> Self {
        let square = |w: f32| f64::from(w) * f64::from(w);
        weights.iter().zip(found).fold(Self::default(), |sum, (w, f)| Self {
            changes: sum.changes + square(w - f),
            weights: sum.weights + square(*w),
            largest: sum.largest.max((w - f).abs()),
        })
    }

    fn add(self, other: Self) -> Self {
        Self {
            changes: self.changes + other.changes,
            weights: self.weights + other.weights,
            largest: self.largest.max(other.largest),
        }
    }
}

/// The bytes of a matrix, and what they cost, if the source has it quantized in another way.
fn encode_matrix(
    m: &Matrix<'_>,
    source: &dyn Weights,
    importance: Option<&dyn Importance>,
) -> Result<(Vec<u8>, Option<Loss>)> {
    let packed = source.packed(m.name)?;
    if let Some(packed) = &packed
        && (packed.outputs(), packed.inputs(), m.order) != (m.rows, m.cols, Order::Plain)
    {
        let (rows, cols) = (packed.outputs(), packed.inputs());
        return Err(Error::Argument(format!("tensor {}: it is [{rows}, {cols}], quantized", m.name)));
    }
    let exact = packed.as_ref().is_some_and(|packed| lossless::fits(&packed.facts(), m.dtype).is_ok());
    let blocks = exact && m.dtype.is_quantized() && m.cols.is_multiple_of(m.dtype.block_len());
    let row_bytes = m.dtype.row_bytes(m.padded).ok_or_else(|| {
        let name = m.dtype.name();
        Error::Argument(format!("tensor {}: rows of {} do not fit the blocks of {name}", m.name, m.padded))
    })?;
    let inputs = match importance {
        Some(importance) if !exact && Inputs::serve(m.dtype) => importance.inputs(m.name, m.padded)?,
        _ => None,
    };
    let mut out = vec![0; m.rows * row_bytes];
    // Rows that make up for each other's errors are encoded together.
    let joined = inputs.as_ref().is_some_and(|inputs| inputs.joins_rows(m.rows));
    let rows = if joined { m.rows } else { (CHUNK_WEIGHTS / m.cols).max(1) };
    let pieces = out.par_chunks_mut(rows * row_bytes).enumerate().map_init(
        || (Vec::new(), Vec::new()),
        |(read, row), (i, out)| -> Result<Change> {
            let start = i * rows * m.cols;
            let count = out.len() / row_bytes;
            read.clear();
            match &packed {
                Some(packed) if blocks => {
                    lossless::blocks(packed, m.dtype, i * rows..i * rows + count, row_bytes, out);
                    return Ok(Change::default());
                }
                Some(packed) => packed.widen(i * rows..i * rows + count, read),
                None => source.read_f32(m.name, start..start + count * m.cols, read)?,
            }
            if let Some(at) = first_non_finite(read) {
                let (r, c) = ((start + at) / m.cols, (start + at) % m.cols);
                return Err(Error::Argument(format!(
                    "tensor {}: the weight in row {r}, column {c} is {}; the checkpoint is damaged: fetch it again",
                    m.name, read[at]
                )));
            }
            let mut change = Change::default();
            if let Some(inputs) = &inputs {
                row.clear();
                for weights in read.chunks_exact(m.cols) {
                    m.store(weights, row);
                    row.resize(row.len().next_multiple_of(m.padded), 0.0);
                }
                match joined {
                    true => inputs.encode_whole(m.dtype, row, out),
                    false => inputs.encode(m.dtype, row, out),
                }
                if packed.is_some() {
                    let mut found = vec![0.0; row.len()];
                    dequantize(m.dtype, out, &mut found);
                    change = Change::of(row, &found);
                }
                return Ok(change);
            }
            for (weights, out) in read.chunks_exact(m.cols).zip(out.chunks_exact_mut(row_bytes)) {
                row.clear();
                m.store(weights, row);
                // Blocks behind the last that holds a weight stay zero bytes.
                row.resize(m.cols.next_multiple_of(m.dtype.block_len()), 0.0);
                let out = &mut out[..row.len() / m.dtype.block_len() * m.dtype.block_bytes()];
                encode(m.dtype, row, out);
                if packed.is_some() && !exact {
                    dequantize(m.dtype, out, row);
                    change = change.add(Change::of(weights, row));
                }
            }
            Ok(change)
        },
    );
    // Added up in the order of the pieces, so that figures do not depend on the threads.
    let pieces: Vec<Change> = pieces.collect::<Result<_>>()?;
    if packed.is_none() || exact {
        return Ok((out, None));
    }
    let change = pieces.into_iter().fold(Change::default(), Change::add);
    let relative = if change.weights > 0.0 { (change.changes / change.weights).sqrt() } else { 0.0 };
    Ok((out, Some(Loss { name: m.name.into(), dtype: m.dtype, relative, largest: change.largest })))
}
