//! A call on a GPU: what it sends, its layers, and what it brings back. A single token goes through all layers as one graph where all
//! experts are there.

use std::cell::RefCell;

use bytemuck::{cast_slice, cast_slice_mut};
use yuan_cuda::launch;

use super::{
    Runner,
    layers::Call,
    mirror::{self, Kept, TokenGraph},
};
use crate::{
    error::{Error, Result},
    gpu::{
        Graph,
        ops::{Ops, f32s},
    },
    model::{Model, State, filter::FilterState, norm::rms_norm},
    pager::Pass,
};

impl Runner {
    /// As [`Model::forward`], with what `output` brings. When it fails the state holds what [`State::undo`] drops.
    pub fn forward<T>(
        &mut self,
        model: &Model,
        pass: &Pass<'_>,
        tokens: &[u32],
        state: &mut State,
        output: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let (n, shape) = (tokens.len(), self.shape);
        self.reserve(n)?;
        let (ends, cancel) = (state.ends(n), state.cancel.clone());
        let start = state.position();
        let kv = mirror::dtype(state.kv_type())
            .ok_or_else(|| Error::Argument("this key-value cache is not for a GPU".into()))?;
        self.send_inputs(model, tokens, state)?;
        let device = self.device.clone();
        let memory = Kept::of(state, &shape, &device, &mut self.pinned)?;

        let call = Call { model, pass, shape, kv, tokens: n, start, ends: &ends, cancel: &cancel };
        let Self { trunk, scratch: s, slots, .. } = self;
        if n == 1 && slots.has_all() {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let spans = launch::spans(start + 1);
            let fits = |g: &TokenGraph| g.spans == spans && g.graph.is_current();
            let graph = match memory.graph.take().filter(fits) {
                Some(graph) => graph,
                None => {
                    let list = RefCell::default();
                    call.layers(Ops::listed(&device, &list), trunk, s, slots, memory)?;
                    TokenGraph { graph: Graph::new(&device, &list.take())?, spans }
                }
            };
            memory.graph.insert(graph).graph.queue()?;
        } else {
            call.layers(Ops::new(&device), trunk, s, slots, memory)?;
        }
        slots.bring_choices(s, n)?;
        let out = output(self)?;
        self.end(model, state, &ends)?;
        Ok(out)
    }

    /// Ends the pass on the host, when all that was read was the file.
    fn end(&mut self, model: &Model, state: &mut State, ends: &[usize]) -> Result<()> {
        let tokens = *ends.last().unwrap_or(&0);
        model.check_file()?;
        // All that may fail comes before the state goes on.
        let choices = self.slots.choices(tokens)?;
        self.take_state(model, state, ends)?;
        self.slots.count(model, &choices, tokens);
        Ok(())
    }

    /// Sends the position, the tokens, the angles, the filter's last inputs and, where the GPU has no table of it, the embedding.
    fn send_inputs(&mut self, model: &Model, tokens: &[u32], state: &State) -> Result<()> {
        let (shape, n) = (self.shape, tokens.len());
        let at = shape.inputs(n);
        let start = i32::try_from(state.position() + n).map(|end| end - n as i32);
        let start = start.map_err(|_| Error::Argument("the context is too long for the GPU".into()))?;
        let host = self.inputs.host()?;
        host[..4].copy_from_slice(&start.to_ne_bytes());
        // Known to be in the vocabulary, and so to have rows in the table.
        host[at.ids..][..4 * n].copy_from_slice(cast_slice(tokens));
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
        let end = match self.trunk.embedding {
            Some(_) => at.x,
            None => {
                host[at.x..at.end].copy_from_slice(cast_slice(&model.embed(tokens)));
                at.end
            }
        };
        self.inputs.upload(0..end, self.scratch.inputs.view())
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
