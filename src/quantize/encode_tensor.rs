//! From the weights of a source to the bytes of one planned tensor, in parallel and in pieces.

use std::ops::Range;

use rayon::prelude::*;
use yuan_kernels::{DType, tile::TILE_NEURONS};

use super::{
    encode, first_non_finite,
    plan::{CHUNK_WEIGHTS, Item, SourceOf},
};
use crate::{
    checkpoint::Checkpoint,
    error::{Error, Result},
};

/// Where weights come from: a checkpoint, or a generator.
pub trait Weights: Sync {
    /// Appends elements `range` (row-major) of the tensor with this Hugging Face name to `out`.
    ///
    /// # Errors
    /// When the tensor does not exist or cannot be read.
    fn read_f32(&self, name: &str, range: Range<usize>, out: &mut Vec<f32>) -> Result<()>;
}

impl Weights for Checkpoint {
    fn read_f32(&self, name: &str, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        Self::read_f32(self, name, range, out)
    }
}

impl<W: Weights + ?Sized> Weights for &W {
    fn read_f32(&self, name: &str, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        (**self).read_f32(name, range, out)
    }
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

/// Reads and encodes one tensor. The bytes do not depend on the number of threads.
///
/// # Errors
/// Those of the source; [`Error::Argument`] that names a tensor with a weight that is not a finite number.
pub fn encode_item(item: &Item, ffn: usize, source: &dyn Weights) -> Result<Encoded> {
    let matrix = |name: &str, rows, cols, padded, order| {
        encode_matrix(&Matrix { name, rows, cols, padded, dtype: item.dtype, order }, source)
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

fn encode_matrix(m: &Matrix<'_>, source: &dyn Weights) -> Result<Vec<u8>> {
    let row_bytes = m.dtype.row_bytes(m.padded).ok_or_else(|| {
        let name = m.dtype.name();
        Error::Argument(format!("tensor {}: rows of {} do not fit the blocks of {name}", m.name, m.padded))
    })?;
    let mut out = vec![0; m.rows * row_bytes];
    let rows = (CHUNK_WEIGHTS / m.cols).max(1);
    out.par_chunks_mut(rows * row_bytes).enumerate().try_for_each_init(
        || (Vec::new(), Vec::new()),
        |(read, row), (i, out)| -> Result<()> {
            let start = i * rows * m.cols;
            let len = out.len() / row_bytes * m.cols;
            read.clear();
            source.read_f32(m.name, start..start + len, read)?;
            if let Some(at) = first_non_finite(read) {
                let (r, c) = ((start + at) / m.cols, (start + at) % m.cols);
                return Err(Error::Argument(format!(
                    "tensor {}: the weight in row {r}, column {c} is {}; the checkpoint is damaged: fetch it again",
                    m.name, read[at]
                )));
            }
            for (weights, out) in read.chunks_exact(m.cols).zip(out.chunks_exact_mut(row_bytes)) {
                row.clear();
                match m.order {
                    Order::Plain => row.extend_from_slice(weights),
                    Order::SplitTaps => {
                        row.extend(weights.iter().step_by(2));
                        row.extend(weights.iter().skip(1).step_by(2));
                    }
                }
                // Blocks behind the last that holds a weight stay zero bytes.
                row.resize(m.cols.next_multiple_of(m.dtype.block_len()), 0.0);
                encode(m.dtype, row, &mut out[..row.len() / m.dtype.block_len() * m.dtype.block_bytes()]);
            }
            Ok(())
        },
    )?;
    Ok(out)
}
