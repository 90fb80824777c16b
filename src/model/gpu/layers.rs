//! The layers of the forward pass on a GPU, in the steps of `model/forward.rs`. Every line queues a kernel; the host waits once a layer, for
//! the router, unless all experts are there.

use super::{
    experts::{Slots, Step},
    pages::PageShape,
    part::Part,
    scratch::{Scratch, Shape, Size},
    trunk::{GpuLayer, Trunk},
};
use crate::{
    error::{Error, Result},
    gpu::{
        form::Form,
        memory::View,
        ops::{Cache, Ops, f32s, row_bytes},
    },
    model::{Model, feed_forward::FeedForward},
    pager::Pass,
};

/// What a pass says of its rows.
#[derive(Clone, Copy)]
pub struct Call<'c> {
    pub model: &'c Model,
    pub pass: &'c Pass<'c>,
    pub shape: Shape,
    pub page: PageShape,
    pub size: Size,
    /// The first rows, of sequences that have few: so many.
    pub few: usize,
    /// Groups of the others.
    pub groups: usize,
    /// Rows behind which a state is wanted.
    pub ends: &'c [usize],
    pub parts: &'c [Part],
}

impl Call<'_> {
    /// All layers, on what lies in `s.inputs`. They leave the residuals there, and what the ends ask for in `s.ends`.
    pub fn layers(self, ops: Ops<'_>, trunk: &Trunk, s: &Scratch, slots: &mut Slots) -> Result<()> {
        let Self { model, pass, shape, size, .. } = self;
        let (at, tokens) = (shape.inputs(size), size.rows);
        let x = s.inputs.part(at.x..at.x + f32s(tokens * shape.hidden))?;
        if let Some(table) = &trunk.embedding {
            table.embed(ops, s.inputs.part(at.ids..at.ids + 4 * tokens)?, x, tokens)?;
        }
        for (l, layer) in trunk.layers.iter().enumerate() {
            // The rows of one that is cancelled go on beside the others'.
            if self.parts.iter().all(|part| part.cancel.is_cancelled()) {
                return Err(Error::Cancelled);
            }
            self.attention(ops, l, layer, s, x)?;

            // Attention is added to the residual. Feed forward: the experts that the router picks.
            let FeedForward::Moe { experts, .. } = &model.layers[l].feed_forward else {
                return Err(Error::Argument("a dense model does not run on a GPU".into()));
            };
            let (rows, eps) = ((tokens, shape.hidden), model.config.rms_eps);
            ops.rms_norm(x, s.o.view(), layer.post_norm.view(), s.a.of(Form::of(shape.dtype)), rows, eps)?;
            layer.router.product(ops, s.a.views(), s.qkv.view(), tokens)?;
            let (chosen, route) = (s.chosen(l, tokens * shape.used)?, (tokens, shape.experts, shape.used));
            ops.route(model.config.router, s.qkv.view(), chosen, s.weights.view(), route, layer.normalize)?;
            slots.apply(Step { ops, model, pass, layer: l, experts, scratch: s, tokens }, x)?;
        }
        // Behind the filters, the residual at every place where a state is wanted.
        let filters = self.ends.len() * shape.layers * shape.filter_bytes();
        gather(ops, x, self.ends, shape.hidden, s.ends.part(filters..s.ends.size())?)
    }

    /// Attention, which it leaves in `s.o`: v sees the normed input, q and k see its filtered form.
    fn attention(self, ops: Ops<'_>, l: usize, layer: &GpuLayer, s: &Scratch, x: View<'_>) -> Result<()> {
        let (shape, size, n, eps) = (self.shape, self.size, self.size.rows, self.model.config.rms_eps);
        let (at, rows) = (shape.inputs(size), (n, shape.hidden));
        let cache = Cache {
            dtype: self.page.dtype,
            heads: shape.heads,
            dim: shape.dim,
            layer: l,
            sequences: size.sequences,
            pages: s.inputs.part(at.pages..at.groups)?,
            stride: size.stride,
            rows: s.inputs.part(0..row_bytes(n))?,
        };
        ops.rms_norm(x, View::NONE, layer.input_norm.view(), s.a.of(layer.v.form()), rows, eps)?;
        layer.v.product(ops, s.a.views(), s.v.view(), n)?;

        // The first sequence's last inputs of this layer; the others' follow at a distance.
        let last = s.inputs.part(at.filters + l * at.filter..at.x)?;
        let last_o1 = last.part(f32s(shape.hidden)..last.size())?;
        let pitch = shape.layers * at.filter / f32s(1);
        let (conv1, conv2) = (&layer.conv1, &layer.conv2);
        let [pairs1, pairs2] = [conv1, conv2].map(|conv| s.pairs.of(conv.weight.form()));
        ops.filter_pairs(s.a.data.view(), (last, pitch), cache, pairs1, rows, conv1.interleaved)?;
        conv1.weight.product(ops, s.pairs.views(), s.o1.view(), n)?;
        let half = (n, shape.hidden / 2);
        ops.filter_pairs(s.o1.view(), (last_o1, pitch), cache, pairs2, half, conv2.interleaved)?;
        conv2.weight.product(ops, s.pairs.views(), s.o2.view(), n)?;
        let g = s.g.of(layer.q.form());
        ops.rms_norm(s.o2.view(), s.a.data.view(), layer.filter_norm.view(), g, rows, 1e-6)?;
        // The filter's last inputs, at every place where a state is wanted.
        let ends = self.ends.len() * shape.filter_bytes();
        let ends = s.ends.part(l * ends..(l + 1) * ends)?;
        let second = ends.part(self.ends.len() * f32s(shape.hidden)..ends.size())?;
        gather(ops, s.a.data.view(), self.ends, shape.hidden, ends)?;
        gather(ops, s.o1.view(), self.ends, shape.hidden / 2, second)?;

        layer.q.product(ops, s.g.views(), s.q.view(), n)?;
        layer.k.product(ops, s.g.views(), s.k.view(), n)?;
        let angles = s.inputs.part(at.angles..at.angles + f32s(n * shape.rot))?;
        let qkv = [s.q.view(), s.k.view(), s.v.view()];
        ops.heads(qkv, angles, s.queries.view(), cache, (n, shape.rot))?;
        let (attended, attended_q8) = s.attended.views();
        if self.few > 0 {
            let (queries, partials) = (s.queries.view(), s.partials.view());
            ops.attend_few(queries, cache, partials, attended, 0..self.few, size.stride)?;
        }
        if self.groups > 0 {
            let groups = (s.inputs.part(at.groups..at.ids)?, self.groups);
            ops.attend_many(s.queries.view(), cache, groups, attended, n)?;
        }
        ops.quantize(attended, (attended_q8, layer.o.form()), (n, shape.projection))?;
        layer.o.product(ops, s.attended.views(), s.o.view(), n)
    }
}

/// Copies some of the rows of `cols` numbers to `to`, one behind the other; those that lie side by side go together.
pub fn gather(ops: Ops<'_>, rows: View<'_>, which: &[usize], cols: usize, to: View<'_>) -> Result<()> {
    let mut at = 0;
    for run in which.chunk_by(|a, b| a + 1 == *b) {
        let from = rows.part(f32s(run[0] * cols)..f32s((run[0] + run.len()) * cols))?;
        ops.copy(to.part(at..to.size())?, from)?;
        at += from.size();
    }
    Ok(())
}
