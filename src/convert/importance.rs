//! A file of importances as what the encoders want to know of the inputs of each matrix.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rayon::prelude::*;
use yuan_kernels::tile::TILE_NEURONS;

use crate::{
    checkpoint::names::{self, Role},
    config::ModelConfig,
    container::imatrix::{Entry, Gram, Imatrix},
    error::{Error, Result},
    quantize::{Factor, Importance, Inputs},
    workers,
};

/// What is believed of a matrix before its first token, in tokens: the mean of its layer's experts, or of its columns.
const PRIOR: f32 = 16.0;
/// The least importance of a column, as a share of the mean. Columns that are always 0 in the text may not always be.
const LEAST: f32 = 1e-3;
/// What is added to the diagonal of second moments, as a share of its mean.
const DAMPING: f64 = 0.01;
/// The same for the neurons of an expert.
const DAMPING_OF_NEURONS: f64 = 0.03;
/// An expert with fewer tokens is told of.
const FEW: f32 = 64.0;
/// What errors of the hidden state cost in the directions that decide on experts, of all that they cost: as a multiple of the rest, each over its size.
const ROUTING: f64 = 10.0;
/// Second moments that are kept taken apart: those of a layer's experts are the same.
const KEPT: usize = 4;
/// The same of what is asked of rows.
const KEPT_OUTPUTS: usize = 2;

/// Of a model, what a file of importances knows of the inputs of its matrices.
pub struct ImportanceFile {
    path: PathBuf,
    imatrix: Imatrix,
    /// By the Hugging Face name of a matrix.
    places: HashMap<String, Place>,
    /// The last second moments that were taken apart, by entry, matrix and block.
    factors: Mutex<Vec<(FactorName, Arc<Factor>)>>,
    /// Second moments of the experts of a layer together, by entry and block.
    layer: Mutex<Option<(LayerName, Arc<Vec<f32>>)>>,
    /// What the routers from a layer on ask of what is added to the hidden state, by that layer: the last two, of the attention and of the experts of a layer.
    outputs: Mutex<Vec<(usize, Arc<Factor>)>>,
    /// Weights of the largest matrix whose rows are encoded together.
    together: usize,
}

/// Where second moments are: an entry, a matrix of it, and a block of its columns.
type FactorName = (String, usize, usize);

/// Where the second moments of all experts of a layer are: an entry, and a block of its columns.
type LayerName = (String, usize);

/// Where what is known of a matrix is.
struct Place {
    entry: String,
    /// Which of the matrices of that name.
    matrix: usize,
    /// The entry with the second moments, where it is another one, and how many times as many columns the matrix has.
    moments: (String, usize),
    /// The first layer whose router sees what it adds to the hidden state; `None` where it adds nothing.
    seen: Option<usize>,
}

impl ImportanceFile {
    /// Opens a file for conversions of a model of this shape.
    ///
    /// # Errors
    /// Those of [`Imatrix::open`]; [`Error::BadFile`] when it is of a model of another shape.
    pub fn open(path: &Path, config: &ModelConfig) -> Result<Self> {
        Self::new(Imatrix::open(path)?, path, config)
    }

    /// [`ImportanceFile::open`] of what was read.
    ///
    /// # Errors
    /// As [`ImportanceFile::open`].
    pub fn new(imatrix: Imatrix, path: &Path, config: &ModelConfig) -> Result<Self> {
        workers::start()?;
        let other = |entry: &str, problem: String| Error::BadFile {
            path: path.into(),
            place: format!("{entry}.in_sum2"),
            problem: format!("{problem}: it is of another model"),
            remedy: "calibrate this model (yuan-quant calibrate), or leave out --importance",
        };
        let (mut places, mut matched, mut together) = (HashMap::new(), 0, 0);
        for spec in names::tensors(config) {
            let Some((entry, matrix)) = names::importance(&spec, config) else { continue };
            // The authors' names for the experts, each by itself.
            let is_there = imatrix.entries.contains_key(&entry);
            let (entry, matrix) = if is_there { (entry, matrix) } else { (spec.gguf.clone(), 0) };
            let Some(found) = imatrix.entries.get(&entry) else { continue };
            let cols: usize = spec.shape[1..].iter().product();
            if found.cols != cols {
                return Err(other(&entry, format!("it has {} columns, and the model {cols}", found.cols)));
            }
            if matrix >= found.counts.len()
                || (found.counts.len() > 1 && found.counts.len() != config.experts)
            {
                let count = found.counts.len();
                return Err(other(
                    &entry,
                    format!("it is of {count} experts, and the model has {}", config.experts),
                ));
            }
            matched += 1;
            let moments = moments_of(spec.role, &entry);
            let seen = match spec.role {
                Role::ExpertOut { layer, .. } => Some(layer + 1),
                Role::Attention => names::layer_of_output(&spec.gguf),
                _ => None,
            };
            if seen.is_some() {
                together = together.max(spec.shape[0] * cols.next_multiple_of(TILE_NEURONS));
            }
            places.insert(spec.hf, Place { entry, matrix, moments, seen });
        }
        for layer in 0..config.layers {
            let entry = names::routing(layer);
            let cols = imatrix.entries.get(&entry).map_or(config.hidden, |found| found.cols);
            if cols != config.hidden {
                let hidden = config.hidden;
                return Err(other(
                    &entry,
                    format!("it has {cols} columns, and the model's hidden state {hidden}"),
                ));
            }
        }
        if matched == 0 {
            let first = imatrix.entries.keys().next().cloned().unwrap_or_default();
            return Err(other(&first, "the model has no such tensor, nor any other of the file".into()));
        }
        Ok(Self {
            path: path.into(),
            imatrix,
            places,
            factors: Mutex::default(),
            layer: Mutex::default(),
            outputs: Mutex::default(),
            together,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of memory that a conversion takes for it at most, about, beside the file's pages: second moments taken apart, and those that are being taken; the
    /// weights of a matrix whose rows are encoded together, as read and as stored.
    pub fn memory(&self, threads: usize) -> u64 {
        let grams = self.imatrix.entries.values().filter_map(|entry| entry.gram.as_ref());
        let of = |width: u64, n: u64| n * width * width * 8;
        let each =
            grams.map(|gram| of(gram.width as u64, (KEPT + KEPT_OUTPUTS + threads).max(gram.blocks) as u64));
        each.max().unwrap_or(0) + 8 * self.together as u64
    }

    /// A digest of all that it says, so that a conversion is continued with the same only.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for (name, entry) in &self.imatrix.entries {
            hasher.update(name.as_bytes()).update(&(entry.cols as u64).to_le_bytes());
            hasher.update(bytemuck::cast_slice(&entry.counts)).update(bytemuck::cast_slice(&entry.sums));
            if let Some(gram) = &entry.gram {
                hasher.update(&(gram.width as u64).to_le_bytes());
                hasher.update_rayon(bytemuck::cast_slice(gram.floats()));
            }
        }
        *hasher.finalize().as_bytes()
    }

    /// What a user should know of it: of how much text it is, whether it has second moments, and which experts few tokens have reached.
    pub fn summary(&self) -> Vec<String> {
        let Imatrix { datasets, chunks, chunk_size, entries, .. } = &self.imatrix;
        let of_inputs =
            entries.iter().filter(|(name, entry)| name.ends_with(".weight") && entry.gram.is_some());
        let moments = of_inputs.count();
        let kind = match moments {
            0 => "a weighted search for scales".into(),
            n => format!(
                "a weighted search for scales, and error feedback by the second moments of {n} inputs"
            ),
        };
        let mut told = vec![format!(
            "importance: {}: {chunks} pieces of up to {chunk_size} tokens of {}: {kind}",
            self.path.display(),
            datasets.join(", ")
        )];
        let few = entries.iter().filter(|(_, e)| e.counts.len() > 1).flat_map(|(name, entry)| {
            let few = entry.counts.iter().enumerate().filter(|(_, count)| **count < FEW);
            few.map(move |(expert, count)| format!("{name} expert {expert} ({count})"))
        });
        let few: Vec<String> = few.collect();
        if !few.is_empty() {
            let named = few[..few.len().min(5)].join(", ");
            let more = if few.len() > 5 { ", …" } else { "" };
            told.push(format!(
                "fewer than {FEW} tokens reached {} experts' matrices, which take after the others of their layers: {named}{more}; more text, or other \
                 text, helps",
                few.len()
            ));
        }
        told
    }

    /// What the routers of the layers from `first` on ask of the rows of a matrix that adds to the hidden state.
    fn outputs(&self, first: usize) -> Result<Option<Arc<Factor>>> {
        let kept = || self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, factor)) = kept().iter().find(|(layer, _)| *layer == first) {
            return Ok(Some(factor.clone()));
        }
        let mut sum: Option<Vec<f32>> = None;
        let mut last = String::new();
        for layer in first.. {
            last = names::routing(layer);
            let Some(Entry { cols, counts, gram: Some(gram), .. }) = self.imatrix.entries.get(&last) else {
                break;
            };
            if gram.width != *cols {
                return Ok(None);
            }
            let sum = sum.get_or_insert_with(|| vec![0.0; cols * cols]);
            let tokens = counts.iter().sum::<f32>().max(1.0);
            sum.par_iter_mut().zip(gram.block(0, 0)).for_each(|(sum, own)| *sum += own / tokens);
        }
        let Some(sum) = sum else { return Ok(None) };
        let width = sum.len().isqrt();
        // Experts that are all used are not chosen.
        if (0..width).all(|i| sum[i * (width + 1)] == 0.0) {
            return Ok(None);
        }
        let factor = Factor::of(&sum, width, 1.0 / ROUTING).ok_or_else(|| {
            Error::bad_file(
                &self.path,
                format!("{last}.in_gram"),
                "it holds no second moments: it is damaged",
            )
        })?;
        let factor = Arc::new(factor);
        let mut kept = kept();
        kept.push((first, factor.clone()));
        if kept.len() > KEPT_OUTPUTS {
            kept.remove(0);
        }
        Ok(Some(factor))
    }

    /// The second moments of all experts of a layer together.
    fn together(&self, name: &str, gram: &Gram, block: usize) -> Arc<Vec<f32>> {
        let key = (name.to_owned(), block);
        let kept = || self.layer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, all)) = kept().as_ref().filter(|(k, _)| *k == key) {
            return all.clone();
        }
        let mut all = vec![0.0; gram.width * gram.width];
        all.par_chunks_mut(gram.width).enumerate().for_each(|(i, row)| {
            for matrix in 0..gram.matrices {
                let own = &gram.block(matrix, block)[i * gram.width..];
                row.iter_mut().zip(own).for_each(|(all, own)| *all += own);
            }
        });
        let all = Arc::new(all);
        *kept() = Some((key, all.clone()));
        all
    }

    /// The second moments of a block of columns, taken apart.
    fn factor(&self, name: &str, matrix: usize, block: usize) -> Result<Option<Arc<Factor>>> {
        let Some(Entry { counts, gram: Some(gram), .. }) = self.imatrix.entries.get(name) else {
            return Ok(None);
        };
        let key = (name.to_owned(), if gram.matrices == 1 { 0 } else { matrix }, block);
        let kept = || self.factors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, factor)) = kept().iter().find(|(k, _)| *k == key) {
            return Ok(Some(factor.clone()));
        }
        let damaged = || {
            let place = format!("{name}.in_gram, matrix {}, block {block}", key.1);
            Error::bad_file(&self.path, place, "it holds no second moments: it is damaged")
        };
        let own = gram.block(key.1, block);
        let factor = match gram.matrices == 1 {
            true => Factor::of(own, gram.width, DAMPING),
            // The neurons of another expert say nothing of its own.
            false if name.ends_with("ffn_down_exps.weight") => {
                Factor::of(own, gram.width, DAMPING_OF_NEURONS + f64::from(PRIOR / (counts[matrix] + 1.0)))
            }
            false => {
                let all = self.together(name, gram, block);
                let tokens = f64::from(counts[matrix]) / f64::from(counts[matrix] + gram.width as f32);
                let mixed = mix(own, &all, gram.width, tokens).ok_or_else(damaged)?;
                Factor::of(&mixed, gram.width, DAMPING)
            }
        };
        let factor = factor.ok_or_else(damaged)?;
        let factor = Arc::new(factor);
        if gram.matrices == 1 {
            let mut kept = kept();
            kept.push((key, factor.clone()));
            if kept.len() > KEPT {
                kept.remove(0);
            }
        }
        Ok(Some(factor))
    }
}

/// Second moments of an expert that has `share` of its tokens' worth, with those of all experts of the layer for the rest; both over their sizes. `None` where they
/// have none.
fn mix(own: &[f32], all: &[f32], width: usize, share: f64) -> Option<Vec<f32>> {
    let size = |moments: &[f32]| (0..width).map(|i| f64::from(moments[i * (width + 1)])).sum::<f64>();
    let (own_size, all_size) = (size(own), size(all));
    if !(own_size >= 0.0 && all_size >= 0.0 && (own_size + all_size).is_finite()) {
        return None;
    }
    let part = |share: f64, size: f64| if size > 0.0 { (share / size) as f32 } else { 0.0 };
    let (a, b) = (part(share, own_size), part(1.0 - share, all_size));
    Some(own.iter().zip(all).map(|(own, all)| a * own + b * all).collect())
}

/// Which entry has the second moments of the inputs of a matrix, and how often they stand side by side: matrices with the same inputs share them.
fn moments_of(role: Role, entry: &str) -> (String, usize) {
    match role {
        Role::Attention if entry.ends_with("attn_k.weight") => (entry.replace("attn_k", "attn_q"), 1),
        Role::Mlp if entry.ends_with("ffn_up.weight") => (entry.replace("ffn_up", "ffn_gate"), 1),
        // The two steps of the first convolution are inputs of v.
        Role::Conv if entry.ends_with("conv1.weight") => (entry.replace("conv1", "attn_v"), 2),
        Role::Conv => (entry.into(), 2),
        _ => (entry.into(), 1),
    }
}

impl Importance for ImportanceFile {
    fn inputs(&self, name: &str, cols: usize) -> Result<Option<Inputs>> {
        let Some(place) = self.places.get(name) else { return Ok(None) };
        let Some(entry) = self.imatrix.entries.get(&place.entry) else { return Ok(None) };
        let mut columns = columns(entry, place.matrix);
        columns.resize(cols, 1.0);
        let (moments, times) = &place.moments;
        let blocks = match self.imatrix.entries.get(moments).and_then(|e| e.gram.as_ref()) {
            Some(gram) => gram.blocks,
            None => return Ok(Some(Inputs { columns, factors: Vec::new(), outputs: None })),
        };
        let blocks: Vec<usize> = (0..*times).flat_map(|_| 0..blocks).collect();
        let factors = blocks.into_par_iter().map(|block| self.factor(moments, place.matrix, block));
        let factors = factors.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        let outputs = place.seen.map(|layer| self.outputs(layer)).transpose()?.flatten();
        Ok(Some(Inputs { columns, factors, outputs }))
    }
}

/// What the squared errors of the columns of a matrix are worth: the mean squares of its inputs, with what is believed before the first token, over their mean.
fn columns(entry: &Entry, matrix: usize) -> Vec<f32> {
    let (cols, tokens) = (entry.cols, entry.counts.iter().sum::<f32>().max(1.0));
    let sums = &entry.sums[matrix * cols..][..cols];
    let mean: Vec<f32> =
        (0..cols).map(|c| entry.sums.iter().skip(c).step_by(cols).map(|s| s / tokens).sum()).collect();
    let values: Vec<f32> =
        sums.iter().zip(mean).map(|(s, mean)| (s + PRIOR * mean) / (entry.counts[matrix] + PRIOR)).collect();
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / cols as f64;
    if !(mean > 0.0 && mean.is_finite()) {
        return vec![1.0; cols];
    }
    values.iter().map(|v| ((f64::from(*v) / mean) as f32).max(LEAST)).collect()
}
