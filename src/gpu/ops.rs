//! The operations of the forward pass on a device: each checks that its memory has the sizes that its shape says, and launches
//! a kernel. They trust the numbers that lie in device memory (ids, addresses of experts, counts), which are the model's own: so they are this crate's only.
//! `kernels/cuda/README.md` says what every parameter is; rows are f32 unless they are blocks of 8 bits.

use std::{cell::RefCell, ops::Range};

use yuan_cuda::{Launch, launch};
use yuan_kernels::{DType, blocks::QK};

use super::{
    device::Device,
    driver::{Arg, Work},
    form::Form,
    graph::List,
    memory::View,
};
use crate::{
    config::RouterKind,
    error::{Error, Result},
};

/// Bytes of `n` numbers.
pub const fn f32s(n: usize) -> usize {
    4 * n
}

/// A matrix on a device.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'b> {
    /// Its type.
    pub dtype: DType,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Panels, or rows of a float type.
    pub bytes: View<'b>,
    /// One for each output, or none.
    pub bias: View<'b>,
}

impl Weights<'_> {
    fn bytes(&self) -> usize {
        self.rows * self.dtype.row_bytes(self.cols).unwrap_or(usize::MAX / self.rows.max(1))
    }
}

/// Keys and values of one layer for the rows of a pass. They lie in pages of [`launch::SPAN`] positions, each
/// [layers][keys, values][heads][`SPAN`][dim].
#[derive(Clone, Copy, Debug)]
pub struct Cache<'b> {
    /// `F16` or `Q8_0`.
    pub dtype: DType,
    /// Heads.
    pub heads: usize,
    /// Width of one.
    pub dim: usize,
    /// Which.
    pub layer: usize,
    /// Of the pass.
    pub sequences: usize,
    /// Addresses of the pages, u64 [sequences][stride]: of each that holds a position up to that of a row.
    pub pages: View<'b>,
    /// Pages of a sequence.
    pub stride: usize,
    /// Where each row stands, i32 [T, [`launch::ROW`]].
    pub rows: View<'b>,
}

impl<'b> Cache<'b> {
    /// Bytes of a page.
    pub const fn page_bytes(dtype: DType, layers: usize, heads: usize, dim: usize) -> usize {
        2 * layers * heads * launch::SPAN * dim / dtype.block_len() * dtype.block_bytes()
    }

    /// The views, for so many rows.
    fn views(&self, rows: usize) -> [(View<'b>, usize); 2] {
        [(self.pages, 8 * self.sequences * self.stride), (self.rows, row_bytes(rows))]
    }

    /// The part of it that is about some of the rows.
    fn of(self, rows: &Range<usize>) -> Result<Self> {
        let part = row_bytes(rows.start)..row_bytes(rows.end);
        Ok(Self { rows: self.rows.part(part)?, ..self })
    }
}

/// Bytes that say where so many rows stand.
pub const fn row_bytes(rows: usize) -> usize {
    4 * launch::ROW * rows
}

/// The experts of one layer for a call.
#[derive(Clone, Copy, Debug)]
pub struct Experts<'b> {
    /// `Q4_0` or `Q4_K`.
    pub dtype: DType,
    /// Experts of the layer.
    pub experts: usize,
    /// Experts of a token.
    pub used: usize,
    /// H.
    pub hidden: usize,
    /// Tiles of an expert.
    pub tiles: usize,
    /// Addresses of the experts, 0 for those that are not computed, u64 [E].
    pub table: View<'b>,
    /// The memory that these addresses lie in.
    pub arena: View<'b>,
    /// The experts of each slot, i32 [S].
    pub chosen: View<'b>,
    /// Slots in the order of their experts: i32 [E + 1] and [S].
    pub order: (View<'b>, View<'b>),
    /// f32 [S, tiles * 256], and its 8-bit form.
    pub h: (View<'b>, View<'b>),
    /// f32 [S, H].
    pub out: View<'b>,
}

/// The operations on one device, each of which is queued at once, or put into a list for a [`Graph`](super::Graph).
#[derive(Clone, Copy, Debug)]
pub struct Ops<'d> {
    device: &'d Device,
    list: Option<&'d RefCell<List>>,
}

type Views<'v, 'b> = &'v [(View<'b>, usize)];

/// Whether each view has so many bytes, or is none.
fn need(views: Views<'_, '_>) -> Result<()> {
    match views.iter().find(|(view, bytes)| view.at() != 0 && view.size() < *bytes) {
        Some((view, bytes)) => {
            Err(Error::Argument(format!("{} bytes on the GPU are no {bytes}", view.size())))
        }
        None => Ok(()),
    }
}

/// A number that fits the kernels' i32.
fn int(n: usize) -> Result<Arg> {
    i32::try_from(n).map(Arg::I32).map_err(|_| Error::Argument(format!("{n} is too large for the GPU")))
}

fn at(view: View<'_>) -> Arg {
    Arg::At(view.at())
}

impl<'d> Ops<'d> {
    /// Operations that are queued.
    pub fn new(device: &'d Device) -> Self {
        Self { device, list: None }
    }

    /// Operations that go into a list.
    pub fn listed(device: &'d Device, list: &'d RefCell<List>) -> Self {
        Self { device, list: Some(list) }
    }

    fn go<'v>(&self, work: Work, views: impl Iterator<Item = View<'v>>) -> Result<()> {
        if let Some(list) = self.list {
            list.borrow_mut().push(work, views);
            return Ok(());
        }
        // SAFETY: `launch` and `copy`, which call this, have checked the sizes; memory is not given back before what is queued is done.
        self.device.call(|c| unsafe { c.queue(&work) })
    }

    fn launch(&self, what: &str, launch: Option<Launch>, views: Views<'_, '_>, args: &[Arg]) -> Result<()> {
        need(views)?;
        let launch = launch
            .ok_or_else(|| Error::Argument(format!("the GPU has no {what} of this shape; use --gpu off")))?;
        // The arguments are those of the kernel's row in kernels/cuda/README.md.
        self.go(Work::Launch(launch, args.to_vec()), views.iter().map(|(view, _)| *view))
    }

    /// Copies all of `from` to the beginning of `to`.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is no room; as [`Device::call`].
    pub fn copy(&self, to: View<'_>, from: View<'_>) -> Result<()> {
        let to = to.part(0..from.size())?;
        self.go(Work::Copy { to: to.at(), from: from.at(), bytes: from.size() }, [to, from].into_iter())
    }

    /// `x += plus`, which may be none, and then `out = RMSNorm(x; weight)` and its blocks of this form, either of which may be none.
    ///
    /// # Errors
    /// All operations: [`Error::Argument`] for views that are too small or shapes that there is no kernel for; as [`Device::call`].
    pub fn rms_norm(
        &self,
        x: View<'_>,
        plus: View<'_>,
        weight: View<'_>,
        (out, q8, form): (View<'_>, View<'_>, Form),
        (tokens, cols): (usize, usize),
        eps: f32,
    ) -> Result<()> {
        let (rows, blocks) = (f32s(tokens * cols), form.bytes(tokens, cols));
        let views = [(x, rows), (plus, rows), (weight, f32s(cols)), (out, rows), (q8, blocks)];
        let scale = int(form.columns)?;
        let args = [at(x), at(plus), at(weight), at(out), at(q8), scale, int(cols)?, Arg::F32(eps)];
        self.launch("norm", launch::rms_norm(cols, tokens), &views, &args)
    }

    /// Blocks of rows.
    ///
    /// # Errors
    /// As [`Ops::rms_norm`].
    pub fn quantize(
        &self,
        x: View<'_>,
        (q8, form): (View<'_>, Form),
        (rows, cols): (usize, usize),
    ) -> Result<()> {
        let views = [(x, f32s(rows * cols)), (q8, form.bytes(rows, cols))];
        let args = [at(x), at(q8), int(form.columns)?, int(cols)?, int(rows)?];
        self.launch("blocks", launch::quantize(cols, rows), &views, &args)
    }

    /// `out = x wᵀ + bias`. `x` is in blocks of the weights' form where they are quantized, and f32 where they are floats.
    ///
    /// # Errors
    /// As [`Ops::rms_norm`].
    pub fn product(&self, w: Weights<'_>, x: View<'_>, out: View<'_>, tokens: usize) -> Result<()> {
        let Weights { dtype, rows, cols, bytes, bias } = w;
        let blocks = Form::of(dtype).bytes(tokens, cols);
        let input = if dtype.is_quantized() { blocks } else { f32s(tokens * cols) };
        let views = [(bytes, w.bytes()), (x, input), (bias, f32s(rows)), (out, f32s(tokens * rows))];
        let args = [at(bytes), at(x), at(bias), at(out), int(rows)?, int(cols)?, int(tokens)?];
        self.launch("product", launch::product(dtype, rows, cols, tokens), &views, &args)
    }

    /// The rows of `table`, which lies in rows, whose numbers are `ids`, i32 [T]: each is smaller than `table.rows`.
    ///
    /// # Errors
    /// As [`Ops::rms_norm`].
    pub fn embed(&self, table: Weights<'_>, ids: View<'_>, out: View<'_>, tokens: usize) -> Result<()> {
        let Weights { dtype, cols, bytes, .. } = table;
        let views = [(bytes, table.bytes()), (ids, 4 * tokens), (out, f32s(tokens * cols))];
        let args = [at(bytes), at(ids), at(out), int(cols)?];
        self.launch("embedding", launch::embed(dtype, tokens), &views, &args)
    }

    /// Rows `x[t-1], x[t]` for a convolution, in f32 and in blocks of this form, either of which may be none. What stands before a sequence's first
    /// row is its part of `last`, which begins `pitch` numbers behind that of the sequence before.
    ///
    /// # Errors
    /// As [`Ops::rms_norm`].
    pub fn filter_pairs(
        &self,
        x: View<'_>,
        (last, pitch): (View<'_>, usize),
        cache: Cache<'_>,
        (pairs, q8, form): (View<'_>, View<'_>, Form),
        (tokens, cols): (usize, usize),
        interleaved: bool,
    ) -> Result<()> {
        let views = [
            (x, f32s(tokens * cols)),
            (last, f32s((cache.sequences - 1) * pitch + cols)),
            (cache.rows, row_bytes(tokens)),
            (pairs, f32s(2 * tokens * cols)),
            (q8, form.bytes(tokens, 2 * cols)),
        ];
        let args = [
            at(x),
            at(last),
            at(cache.rows),
            at(pairs),
            at(q8),
            int(form.columns)?,
            int(cols)?,
            int(pitch)?,
            Arg::I32(interleaved.into()),
            int(tokens)?,
        ];
        self.launch("filter", launch::filter_pairs(cols, tokens), &views, &args)
    }

    /// Queries, keys and values of all heads from the projections `q`, `k` and `v`; keys and values go into the pages.
    ///
    /// # Errors
    /// As [`Ops::rms_norm`].
    pub fn heads(
        &self,
        [q, k, v]: [View<'_>; 3],
        angles: View<'_>,
        queries: View<'_>,
        cache: Cache<'_>,
        (tokens, rot): (usize, usize),
    ) -> Result<()> {
        let rows = f32s(tokens * cache.heads * cache.dim);
        let [pages, places] = cache.views(tokens);
        let angle = (angles, f32s(tokens * rot));
        let views = [(q, rows), (k, rows), (v, rows), (queries, rows), angle, pages, places];
        let args = [
            at(q),
            at(k),
            at(v),
            at(angles),
            at(queries),
            at(cache.pages),
            at(cache.rows),
            int(cache.layer)?,
            int(cache.heads)?,
            int(cache.dim)?,
            int(rot)?,
            int(cache.stride)?,
        ];
        self.launch("heads", launch::heads(cache.dtype, cache.heads, cache.dim, tokens), &views, &args)
    }

    /// Causal attention of some of the rows, each span of which has a block: for those of sequences that have few. No row sees more than `spans` spans. As many rows
    /// as `partials` has room for go together.
    ///
    /// # Errors
    /// As [`Ops::rms_norm`].
    pub fn attend_few(
        &self,
        queries: View<'_>,
        cache: Cache<'_>,
        partials: View<'_>,
        out: View<'_>,
        rows: Range<usize>,
        spans: usize,
    ) -> Result<()> {
        let Cache { dtype, heads, dim, .. } = cache;
        let width = f32s(heads * dim);
        let most = (partials.size() / f32s(launch::partials(heads, dim, spans, 1)).max(1)).max(1);
        for first in rows.clone().step_by(most) {
            let some = first..rows.end.min(first + most);
            let (n, part) = (some.len(), width * some.start..width * some.end);
            let (queries, out, cache) = (queries.part(part.clone())?, out.part(part)?, cache.of(&some)?);
            let partial = (partials, f32s(launch::partials(heads, dim, spans, n)));
            let [pages, places] = cache.views(n);
            let args = [
                at(queries),
                at(cache.pages),
                at(cache.rows),
                at(partials),
                int(cache.layer)?,
                int(heads)?,
                int(dim)?,
                int(cache.stride)?,
                int(spans)?,
            ];
            let spread = launch::attend_spans(dtype, heads, dim, spans, n);
            self.launch("attention", spread, &[pages, places, (queries, n * width), partial], &args)?;
            let args = [at(partials), at(out), at(cache.rows), int(heads)?, int(dim)?, int(spans)?];
            let join = launch::attend_join(heads, n);
            self.launch("attention", join, &[partial, (out, n * width), places], &args)?;
        }
        Ok(())
    }

    /// Causal attention of `count` groups of the `tokens` rows: `groups`, i32 [count, 2], has the first row and the number of rows of each, which are of
    /// one sequence, one behind the other, and at most [`launch::QUERIES`].
    ///
    /// # Errors
    /// As [`Ops::rms_norm`].
    pub fn attend_many(
        &self,
        queries: View<'_>,
        cache: Cache<'_>,
        (groups, count): (View<'_>, usize),
        out: View<'_>,
        tokens: usize,
    ) -> Result<()> {
        let Cache { dtype, heads, dim, .. } = cache;
        let rows = f32s(tokens * heads * dim);
        let [pages, places] = cache.views(tokens);
        let args = [
            at(queries),
            at(cache.pages),
            at(cache.rows),
            at(groups),
            at(out),
            int(cache.layer)?,
            int(heads)?,
            int(dim)?,
            int(cache.stride)?,
        ];
        let views = [pages, places, (groups, 8 * count), (queries, rows), (out, rows)];
        self.launch("attention", launch::attend_many(dtype, heads, dim, count), &views, &args)
    }

    /// The `k` best of each [`launch::TOP_CHUNK`] of `n` numbers, best first, and their ids, i32: those of `from`, or, where it has none, the
    /// places of the numbers. Of equals the earlier is better; an id of -1 is none.
    ///
    /// # Errors
    /// As [`Ops::rms_norm`].
    pub fn top_k(
        &self,
        from: (View<'_>, View<'_>),
        best: (View<'_>, View<'_>),
        (n, k): (usize, usize),
    ) -> Result<()> {
        let kept = 4 * n.div_ceil(launch::TOP_CHUNK) * k;
        let views = [(from.0, f32s(n)), (from.1, 4 * n), (best.0, kept), (best.1, kept)];
        let args = [at(from.0), at(from.1), at(best.0), at(best.1), int(n)?, int(k)?];
        self.launch("ranking", launch::top_k(n, k), &views, &args)
    }

    /// The experts and weights [T, used] of tokens from their projections `x`, those of the attention router [T, 3E] or of the linear one [T, E].
    ///
    /// # Errors
    /// As [`Ops::rms_norm`].
    pub fn route(
        &self,
        kind: RouterKind,
        x: View<'_>,
        chosen: View<'_>,
        weights: View<'_>,
        (tokens, experts, used): (usize, usize, usize),
        normalize: bool,
    ) -> Result<()> {
        let slots = 4 * tokens * used;
        let views = [(x, f32s(kind.projections() * tokens * experts)), (chosen, slots), (weights, slots)];
        let [normalize, linear] = [normalize, kind == RouterKind::Linear].map(|flag| Arg::I32(flag.into()));
        let args = [at(x), Arg::At(0), at(chosen), at(weights), int(experts)?, int(used)?, normalize, linear];
        self.launch("router", launch::route(experts, used, tokens), &views, &args)
    }

    /// The slots of a batch in the order of their experts.
    ///
    /// # Errors
    /// As [`Ops::rms_norm`].
    pub fn sort(&self, e: Experts<'_>, slots: usize) -> Result<()> {
        let views = [(e.chosen, 4 * slots), (e.order.0, 4 * (e.experts + 1)), (e.order.1, 4 * slots)];
        let args = [at(e.chosen), at(e.order.0), at(e.order.1), int(slots)?, int(e.experts)?];
        self.launch("sort", launch::sort_slots(e.experts), &views, &args)
    }

    /// The outputs of the slots whose experts are in the table, for inputs `x` in blocks of their form. [`Ops::sort`] goes before, where there are
    /// more than [`launch::FEW`] tokens.
    ///
    /// # Errors
    /// As [`Ops::rms_norm`].
    pub fn experts(&self, e: Experts<'_>, x: View<'_>, tokens: usize) -> Result<()> {
        let (slots, neurons) = (tokens * e.used, e.tiles * QK);
        let ((h, hq), form) = (e.h, Form::of(e.dtype));
        let views = [
            (e.table, 8 * e.experts),
            (e.arena, 0),
            (e.chosen, 4 * slots),
            (e.order.0, 4 * (e.experts + 1)),
            (e.order.1, 4 * slots),
            (x, form.bytes(tokens, e.hidden)),
            (h, f32s(slots * neurons)),
            (hq, form.bytes(slots, neurons)),
            (e.out, f32s(slots * e.hidden)),
        ];
        let (hidden, tiles, experts) = (int(e.hidden)?, int(e.tiles)?, int(e.experts)?);
        let many = tokens > launch::FEW;
        let order = [at(e.order.0), at(e.order.1)];
        let up = match many {
            false => vec![at(e.table), at(e.chosen), at(x), at(h), int(e.used)?, hidden, tiles],
            true => vec![at(e.table), order[0], order[1], at(x), at(h), int(e.used)?, hidden, tiles, experts],
        };
        let down = match many {
            false => vec![at(e.table), at(e.chosen), at(hq), at(e.out), hidden, tiles],
            true => vec![at(e.table), order[0], order[1], at(hq), at(e.out), hidden, tiles, experts],
        };
        let launches = match many {
            false => [
                launch::expert_gate_up(e.dtype, slots, e.tiles),
                launch::expert_down(e.dtype, slots, e.hidden),
            ],
            true => [
                launch::expert_gate_up_many(e.dtype, slots, e.experts, e.tiles),
                launch::expert_down_many(e.dtype, slots, e.experts, e.hidden),
            ],
        };
        self.launch("experts", launches[0], &views, &up)?;
        self.quantize(h, (hq, form), (slots, neurons))?;
        self.launch("experts", launches[1], &views, &down)
    }

    /// `x += sum of weight * output` of the slots of each token, in the order of the experts' numbers.
    ///
    /// # Errors
    /// As [`Ops::rms_norm`].
    pub fn combine(&self, e: Experts<'_>, weights: View<'_>, x: View<'_>, tokens: usize) -> Result<()> {
        let slots = tokens * e.used;
        let views = [
            (e.out, f32s(slots * e.hidden)),
            (e.chosen, 4 * slots),
            (weights, 4 * slots),
            (x, f32s(tokens * e.hidden)),
        ];
        let args = [at(e.out), at(e.chosen), at(weights), at(x), int(e.hidden)?, int(e.used)?];
        self.launch("sum of experts", launch::combine(e.hidden, tokens), &views, &args)
    }
}
