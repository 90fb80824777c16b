//! A pass on a GPU: what it sends, its layers, and what it brings back. Single tokens, of however many sequences, go through all layers as one graph where all
//! experts are there.

use std::cell::RefCell;

use bytemuck::{cast_slice, cast_slice_mut};
use yuan_cuda::launch::spans;
use yuan_kernels::DType;

use super::{
    Runner,
    layers::Call,
    mirror,
    pages::PageShape,
    part::Part,
    scratch::{Shape, Size},
};
use crate::{
    error::{Error, Result},
    gpu::{
        Graph,
        ops::{Ops, f32s},
    },
    model::{Model, Output, Sequence, State, filter::FilterState, norm::rms_norm},
    pager::Pass,
};

/// What all layers do for single tokens, where nothing is decided between them.
#[derive(Debug)]
pub struct TokenGraph {
    graph: Graph,
    /// What it was made for.
    size: Size,
    dtype: DType,
}

/// Graphs that are kept: those of the sizes that were used last.
const GRAPHS: usize = 16;

impl Runner {
    /// As [`Model::forward`], for sequences of one type of keys and values that have acquired their pages: the parts are theirs. When it fails the states hold what
    /// [`State::undo`] drops, and so does that of a sequence that was cancelled.
    pub fn forward(
        &mut self,
        model: &Model,
        pass: &Pass<'_>,
        page: &PageShape,
        sequences: &mut [&mut Sequence<'_>],
        parts: &[Part],
    ) -> Result<Vec<Result<Output>>> {
        let (size, ends, groups) = (Part::size(parts), Part::end_rows(parts), Part::groups(parts));
        let shape = self.shape;
        self.reserve(size, ends.len())?;
        self.send_inputs(model, sequences, parts, &groups)?;
        for (part, sequence) in parts.iter().zip(&*sequences) {
            self.pages.complete(&part.owner, sequence.state, page, &mut self.pinned)?;
        }

        let (page, few, ends, groups) = (*page, Part::few(parts), &ends[..], groups.len());
        let call = Call { model, pass, shape, page, size, few, groups, ends, parts };
        if size.rows == size.sequences && self.slots.has_all() {
            if parts.iter().all(|part| part.cancel.is_cancelled()) {
                return Err(Error::Cancelled);
            }
            self.graph(call)?.queue()?;
        } else {
            let Self { device, trunk, scratch, slots, .. } = self;
            call.layers(Ops::new(device), trunk, scratch, slots)?;
        }
        self.slots.bring_choices(&self.scratch, size.rows)?;
        let wants: Vec<_> = parts.iter().zip(&*sequences).map(|(p, s)| (p.rows.clone(), s.want)).collect();
        let outputs = self.outputs(model, shape.inputs(size).x, &wants)?;
        self.end(model, &page, sequences, parts, outputs)
    }

    /// The graph of a pass of single tokens, made where it must be.
    fn graph(&mut self, call: Call<'_>) -> Result<&Graph> {
        let Self { device, trunk, scratch, slots, graphs, .. } = self;
        graphs.retain(|graph| graph.graph.is_current());
        let fits = |graph: &TokenGraph| graph.size == call.size && graph.dtype == call.page.dtype;
        let graph = match graphs.iter().position(fits) {
            Some(place) => graphs.remove(place),
            None => {
                let list = RefCell::default();
                call.layers(Ops::listed(device, &list), trunk, scratch, slots)?;
                let graph = Graph::new(device, &list.take())?;
                TokenGraph { graph, size: call.size, dtype: call.page.dtype }
            }
        };
        if graphs.len() == GRAPHS {
            graphs.remove(0);
        }
        graphs.push(graph);
        Ok(&graphs[graphs.len() - 1].graph)
    }

    /// Ends the pass on the host, when all that was read was the file. All that may fail comes before any state goes on.
    fn end(
        &mut self,
        model: &Model,
        page: &PageShape,
        sequences: &mut [&mut Sequence<'_>],
        parts: &[Part],
        outputs: Vec<Output>,
    ) -> Result<Vec<Result<Output>>> {
        model.check_file()?;
        let shape = self.shape;
        let (rows, count) = (Part::size(parts).rows, Part::end_rows(parts).len());
        let choices = self.slots.choices(rows)?;
        let bytes = shape.ends_bytes(count);
        self.outputs.download(0, self.scratch.ends.part(0..bytes)?)?;
        let cancelled: Vec<bool> = parts.iter().map(|part| part.cancel.is_cancelled()).collect();
        for ((part, sequence), cancelled) in parts.iter().zip(&mut *sequences).zip(&cancelled) {
            if !cancelled {
                let (pages, pinned) = (&self.pages, &mut self.pinned);
                mirror::bring_back(sequence.state, page, pages, part.rows.len(), pinned)?;
            }
        }
        let ends = Ends { shape, count, numbers: cast_slice(&self.outputs.host()?[..bytes]) };
        let mut results = Vec::with_capacity(parts.len());
        for (((part, sequence), cancelled), output) in parts.iter().zip(sequences).zip(cancelled).zip(outputs)
        {
            if cancelled {
                results.push(Err(Error::Cancelled));
                continue;
            }
            let finite = match &output {
                Output::Rows(rows) => model.check_finite(rows),
                Output::Nothing | Output::Best(_) => Ok(()),
            };
            let ended = finite.and_then(|()| ends.advance(model, sequence.state, part));
            if ended.is_ok() {
                self.pages.filled(&part.owner, part.end());
                sequence.state.mirror.equals();
            }
            results.push(ended.map(|()| output));
        }
        self.slots.count(model, &choices, rows);
        Ok(results)
    }

    /// Sends where the rows stand, the pages, the tokens, the angles, the filter's last inputs and, where the GPU has no table of it, the embedding.
    fn send_inputs(
        &mut self,
        model: &Model,
        sequences: &[&mut Sequence<'_>],
        parts: &[Part],
        groups: &[[i32; 2]],
    ) -> Result<()> {
        let (shape, size) = (self.shape, Part::size(parts));
        let at = shape.inputs(size);
        if parts.iter().any(|part| i32::try_from(part.end()).is_err()) {
            return Err(Error::Argument("the context is too long for the GPU".into()));
        }
        let tokens: Vec<u32> = sequences.iter().flat_map(|s| s.tokens).copied().collect();
        let host = self.inputs.host()?;
        put(host, 0, &Part::places(parts));
        put(host, at.groups, groups);
        // Known to be in the vocabulary, and so to have rows in the table.
        put(host, at.ids, &tokens);
        let table: &mut [u64] = cast_slice_mut(&mut host[at.pages..][..8 * size.sequences * size.stride]);
        table.fill(0);
        for (part, table) in parts.iter().zip(table.chunks_exact_mut(size.stride)) {
            for (number, to) in table.iter_mut().enumerate().take(spans(part.end())) {
                *to = self.pages.page(&part.owner, number)?.view().at();
            }
        }
        let angles: &mut [f32] = cast_slice_mut(&mut host[at.angles..][..f32s(size.rows * shape.rot)]);
        let positions = parts.iter().flat_map(|part| part.start..part.end());
        for (position, to) in positions.zip(angles.chunks_exact_mut(shape.rot.max(1))) {
            let (pairs, _) = to.as_chunks_mut::<2>();
            pairs.iter_mut().zip(model.rope.at(position)).for_each(|(o, (cos, sin))| *o = [cos, sin]);
        }
        let layers = sequences.iter().flat_map(|sequence| &sequence.state.layers);
        for (i, layer) in layers.enumerate() {
            put(host, at.filters + i * at.filter, &layer.filter.input);
            put(host, at.filters + i * at.filter + f32s(shape.hidden), &layer.filter.conv1);
        }
        let end = match self.trunk.embedding {
            Some(_) => at.x,
            None => {
                put(host, at.x, &model.embed(&tokens)?);
                at.end
            }
        };
        self.inputs.upload(0..end, self.scratch.inputs.view())
    }
}

/// Writes values at a place of the host's bytes.
fn put<T: bytemuck::NoUninit>(host: &mut [u8], at: usize, values: &[T]) {
    let bytes: &[u8] = cast_slice(values);
    host[at..at + bytes.len()].copy_from_slice(bytes);
}

/// What a pass has left at its ends: as `Scratch::ends`.
struct Ends<'h> {
    shape: Shape,
    count: usize,
    numbers: &'h [f32],
}

impl Ends<'_> {
    /// One row of the rows of `cols` that begin at `first`.
    fn row(&self, first: usize, end: usize, cols: usize) -> &[f32] {
        &self.numbers[first + end * cols..][..cols]
    }

    /// Ends the pass for a state, whose keys and values are there, unless its last hidden state is not finite.
    fn advance(&self, model: &Model, state: &mut State, part: &Part) -> Result<()> {
        let Shape { hidden, .. } = self.shape;
        let by_layer = self.count * (hidden + hidden / 2);
        let numbers = part.first_end..part.first_end + part.ends.len();
        for (l, layer) in state.layers.iter_mut().enumerate() {
            let first = l * by_layer;
            layer.next.clear();
            layer.next.extend(numbers.clone().map(|end| FilterState {
                input: self.row(first, end, hidden).to_vec(),
                conv1: self.row(first + self.count * hidden, end, hidden / 2).to_vec(),
            }));
        }
        let residuals = self.shape.layers * by_layer;
        let normed = |end: usize, to: &mut Vec<f32>| {
            let number = part.first_end + part.ends.partition_point(|&e| e < end);
            let row = self.row(residuals, number, hidden);
            let row = rms_norm(&model.compute, row, &model.final_norm, model.config.rms_eps);
            to.clear();
            to.extend_from_slice(row.data());
        };
        let mut last = Vec::new();
        normed(part.rows.len(), &mut last);
        model.check_finite(&last)?;
        state.advance(&part.ends, part.drafted, normed);
        Ok(())
    }
}
