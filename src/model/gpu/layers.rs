//! The layers of the forward pass on a GPU, in the steps of `model/forward.rs`. Every line queues a kernel; the host waits once a layer, for
//! the router, unless all experts are there.

use yuan_kernels::DType;

use super::{
    experts::{Slots, Step},
    mirror::Kept,
    scratch::{Scratch, Shape},
    trunk::{GpuLayer, Trunk},
};
use crate::{
    error::{Error, Result},
    gpu::{
        memory::View,
        ops::{Ops, f32s},
    },
    model::{Model, cancel::Cancel, feed_forward::FeedForward},
    pager::Pass,
};

/// What a call says of its tokens.
#[derive(Clone, Copy)]
pub struct Call<'c> {
    pub model: &'c Model,
    pub pass: &'c Pass<'c>,
    pub shape: Shape,
    pub kv: DType,
    pub tokens: usize,
    /// Positions before them.
    pub start: usize,
    /// Numbers of tokens after which a state is wanted.
    pub ends: &'c [usize],
    pub cancel: &'c Cancel,
}

impl Call<'_> {
    /// All layers, on what lies in `s.inputs`. They leave the residuals there, and what the ends ask for in `s.ends`.
    pub fn layers(
        self,
        ops: Ops<'_>,
        trunk: &Trunk,
        s: &Scratch,
        slots: &mut Slots,
        memory: &Kept,
    ) -> Result<()> {
        let Self { model, pass, shape, tokens, .. } = self;
        let at = shape.inputs(tokens);
        let x = s.inputs.part(at.x..at.x + f32s(tokens * shape.hidden))?;
        if let Some(table) = &trunk.embedding {
            table.embed(ops, s.inputs.part(at.ids..at.ids + 4 * tokens)?, x, tokens)?;
        }
        for (l, layer) in trunk.layers.iter().enumerate() {
            if self.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            self.attention(ops, l, layer, s, memory, x)?;

            // Attention is added to the residual. Feed forward: the experts that the router picks.
            let FeedForward::Moe { experts, .. } = &model.layers[l].feed_forward else {
                return Err(Error::Argument("a dense model does not run on a GPU".into()));
            };
            let (rows, eps) = ((tokens, shape.hidden), model.config.rms_eps);
            ops.rms_norm(x, s.o.view(), layer.post_norm.view(), s.a.views(), rows, eps)?;
            layer.router.product(ops, s.a.views(), s.qkv.view(), tokens)?;
            let (chosen, route) = (s.chosen(l, tokens * shape.used)?, (tokens, shape.experts, shape.used));
            ops.route(s.qkv.view(), chosen, s.weights.view(), route, layer.normalize)?;
            slots.apply(Step { ops, model, pass, layer: l, experts, scratch: s, tokens }, x)?;
        }
        // Behind the filters, the residual at every place where a state is wanted.
        let filters = self.ends.len() * shape.layers * shape.filter_bytes();
        for (i, end) in self.ends.iter().enumerate() {
            let to = filters + f32s(i * shape.hidden);
            ops.copy(s.ends.part(to..to + f32s(shape.hidden))?, row(x, end - 1, shape.hidden)?)?;
        }
        Ok(())
    }

    /// Attention, which it leaves in `s.o`: v sees the normed input, q and k see its filtered form.
    fn attention(
        self,
        ops: Ops<'_>,
        l: usize,
        layer: &GpuLayer,
        s: &Scratch,
        memory: &Kept,
        x: View<'_>,
    ) -> Result<()> {
        let (shape, n, eps) = (self.shape, self.tokens, self.model.config.rms_eps);
        let (at, rows) = (shape.inputs(n), (n, shape.hidden));
        ops.rms_norm(x, View::NONE, layer.input_norm.view(), s.a.views(), rows, eps)?;
        layer.v.product(ops, s.a.views(), s.v.view(), n)?;

        let filters = at.filters + l * at.filter;
        let last = s.inputs.part(filters..filters + shape.filter_bytes())?;
        let (last_a, last_o1) =
            (last.part(0..f32s(shape.hidden))?, last.part(f32s(shape.hidden)..last.size())?);
        let (pairs, pairs_q8) = s.pairs.views();
        ops.filter_pairs(s.a.data.view(), last_a, pairs, pairs_q8, rows, layer.conv1.interleaved)?;
        layer.conv1.weight.product(ops, s.pairs.views(), s.o1.view(), n)?;
        let half = (n, shape.hidden / 2);
        ops.filter_pairs(s.o1.view(), last_o1, pairs, pairs_q8, half, layer.conv2.interleaved)?;
        layer.conv2.weight.product(ops, s.pairs.views(), s.o2.view(), n)?;
        ops.rms_norm(s.o2.view(), s.a.data.view(), layer.filter_norm.view(), s.g.views(), rows, 1e-6)?;
        // The filter's last inputs, at every place where a state is wanted.
        for (i, end) in self.ends.iter().enumerate() {
            let to = (i * shape.layers + l) * shape.filter_bytes();
            let to = s.ends.part(to..to + shape.filter_bytes())?;
            ops.copy(to, row(s.a.data.view(), end - 1, shape.hidden)?)?;
            ops.copy(to.part(f32s(shape.hidden)..to.size())?, row(s.o1.view(), end - 1, shape.hidden / 2)?)?;
        }

        layer.q.product(ops, s.g.views(), s.q.view(), n)?;
        layer.k.product(ops, s.g.views(), s.k.view(), n)?;
        let angles = s.inputs.part(at.angles..at.angles + f32s(n * shape.rot))?;
        let cache = memory.layer(&shape, self.kv, l, s.inputs.part(0..4)?)?;
        let qkv = [s.q.view(), s.k.view(), s.v.view()];
        ops.heads(qkv, angles, s.queries.view(), cache, (n, shape.rot))?;
        let (attended, attended_q8) = s.attended.views();
        ops.attend(s.queries.view(), cache, memory.partials.view(), attended, (n, self.start + n))?;
        ops.quantize(attended, attended_q8, (n, shape.projection))?;
        layer.o.product(ops, s.attended.views(), s.o.view(), n)
    }
}

/// One of the rows of `cols` numbers.
fn row(rows: View<'_>, t: usize, cols: usize) -> Result<View<'_>> {
    rows.part(f32s(t * cols)..f32s((t + 1) * cols))
}
