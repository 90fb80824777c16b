//! What a pass shows, added up.

use std::collections::btree_map;

use rayon::prelude::*;
use yuan_kernels::{blocks::QK, encode::best_encoders};

use super::{Moments, Wanted, routing::directions};
use crate::{
    checkpoint::names,
    config::ModelConfig,
    container::imatrix::{Entry, Gram, Imatrix},
    model::{Stage, WideRouter},
};

/// Columns of second moments at most: beyond them, blocks of columns are taken for independent.
const MOST: usize = 2048;
/// Rows of second moments that a thread adds to at a time.
const STRIP: usize = 16;

/// The sums of a model.
#[derive(Debug)]
pub struct Sums {
    config: ModelConfig,
    imatrix: Imatrix,
}

impl Sums {
    pub fn new(config: &ModelConfig, mut imatrix: Imatrix) -> Self {
        let matrices = names::tensors(config);
        let matrices = matrices.iter().filter_map(|spec| {
            let (name, matrix) = names::importance(spec, config)?;
            Some((name, matrix, spec.shape[1..].iter().product()))
        });
        let routers = (0..config.layers).filter(|_| config.experts > 0);
        let routers = routers.map(|layer| (names::routing(layer), 0, config.hidden));
        for (name, matrix, cols) in matrices.chain(routers) {
            let entry = match imatrix.entries.entry(name) {
                btree_map::Entry::Vacant(place) => place.insert(Entry { cols, ..Entry::default() }),
                btree_map::Entry::Occupied(there) => there.into_mut(),
            };
            let count = entry.counts.len().max(matrix + 1);
            entry.counts.resize(count, 0.0);
            entry.sums.resize(count * cols, 0.0);
        }
        Self { config: config.clone(), imatrix }
    }

    pub fn imatrix_mut(&mut self) -> &mut Imatrix {
        &mut self.imatrix
    }

    pub fn into_imatrix(self) -> Imatrix {
        self.imatrix
    }

    /// What is to be added of a pass whose sequences end behind these rows.
    pub fn pass<'s>(
        &'s mut self,
        ends: &'s [usize],
        wanted: &'s Wanted,
        routers: &'s [Option<WideRouter>],
    ) -> Pass<'s> {
        Pass { sums: self, ends, wanted, routers, weights: Vec::new(), hidden: Vec::new() }
    }
}

/// Adds up what a pass shows.
pub struct Pass<'s> {
    sums: &'s mut Sums,
    ends: &'s [usize],
    wanted: &'s Wanted,
    routers: &'s [Option<WideRouter>],
    /// Of the tokens of the expert that is shown.
    weights: Vec<f32>,
    /// The hidden state so far, [T, H].
    hidden: Vec<f32>,
}

impl Pass<'_> {
    pub fn see(&mut self, stage: Stage, layer: usize, rows: &[f32]) {
        if rows.is_empty() {
            return;
        }
        let hidden = self.sums.config.hidden;
        let blk = |name: &str| format!("blk.{layer}.{name}.weight");
        match stage {
            Stage::InputNorm => {
                self.squares(&blk("attn_v"), 0, 0, rows, hidden);
                self.pairs(&blk("conv1"), rows, hidden);
                self.moments(&blk("attn_v"), layer, 0, 0, rows, hidden);
            }
            Stage::Convolved => {
                self.pairs(&blk("conv2"), rows, hidden / 2);
                self.moments(&blk("conv2"), layer, 0, 0, rows, hidden / 2);
            }
            Stage::Filter => {
                self.squares(&blk("attn_q"), 0, 0, rows, hidden);
                self.squares(&blk("attn_k"), 0, 0, rows, hidden);
                self.moments(&blk("attn_q"), layer, 0, 0, rows, hidden);
            }
            Stage::Attended => {
                let width = self.sums.config.projection;
                self.squares(&blk("attn_output"), 0, 0, rows, width);
                self.moments(&blk("attn_output"), layer, 0, 0, rows, width);
            }
            Stage::PostNorm if self.sums.config.experts == 0 => {
                self.squares(&blk("ffn_gate"), 0, 0, rows, hidden);
                self.squares(&blk("ffn_up"), 0, 0, rows, hidden);
                self.moments(&blk("ffn_gate"), layer, 0, 0, rows, hidden);
            }
            Stage::PostNorm => {
                self.routing(layer, rows);
                if self.wanted.moments == Moments::ByLayer {
                    self.moments(&blk("ffn_gate_exps"), layer, 0, 0, rows, hidden);
                }
            }
            Stage::Chosen(_) => self.weights = rows.to_vec(),
            Stage::ExpertInput(expert) => {
                self.squares(&blk("ffn_gate_exps"), expert, 0, rows, hidden);
                if self.wanted.moments == Moments::ByExpert {
                    self.moments(&blk("ffn_gate_exps"), layer, expert, 0, rows, hidden);
                }
            }
            Stage::Neurons { expert, first } if self.sums.config.experts > 0 => {
                let width = rows.len() / self.weights.len().max(1);
                self.squares(&blk("ffn_down_exps"), expert, first, rows, width);
                self.moments(&blk("ffn_down_exps"), layer, expert, first, rows, width);
            }
            Stage::Neurons { .. } => {
                let width = self.sums.config.ffn;
                self.squares(&blk("ffn_down"), 0, 0, rows, width);
                self.moments(&blk("ffn_down"), layer, 0, 0, rows, width);
            }
            Stage::FinalNorm => {
                let head = if self.sums.config.tied_embeddings { "token_embd" } else { "output" };
                let (head, behind) = (format!("{head}.weight"), self.sums.config.layers);
                self.squares(&head, 0, 0, rows, hidden);
                self.moments(&head, behind, 0, 0, rows, hidden);
            }
            Stage::Embedding | Stage::Hidden => self.hidden = rows.to_vec(),
            Stage::Attention => self.hidden.iter_mut().zip(rows).for_each(|(x, o)| *x += o),
            Stage::Query | Stage::Key | Stage::Value | Stage::RouterLogits | Stage::FeedForward => {}
        }
    }

    /// Adds what of the hidden state decides on the experts of the tokens whose rows `m` the router takes.
    fn routing(&mut self, layer: usize, m: &[f32]) {
        let Some(Some(router)) = self.routers.get(layer) else { return };
        if !self.wanted.squares && !self.wanted.layers.contains(&layer) {
            return;
        }
        let (hidden, eps) = (self.sums.config.hidden, self.sums.config.rms_eps);
        let mean = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>() / hidden as f32;
        let scales: Vec<f32> =
            self.hidden.chunks_exact(hidden).map(|row| 1.0 / (mean(row) + eps).sqrt()).collect();
        let directions = directions(router, m, &scales);
        let name = names::routing(layer);
        self.squares(&name, 0, 0, &directions, hidden);
        self.moments(&name, layer, 0, 0, &directions, hidden);
    }

    /// Adds the squares of rows of `width` inputs, which are those of a matrix from column `first` on.
    fn squares(&mut self, name: &str, matrix: usize, first: usize, rows: &[f32], width: usize) {
        let Some(entry) = self.sums.imatrix.entries.get_mut(name).filter(|_| self.wanted.squares) else {
            return;
        };
        if first == 0 {
            entry.counts[matrix] += (rows.len() / width) as f32;
        }
        let sums = &mut entry.sums[matrix * entry.cols..][..entry.cols];
        add_squares(&mut sums[first..], rows, width, |_| true);
    }

    /// Adds the squares of the pairs of rows that a convolution takes: each with the one before it in its sequence, which the first has not.
    fn pairs(&mut self, name: &str, rows: &[f32], width: usize) {
        let Some(entry) = self.sums.imatrix.entries.get_mut(name).filter(|_| self.wanted.squares) else {
            return;
        };
        entry.counts[0] += (rows.len() / width) as f32;
        let (previous, current) = entry.sums.split_at_mut(width);
        add_squares(current, rows, width, |_| true);
        add_squares(previous, rows, width, |row| !self.ends.contains(&(row + 1)));
    }

    /// Adds the products of rows of `width` inputs with each other, which are those of a matrix from column `first` on.
    fn moments(&mut self, name: &str, layer: usize, matrix: usize, first: usize, rows: &[f32], width: usize) {
        let Sums { config, imatrix } = &mut *self.sums;
        let Some(entry) = imatrix.entries.get_mut(name) else { return };
        if !self.wanted.layers.contains(&layer) {
            return;
        }
        let Some((block, blocks, n)) = shape(name, config, self.wanted.moments, entry.cols) else { return };
        let gram = entry.gram.get_or_insert_with(|| Gram::zeros(block, blocks, n));
        let weights = (n > 1).then_some(&self.weights[..]);
        for part in (0..width).step_by(block) {
            let columns = part..width.min(part + block);
            add_products(
                gram.block_mut(matrix, (first + part) / block),
                block,
                rows,
                width,
                columns,
                weights,
            );
        }
    }
}

/// Whether sums of another run are of a model of this shape.
pub fn fits(config: &ModelConfig, moments: Moments, imatrix: &Imatrix) -> bool {
    let empty = Sums::new(config, Imatrix::default());
    let same = |name: &String, entry: &Entry| {
        let wanted = empty.imatrix.entries.get(name);
        wanted.is_some_and(|w| {
            let moments = entry.gram.as_ref().is_none_or(|gram| {
                shape(name, config, moments, w.cols) == Some((gram.width, gram.blocks, gram.matrices))
            });
            (w.cols, w.counts.len()) == (entry.cols, entry.counts.len()) && moments
        })
    };
    imatrix.entries.len() == empty.imatrix.entries.len()
        && imatrix.entries.iter().all(|(name, entry)| same(name, entry))
}

/// The shape of the second moments of matrices of `cols` columns: columns of a block, blocks, matrices. `None` where no whole superblocks make up the
/// blocks, so that there is no error feedback, and where other matrices' are used.
pub fn shape(
    name: &str,
    config: &ModelConfig,
    moments: Moments,
    cols: usize,
) -> Option<(usize, usize, usize)> {
    if ["attn_k.weight", "ffn_up.weight", "conv1.weight"].iter().any(|shared| name.ends_with(shared)) {
        return None;
    }
    if name.ends_with("ffn_down_exps.weight") {
        return Some((QK, cols.div_ceil(QK), config.experts));
    }
    // The steps of the second convolution have the same moments.
    let cols = if name.ends_with("conv2.weight") { cols / 2 } else { cols };
    if !cols.is_multiple_of(QK) {
        return None;
    }
    let width = (QK..=MOST.min(cols)).rev().find(|w| cols.is_multiple_of(*w) && w.is_multiple_of(QK))?;
    let by_expert = name.ends_with("ffn_gate_exps.weight") && moments == Moments::ByExpert;
    Some((width, cols / width, if by_expert { config.experts } else { 1 }))
}

/// Adds the squares of rows of `width`, those that `is_in` names.
fn add_squares(sums: &mut [f32], rows: &[f32], width: usize, is_in: impl Fn(usize) -> bool) {
    let mut squares = vec![0.0_f64; width];
    for (_, row) in rows.chunks_exact(width).enumerate().filter(|(r, _)| is_in(*r)) {
        squares.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
    }
    // Neurons that fill up the last tile have no sums.
    sums.iter_mut().zip(squares).for_each(|(sum, square)| *sum += square as f32);
}

/// Adds the products of the `columns` of rows of `width` with each other to sums [block, block]; rows count by the square of their weight.
fn add_products(
    sums: &mut [f32],
    block: usize,
    rows: &[f32],
    width: usize,
    columns: std::ops::Range<usize>,
    weights: Option<&[f32]>,
) {
    let n = rows.len() / width;
    if n == 0 {
        return;
    }
    let (mut x, mut by_column) = (vec![0.0; n * block], vec![0.0; n * block]);
    for (t, row) in rows.chunks_exact(width).enumerate() {
        let weight = weights.map_or(1.0, |weights| weights[t]);
        for (c, value) in row[columns.clone()].iter().enumerate() {
            x[t * block + c] = weight * value;
            by_column[c * n + t] = weight * value;
        }
    }
    let accumulate = best_encoders().accumulate;
    // Up to the diagonal, and within its strip over it; the other half is the same.
    sums.par_chunks_mut(STRIP * block).zip(by_column.par_chunks(STRIP * n)).enumerate().for_each(
        |(strip, (sums, by_column))| {
            accumulate(by_column, n, &x, block, sums, block.min((strip + 1) * STRIP));
        },
    );
}

/// Fills the upper half of all second moments, for those who read the file.
pub fn mirror(imatrix: &mut Imatrix) {
    for gram in imatrix.entries.values_mut().filter_map(|entry| entry.gram.as_mut()) {
        let width = gram.width;
        for matrix in 0..gram.matrices {
            for block in 0..gram.blocks {
                let sums = gram.block_mut(matrix, block);
                for i in 0..width {
                    for j in i + 1..width {
                        sums[i * width + j] = sums[j * width + i];
                    }
                }
            }
        }
    }
}
