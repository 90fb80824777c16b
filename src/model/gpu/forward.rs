//! The forward pass on a GPU, in the steps of `model/forward.rs`. Every line queues kernels; the host waits once a layer, for the router,
//! and once at the end.

use bytemuck::{cast_slice, cast_slice_mut};

use super::{
    Runner,
    experts::Step,
    mirror::{self, Kept},
    scratch::LOGIT_ROWS,
};
use crate::{
    error::{Error, Result},
    gpu::{
        memory::{View, copy},
        ops::{Ops, f32s},
    },
    model::{Model, State, Want, feed_forward::FeedForward, filter::FilterState, norm::rms_norm},
    pager::Pass,
};

impl Runner {
    /// As [`Model::forward`]. When it fails the state holds what [`State::undo`] drops.
    pub fn forward(
        &mut self,
        model: &Model,
        pass: &Pass<'_>,
        tokens: &[u32],
        state: &mut State,
        want: Want,
    ) -> Result<Vec<f32>> {
        let (n, shape, eps) = (tokens.len(), self.shape, model.config.rms_eps);
        self.reserve(n)?;
        let (ends, cancel) = (state.ends(n), state.cancel.clone());
        let start = state.position();
        let kv = mirror::dtype(state.kv_type())
            .ok_or_else(|| Error::Argument("this key-value cache is not for a GPU".into()))?;
        self.send_inputs(model, tokens, state)?;
        let device = self.device.clone();
        let memory = Kept::of(state, &shape, &device, &mut self.pinned)?;

        let Self { trunk, scratch: s, slots, .. } = self;
        let ops = Ops(&device);
        let at = shape.inputs(n);
        let position = s.inputs.part(0..4)?;
        let x = s.inputs.part(at.x..at.x + f32s(n * shape.hidden))?;
        let angles = s.inputs.part(at.angles..at.angles + f32s(n * shape.rot))?;
        let rows = (n, shape.hidden);
        for (l, layer) in trunk.layers.iter().enumerate() {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            // Attention: v sees the normed input, q and k see its filtered form.
            ops.rms_norm(x, layer.input_norm.view(), s.a.data.view(), s.a.q8.view(), rows, eps)?;
            layer.v.product(ops, s.a.views(), s.v.view(), n)?;
            let filters = at.filters + l * at.filter;
            let last = s.inputs.part(filters..filters + shape.filter_bytes())?;
            let (last_a, last_o1) =
                (last.part(0..f32s(shape.hidden))?, last.part(f32s(shape.hidden)..last.size())?);
            let (pairs, pairs_q8) = s.pairs.views();
            ops.filter_pairs(s.a.data.view(), last_a, pairs, pairs_q8, rows, layer.conv1.interleaved)?;
            layer.conv1.weight.product(ops, s.pairs.views(), s.o1.view(), n)?;
            let half = (n, shape.hidden / 2);
            ops.bias(s.o1.view(), layer.conv1.bias.view(), View::NONE, half)?;
            ops.filter_pairs(s.o1.view(), last_o1, pairs, pairs_q8, half, layer.conv2.interleaved)?;
            layer.conv2.weight.product(ops, s.pairs.views(), s.o2.view(), n)?;
            ops.bias(s.o2.view(), layer.conv2.bias.view(), s.a.data.view(), rows)?;
            ops.rms_norm(s.o2.view(), layer.filter_norm.view(), s.g.data.view(), s.g.q8.view(), rows, 1e-6)?;
            layer.q.product(ops, s.g.views(), s.q.view(), n)?;
            layer.k.product(ops, s.g.views(), s.k.view(), n)?;
            let cache = memory.layer(&shape, kv, l, position)?;
            let qkv = [s.q.view(), s.k.view(), s.v.view()];
            ops.heads(qkv, angles, s.queries.view(), cache, (n, shape.rot))?;
            let (attended, attended_q8) = s.attended.views();
            ops.attend(s.queries.view(), cache, memory.partials.view(), attended, (n, start + n))?;
            ops.quantize(attended, attended_q8, (n, shape.projection))?;
            layer.o.product(ops, s.attended.views(), s.o.view(), n)?;
            ops.add(x, s.o.view(), n * shape.hidden)?;
            // The filter's last inputs, at every place where a state is wanted.
            for (i, end) in ends.iter().enumerate() {
                let to = (i * shape.layers + l) * shape.filter_bytes();
                let to = s.ends.part(to..to + shape.filter_bytes())?;
                copy(&device, to, row(s.a.data.view(), end - 1, shape.hidden)?)?;
                let half = shape.hidden / 2;
                copy(&device, to.part(f32s(shape.hidden)..to.size())?, row(s.o1.view(), end - 1, half)?)?;
            }

            // Feed forward: the experts that the router picks.
            let FeedForward::Moe { experts, .. } = &model.layers[l].feed_forward else {
                return Err(Error::Argument("a dense model does not run on a GPU".into()));
            };
            ops.rms_norm(x, layer.post_norm.view(), s.a.data.view(), s.a.q8.view(), rows, eps)?;
            layer.router.product(ops, s.a.views(), s.qkv.view(), n)?;
            let route = (n, shape.experts, shape.used);
            ops.route(s.qkv.view(), s.chosen.view(), s.weights.view(), route, layer.normalize)?;
            slots.apply(Step { model, pass, layer: l, experts, scratch: s, tokens: n }, x)?;
        }

        // Behind the filters, the residual at every place where a state is wanted.
        let filters = ends.len() * shape.layers * shape.filter_bytes();
        for (i, end) in ends.iter().enumerate() {
            let to = filters + f32s(i * shape.hidden);
            copy(&device, s.ends.part(to..to + f32s(shape.hidden))?, row(x, end - 1, shape.hidden)?)?;
        }
        if want == Want::Hidden {
            let hidden = self.hidden(model, at.x, n)?;
            self.end(model, state, &ends)?;
            return Ok(hidden);
        }
        let first = match want {
            Want::Nothing | Want::Hidden => n,
            Want::Last => n - 1,
            Want::All => 0,
        };
        let mut logits = Vec::with_capacity((n - first) * shape.vocab);
        for t in (first..n).step_by(LOGIT_ROWS) {
            let rows = LOGIT_ROWS.min(n - t);
            let range = f32s(t * shape.hidden)..f32s((t + rows) * shape.hidden);
            let residual = at.x + range.start..at.x + range.end;
            self.head(model, residual, rows, &mut logits)?;
        }
        self.end(model, state, &ends)?;
        Ok(logits)
    }

    /// Ends the pass on the host, when all that was read was the file.
    fn end(&mut self, model: &Model, state: &mut State, ends: &[usize]) -> Result<()> {
        model.check_file()?;
        self.take_state(model, state, ends)?;
        self.slots.count(model, *ends.last().unwrap_or(&0))
    }

    /// The `rows` residuals from the byte `x` of the inputs on, behind the final norm.
    fn hidden(&mut self, model: &Model, x: usize, rows: usize) -> Result<Vec<f32>> {
        let (s, bytes) = (&self.scratch, f32s(rows * self.shape.hidden));
        let size = (rows, self.shape.hidden);
        let (from, to) = (s.inputs.part(x..x + bytes)?, s.a.data.view());
        Ops(&self.device).rms_norm(
            from,
            self.trunk.final_norm.view(),
            to,
            View::NONE,
            size,
            model.config.rms_eps,
        )?;
        let mut hidden = Vec::with_capacity(rows * self.shape.hidden);
        self.pinned.collect(s.a.data.part(0..bytes)?, &mut hidden)?;
        Ok(hidden)
    }

    /// Adds the logits of `rows` residuals, which lie in the inputs.
    pub fn head(
        &mut self,
        model: &Model,
        x: std::ops::Range<usize>,
        rows: usize,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let (s, shape) = (&self.scratch, self.shape);
        let ops = Ops(&self.device);
        let (a, q8) = s.a.views();
        let (x, size) = (s.inputs.part(x)?, (rows, shape.hidden));
        ops.rms_norm(x, self.trunk.final_norm.view(), a, q8, size, model.config.rms_eps)?;
        self.project(rows, logits)
    }

    /// Adds the logits of `rows` rows behind the final norm, which lie in `a`.
    pub fn project(&mut self, rows: usize, logits: &mut Vec<f32>) -> Result<()> {
        let (s, vocab) = (&self.scratch, self.shape.vocab);
        self.trunk.head.product(Ops(&self.device), s.a.views(), s.logits.view(), rows)?;
        self.pinned.collect(s.logits.part(0..f32s(rows * vocab))?, logits)
    }

    /// Sends the position, the embedding, the angles and the filter's last inputs.
    fn send_inputs(&mut self, model: &Model, tokens: &[u32], state: &State) -> Result<()> {
        let (shape, n) = (self.shape, tokens.len());
        let at = shape.inputs(n);
        let start = i32::try_from(state.position() + n).map(|end| end - n as i32);
        let start = start.map_err(|_| Error::Argument("the context is too long for the GPU".into()))?;
        let host = self.inputs.host()?;
        host[..4].copy_from_slice(&start.to_ne_bytes());
        let x = model.embed(tokens);
        cast_slice_mut(&mut host[at.x..][..f32s(x.len())]).copy_from_slice(&x);
        let angles: &mut [f32] = cast_slice_mut(&mut host[at.angles..][..f32s(n * shape.rot)]);
        for (t, to) in angles.chunks_exact_mut(shape.rot.max(1)).enumerate() {
            let (pairs, _) = to.as_chunks_mut::<2>();
            pairs
                .iter_mut()
                .zip(model.rope.at(state.position() + t))
                .for_each(|(o, (cos, sin))| *o = [cos, sin]);
        }
        for (l, layer) in state.layers.iter().enumerate() {
            let to: &mut [f32] =
                cast_slice_mut(&mut host[at.filters + l * at.filter..][..shape.filter_bytes()]);
            let (a, o1) = to.split_at_mut(shape.hidden);
            a.copy_from_slice(&layer.filter.input);
            o1.copy_from_slice(&layer.filter.conv1);
        }
        self.inputs.upload(0..at.end, self.scratch.inputs.view())
    }

    /// Brings filters, residuals, keys and values to the host, and ends the pass there.
    fn take_state(&mut self, model: &Model, state: &mut State, ends: &[usize]) -> Result<()> {
        let shape = self.shape;
        let n = *ends.last().unwrap_or(&0);
        let filters = ends.len() * shape.layers * shape.filter_bytes();
        let bytes = filters + ends.len() * f32s(shape.hidden);
        self.outputs.download(0, self.scratch.ends.part(0..bytes)?)?;
        mirror::bring_back(state, &shape, n, &mut self.pinned)?;
        let host = self.outputs.host()?;
        for i in 0..ends.len() {
            for (l, layer) in state.layers.iter_mut().enumerate() {
                let at = (i * shape.layers + l) * shape.filter_bytes();
                let (a, o1) =
                    cast_slice::<u8, f32>(&host[at..][..shape.filter_bytes()]).split_at(shape.hidden);
                layer.next.push(FilterState { input: a.to_vec(), conv1: o1.to_vec() });
            }
        }
        let residuals: &[f32] = cast_slice(&host[filters..bytes]);
        let hidden = |end: usize| {
            let i = ends.partition_point(|&e| e < end);
            let row = &residuals[i * shape.hidden..][..shape.hidden];
            rms_norm(row, &model.final_norm, model.config.rms_eps).data().to_vec()
        };
        state.advance(ends, hidden);
        Ok(())
    }
}

/// One of the rows of `cols` numbers.
fn row(rows: View<'_>, t: usize, cols: usize) -> Result<View<'_>> {
    rows.part(f32s(t * cols)..f32s((t + 1) * cols))
}
