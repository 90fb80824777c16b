//! Intermediate results on a GPU: one piece of memory for each name of the forward pass.

use std::sync::Arc;

use yuan_cuda::launch;
use yuan_kernels::{DType, blocks::QK};

use crate::{
    config::ModelConfig,
    container::TileLayout,
    error::Result,
    gpu::{
        Device,
        form::Form,
        memory::{Buffer, View},
        ops::{f32s, row_bytes},
    },
};

/// The numbers of a model that sizes follow from.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub layers: usize,
    /// H, of a row.
    pub hidden: usize,
    /// P.
    pub projection: usize,
    pub heads: usize,
    pub dim: usize,
    /// Dims of a head that rotate.
    pub rot: usize,
    pub vocab: usize,
    pub experts: usize,
    pub used: usize,
    pub tiles: usize,
    pub tile_bytes: usize,
    pub dtype: DType,
}

impl Shape {
    pub fn new(config: &ModelConfig, layout: &TileLayout) -> Self {
        Self {
            layers: config.layers,
            hidden: config.hidden,
            projection: config.projection,
            heads: config.heads,
            dim: config.head_dim(),
            rot: config.rope_dims / 2 * 2,
            vocab: config.vocab,
            experts: config.experts,
            used: config.experts_used,
            tiles: layout.tiles(),
            tile_bytes: layout.tile_bytes(),
            dtype: layout.dtype,
        }
    }

    /// Bytes of the filter's last inputs of one layer.
    pub fn filter_bytes(&self) -> usize {
        f32s(self.hidden + self.hidden / 2)
    }

    /// Where things lie in the one piece that a pass sends to the GPU.
    pub fn inputs(&self, size: Size) -> Inputs {
        let Size { rows, sequences, stride } = size;
        let pages = row_bytes(rows).next_multiple_of(256);
        let groups = pages + (8 * sequences * stride).next_multiple_of(256);
        let ids = groups + (8 * rows).next_multiple_of(256);
        let angles = ids + (4 * rows).next_multiple_of(256);
        let filters = angles + f32s(rows * self.rot).next_multiple_of(256);
        let filter = self.filter_bytes().next_multiple_of(256);
        let x = filters + sequences * self.layers * filter;
        Inputs { pages, groups, ids, angles, filters, filter, x, end: x + f32s(rows * self.hidden) }
    }

    /// Places of states after some of the tokens of a sequence.
    pub fn ends(&self, tokens: usize) -> usize {
        // Snapshots are at least 64 apart, but for one that is asked for; two more for the borders.
        tokens / 64 + 3
    }

    /// Bytes of so many states: the filter's last inputs of all layers, and the residual.
    pub fn ends_bytes(&self, ends: usize) -> usize {
        ends * (self.layers * self.filter_bytes() + f32s(self.hidden))
    }
}

/// How much a pass is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Tokens of all sequences.
    pub rows: usize,
    pub sequences: usize,
    /// Pages of the sequence that has most.
    pub stride: usize,
}

/// Most sequences of a pass: as many as the loop has in one.
pub const SEQUENCES: usize = crate::model::LOGIT_ROWS;

impl Size {
    /// The largest pass that there is room for: of so many tokens, by sequences of up to `context` positions.
    pub fn most(tokens: usize, context: usize) -> Self {
        Self { rows: tokens, sequences: SEQUENCES, stride: launch::spans(context) }
    }
}

/// Offsets in bytes. It begins with where each row stands, i32 [T, [`launch::ROW`]].
#[derive(Clone, Copy, Debug)]
pub struct Inputs {
    /// Addresses, u64 [sequences][stride].
    pub pages: usize,
    /// Groups of rows for attention, i32 [T, 2] at most.
    pub groups: usize,
    /// The tokens, i32 [T].
    pub ids: usize,
    /// f32 [T, rot / 2, 2].
    pub angles: usize,
    /// The filter's last inputs, by sequence and layer.
    pub filters: usize,
    /// Distance of two layers' filters.
    pub filter: usize,
    /// The embedding, f32 [T, H]: the residual begins here. It is sent where the GPU does not have its table.
    pub x: usize,
    pub end: usize,
}

/// Rows of activations: f32, and blocks of the same, in whichever form the next product takes.
#[derive(Debug)]
pub struct Rows {
    pub data: Buffer,
    pub q8: Buffer,
}

impl Rows {
    fn new(device: &Arc<Device>, rows: usize, cols: usize) -> Result<Self> {
        let q8 = Buffer::new(device, Form::most_bytes(rows, cols))?;
        Ok(Self { data: Buffer::new(device, f32s(rows * cols))?, q8 })
    }

    const fn bytes(rows: usize, cols: usize) -> usize {
        f32s(rows * cols) + Form::most_bytes(rows, cols)
    }

    pub fn views(&self) -> (View<'_>, View<'_>) {
        (self.data.view(), self.q8.view())
    }

    /// To be written in this form.
    pub fn of(&self, form: Form) -> (View<'_>, View<'_>, Form) {
        (self.data.view(), self.q8.view(), form)
    }
}

/// For passes of up to `tokens` tokens.
#[derive(Debug)]
pub struct Scratch {
    pub tokens: usize,
    /// [`Inputs`].
    pub inputs: Buffer,
    /// [T, H]: the normed input of attention or of the experts.
    pub a: Rows,
    /// [T, 2H]: pairs of the filter's inputs.
    pub pairs: Rows,
    /// [T, H/2] and [T, H]: the filter's convolutions.
    pub o1: Buffer,
    pub o2: Buffer,
    /// [T, H]: filtered.
    pub g: Rows,
    /// [T, P] each.
    pub q: Buffer,
    pub k: Buffer,
    pub v: Buffer,
    pub queries: Buffer,
    /// [T, P]: what attention gives.
    pub attended: Rows,
    /// [T, H]: what is added to the residual; then the rows whose logits are wanted.
    pub o: Buffer,
    /// [T, 3E].
    pub qkv: Buffer,
    /// By layer: the experts of each slot, i32 [layers][S].
    pub choices: Buffer,
    /// f32 [S].
    pub weights: Buffer,
    /// i32 [E + 1] and [S].
    pub starts: Buffer,
    pub order: Buffer,
    /// [S, tiles * 256].
    pub h: Rows,
    /// [S, H].
    pub out: Buffer,
    /// The filter's last inputs at all ends, by layer: [ends, H] and [ends, H/2]; and then the residuals there, [ends, H].
    pub ends: Buffer,
    /// Between the two kernels of attention.
    pub partials: Buffer,
    /// [`LOGIT_ROWS`, V].
    pub logits: Buffer,
    /// The best logits and their ids, f32 and i32 [chunks of V, `RANKED`], twice: the best of the best are elsewhere.
    pub ranked: [(Buffer, Buffer); 2],
}

/// Rows of logits that are computed together.
pub const LOGIT_ROWS: usize = 16;
/// Most logits that are ranked: each takes the kernel another round over all.
pub const RANKED: usize = 128;

impl Scratch {
    /// `inputs`, `ends` and `partials` are in bytes.
    pub fn new(
        device: &Arc<Device>,
        shape: &Shape,
        tokens: usize,
        [inputs, ends, partials]: [usize; 3],
    ) -> Result<Self> {
        let Shape { layers, hidden, projection, experts, used, vocab, .. } = *shape;
        let (t, slots) = (tokens, tokens * used);
        let f32 = |n: usize| Buffer::new(device, f32s(n));
        let rows = |rows, cols| Rows::new(device, rows, cols);
        let ranked = || Ok((f32(ranked(vocab))?, f32(ranked(vocab))?));
        Ok(Self {
            tokens,
            inputs: Buffer::new(device, inputs)?,
            a: rows(t, hidden)?,
            pairs: rows(t, 2 * hidden)?,
            o1: f32(t * hidden / 2)?,
            o2: f32(t * hidden)?,
            g: rows(t, hidden)?,
            q: f32(t * projection)?,
            k: f32(t * projection)?,
            v: f32(t * projection)?,
            queries: f32(t * projection)?,
            attended: rows(t, projection)?,
            o: f32(t * hidden)?,
            qkv: f32(t * 3 * experts)?,
            choices: f32(layers * slots)?,
            weights: f32(slots)?,
            starts: f32(experts + 1)?,
            order: f32(slots)?,
            h: rows(slots, shape.tiles * QK)?,
            out: f32(slots * hidden)?,
            ends: Buffer::new(device, ends)?,
            partials: Buffer::new(device, partials)?,
            logits: f32(t.min(LOGIT_ROWS) * vocab)?,
            ranked: [ranked()?, ranked()?],
        })
    }

    /// The experts of each slot of a layer.
    pub fn chosen(&self, layer: usize, slots: usize) -> Result<View<'_>> {
        self.choices.part(4 * slots * layer..4 * slots * (layer + 1))
    }

    /// One row of logits.
    pub fn logits_of(&self, row: usize, shape: &Shape) -> Result<View<'_>> {
        self.logits.part(f32s(row * shape.vocab)..f32s((row + 1) * shape.vocab))
    }

    /// Bytes of it, with those of attention over `context` positions.
    pub fn bytes(shape: &Shape, tokens: usize, context: usize) -> u64 {
        let Shape { layers, hidden, projection, experts, used, vocab, .. } = *shape;
        let (t, slots) = (tokens, tokens * used);
        let rows = 2 * Rows::bytes(t, hidden)
            + Rows::bytes(t, 2 * hidden)
            + Rows::bytes(t, projection)
            + Rows::bytes(slots, shape.tiles * QK);
        let floats = t * (2 * hidden + hidden / 2 + 4 * projection + 3 * experts)
            + slots * (layers + 2 + hidden)
            + t.min(LOGIT_ROWS) * vocab
            + 4 * ranked(vocab);
        let inputs = shape.inputs(Size::most(t, context)).end;
        let ends = shape.ends_bytes(shape.ends(t) + SEQUENCES);
        let all =
            rows + f32s(floats) + inputs + ends + partials_bytes(shape, launch::FEW, launch::spans(context));
        // Borders of the pieces, and tables.
        all as u64 + (1 << 20)
    }
}

/// Logits that the first launch of `top_k` leaves.
const fn ranked(vocab: usize) -> usize {
    vocab.div_ceil(launch::TOP_CHUNK) * RANKED
}

/// Bytes that attention leaves between its two kernels, for so many rows over so many spans.
pub fn partials_bytes(shape: &Shape, rows: usize, spans: usize) -> usize {
    f32s(launch::partials(shape.heads, shape.dim, spans, rows))
}
