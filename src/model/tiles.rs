//! Experts in tiles, shared out among threads.

use std::{
    ops::Range,
    sync::{
        PoisonError,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{AcqRel, Relaxed},
        },
    },
};

use bytemuck::Pod;
use yuan_kernels::{
    Kernels,
    blocks::QK,
    panel::{ActivationBlock, PANEL_ROWS, Panel},
    tile::{
        TOKEN_BLOCK, tile_down, tile_down_float, tile_gate_up, tile_gate_up_float, tile_pass, tile_pass_float,
    },
};

use super::{
    activations::{Activations, Blocks},
    compute::{Arithmetic, Compute},
    feed_forward::{Group, Output, cut},
    phases::Phase,
    probe::{Stage, WatchAt},
    scratch::{Buffer, parts_of},
};
use crate::{
    error::{Error, Result},
    list::List,
    pager::{
        Expert, Request,
        sync::{Mutex, lock},
    },
};

/// Hears of an expert that could not be read, with the tokens that it was for, and says whether none is left to go on for.
pub type Lost<'l> = &'l (dyn Fn(&[usize], &Error) -> bool + Sync);

/// The outputs of each group's expert, for which large groups are cut up. A tile's share is added to an output in the order of
/// the tiles. Experts are computed in the order of the request, those that are there first: all of them, or those of `some` ranks.
///
/// Many blocks of tokens are shared out as they are: one thread walks all tiles with one of them, and a tile that is in its cache serves all its
/// tokens. Of few blocks the tiles are shared out: first the neurons of each tile, then, for some columns at a time, the outputs of all.
pub fn tiled<P: Panel<X: Blocks>>(
    compute: &Compute,
    request: &Request<'_>,
    some: Option<Range<usize>>,
    m: &Activations,
    groups: &mut List<Group>,
    lost: Lost<'_>,
    watch: Option<&mut WatchAt<'_, '_>>,
) -> Result<List<Output>> {
    let hidden = m.cols();
    let watch = watch.filter(|watch| watch.is_on());
    let blocks: usize = groups.iter().map(|g| g.tokens.len().div_ceil(TOKEN_BLOCK)).sum();
    // Who walks keeps no neurons to be seen.
    let walk = blocks >= 4 * compute.cut_for() && watch.is_none();
    if walk {
        // As many tokens together as leave every thread some: a group that is not cut reads each tile once.
        cut(groups, (blocks / (8 * compute.cut_for())).max(1) * TOKEN_BLOCK);
    }
    let output = |g: &Group| Output::zeros(compute, g.tokens.len(), hidden);
    let mut outputs: List<Output> = groups.iter().map(output).collect();
    // Groups go by the experts' numbers, ranks by the order of the request.
    let groups_of = |expert: usize| {
        groups.partition_point(|g| g.expert < expert)..groups.partition_point(|g| g.expert <= expert)
    };
    let some = some.unwrap_or(0..request.order().len());
    let ranks: List<Range<usize>> = request.order()[some.clone()].iter().map(|&e| groups_of(e)).collect();
    match compute.arithmetic {
        Arithmetic::Integer => {
            m.quantize::<P::X>(compute);
            let steps = Steps {
                len: 1,
                pass: tile_pass::<P>,
                gate_up: tile_gate_up::<P>,
                down: tile_down::<P>,
                widen: |blocks, out| blocks.iter().zip(out).for_each(|(block, out)| block.widen(out)),
            };
            let inputs = groups
                .iter()
                .map(|g| compute.scratch.gather(m.q8::<P::X>(), m.blocks(), &g.tokens))
                .collect();
            let work =
                Work { compute, request, first: some.start, ranks, groups, lost, hidden, m, steps, inputs };
            work.run(&mut outputs, walk, watch)?;
        }
        Arithmetic::Float => {
            let steps = Steps {
                len: QK,
                pass: tile_pass_float::<P>,
                gate_up: tile_gate_up_float::<P>,
                down: tile_down_float::<P>,
                widen: |neurons, out| out.as_flattened_mut().copy_from_slice(neurons),
            };
            let inputs =
                groups.iter().map(|g| compute.scratch.gather(m.data(), m.cols(), &g.tokens)).collect();
            let work =
                Work { compute, request, first: some.start, ranks, groups, lost, hidden, m, steps, inputs };
            work.run(&mut outputs, walk, watch)?;
        }
    }
    Ok(outputs)
}

/// Sixteen outputs of a row of activations, as a panel gives them.
type Outputs = [f32; PANEL_ROWS];

/// Some of a tile's down panels: [`tile_down`].
type Down<P, I> = fn(&Kernels, &[P], usize, Range<usize>, &[I], &mut [Outputs]);

/// What a tile of panels `P` does with activations as an arithmetic has them (`yuan_kernels::tile`).
struct Steps<P, I> {
    /// Elements that 256 activations take.
    len: usize,
    pass: fn(&Kernels, &[P], usize, &[I], &mut [Outputs]),
    gate_up: fn(&Kernels, &[P], usize, &[I], &mut [I]),
    down: Down<P, I>,
    /// Neurons in f32, 256 of each token.
    widen: fn(&[I], &mut [[f32; QK]]),
}

/// The work of a layer's experts.
struct Work<'w, P, I: Pod> {
    compute: &'w Compute,
    request: &'w Request<'w>,
    /// The rank in the request of the first of `ranks`.
    first: usize,
    /// By rank, the groups of its expert.
    ranks: List<Range<usize>>,
    groups: &'w [Group],
    lost: Lost<'w>,
    hidden: usize,
    m: &'w Activations,
    steps: Steps<P, I>,
    /// By group.
    inputs: List<Buffer<I>>,
}

impl<P: Panel, I: Pod + Send + Sync> Work<'_, P, I> {
    /// Adds the experts' outputs to zeros.
    fn run(&self, outputs: &mut [Output], walk: bool, watch: Option<&mut WatchAt<'_, '_>>) -> Result<()> {
        if walk { self.walk(outputs) } else { self.spread(outputs, watch) }
    }

    /// One thread walks all tiles with a group.
    fn walk(&self, outputs: &mut [Output]) -> Result<()> {
        let parts: List<usize> = self.ranks.iter().map(Range::len).collect();
        let places: List<Mutex<&mut [f32]>> =
            outputs.iter_mut().map(|o| Mutex::new(&mut o.data[..])).collect();
        let items = self.ranks.iter().cloned().enumerate();
        let items = items.flat_map(|(rank, groups)| groups.map(move |group| (rank, group)));
        self.in_order(0..parts.len(), &parts, items, true, |g, expert| {
            let mut y = lock(&places[g]);
            (0..self.request.tiles()).try_for_each(|t| {
                let tile = bytemuck::cast_slice(expert.tile(t)?);
                let y = y.as_chunks_mut().0;
                (self.steps.pass)(&self.compute.kernels, tile, self.hidden, &self.inputs[g], y);
                Ok(())
            })
        })
    }

    /// Threads share the tiles of as many experts as there are places for.
    fn spread(&self, outputs: &mut [Output], mut watch: Option<&mut WatchAt<'_, '_>>) -> Result<()> {
        let tiles = self.request.tiles();
        let mut start = 0;
        while start < self.ranks.len() {
            self.compute.phase(Phase::Experts);
            let placed = self.request.placed(self.first + start);
            let wave = start..self.ranks.len().min(start + placed.max(1));
            start = wave.end;
            // A group that was not cut is the only one of its expert.
            let len = |rank: usize| self.groups[self.ranks[rank].start].tokens.len() * self.steps.len;
            let items = || wave.clone().flat_map(|rank| (0..tiles).map(move |t| (rank, t)));
            let lens = || items().map(|(rank, _)| len(rank));
            let mut neurons = self.compute.scratch.buffer::<I>(lens().sum());
            let parts: List<usize> = wave.clone().map(|_| tiles).collect();
            let items = items().zip(parts_of(&mut neurons, lens()));
            let items = items.map(|((rank, t), h)| (rank, (rank, t, h)));
            self.in_order(wave.clone(), &parts, items, false, |(rank, t, h), expert| {
                let tile = bytemuck::cast_slice(expert.tile(t)?);
                let x = &self.inputs[self.ranks[rank].start];
                (self.steps.gate_up)(&self.compute.kernels, tile, self.hidden, x, h);
                Ok(())
            })?;
            if let Some(watch) = &mut watch {
                self.show(wave.clone(), &neurons, watch);
            }
            self.compute.phase(Phase::Down);
            self.down(wave, &neurons, outputs);
        }
        Ok(())
    }

    /// Shows the experts of some ranks, whose neurons are [rank][tile][token].
    fn show(&self, wave: Range<usize>, neurons: &[I], watch: &mut WatchAt<'_, '_>) {
        let mut rest = neurons;
        for rank in wave {
            let group = &self.groups[self.ranks[rank].start];
            let n = group.tokens.len();
            group.show(watch, &self.compute.scratch.gather(self.m.data(), self.hidden, &group.tokens));
            let mut rows = vec![[0.0; QK]; n];
            for t in 0..self.request.tiles() {
                let h;
                (h, rest) = rest.split_at(n * self.steps.len);
                (self.steps.widen)(h, &mut rows);
                let first = t * QK;
                watch.see(Stage::Neurons { expert: group.expert, first }, rows.as_flattened());
            }
        }
    }

    /// The outputs of the experts of some ranks, whose neurons are [rank][tile][token].
    fn down(&self, wave: Range<usize>, neurons: &[I], outputs: &mut [Output]) {
        let panels = self.hidden / PANEL_ROWS;
        let columns = panels.div_ceil(4 * self.compute.cut_for()).max(LEAST_PANELS.min(panels));
        let mut rest = neurons;
        let mut outputs: List<Option<&mut Output>> = outputs.iter_mut().map(Some).collect();
        let mut experts = List::new();
        for rank in wave.clone() {
            let group = self.ranks[rank].start;
            let (Some(output), n) = (outputs[group].take(), self.groups[group].tokens.len()) else {
                continue;
            };
            let h;
            (h, rest) = rest.split_at(self.request.tiles() * n * self.steps.len);
            if let Ok(expert) = self.request.expert(self.first + rank) {
                experts.push((expert, n, h, output));
            }
        }
        let items = experts.iter_mut().flat_map(|(expert, n, h, output)| {
            let parts = output.data.chunks_mut(columns * *n * PANEL_ROWS).enumerate();
            parts.map(|(i, y)| (&*expert, *n, *h, i * columns, y))
        });
        self.compute.in_turn(items, |(expert, n, h, first, y)| {
            let y = y.as_chunks_mut().0;
            let range = first..first + y.len() / n;
            for (t, h) in h.chunks_exact(n * self.steps.len).enumerate() {
                // A tile that could not be read has been told of.
                let Ok(tile) = expert.tile(t) else { return };
                let tile = bytemuck::cast_slice(tile);
                (self.steps.down)(&self.compute.kernels, tile, self.hidden, range.clone(), h, y);
            }
        });
        drop(experts);
        wave.for_each(|rank| self.request.finish(self.first + rank));
    }

    /// Does `work(part, expert)` for the items `(rank, part)` of every rank of `wave`, so many `parts` of each, one rank behind the other. Threads take them in turn, so that none
    /// waits for an expert while another part could be done; an expert is finished, where `finish` says so, when its last part is. Of an expert that could not
    /// be read the other parts are left out.
    ///
    /// # Errors
    /// When nothing is left to go on for.
    fn in_order<T>(
        &self,
        wave: Range<usize>,
        parts: &[usize],
        items: impl Iterator<Item = (usize, T)> + Send,
        finish: bool,
        work: impl Fn(T, &Expert<'_>) -> Result<()> + Send + Sync,
    ) -> Result<()> {
        let left: List<AtomicUsize> = parts.iter().map(|&n| AtomicUsize::new(n)).collect();
        let failed: List<AtomicBool> = parts.iter().map(|_| AtomicBool::new(false)).collect();
        // Of several problems the one that made the others.
        let (stopped, problem) = (AtomicBool::new(false), Mutex::new(None));
        let stop = |found: Error| {
            stopped.store(true, Relaxed);
            self.request.abort();
            let mut problem = lock(&problem);
            if problem.as_ref().is_none_or(|e| matches!(e, Error::Cancelled)) {
                *problem = Some(found);
            }
        };
        let items = items.take_while(|_| !stopped.load(Relaxed));
        self.compute.in_turn_with(
            items,
            || AbortOnPanic(self.request),
            |_, (rank, part)| {
                let i = rank - wave.start;
                if !failed[i].load(Relaxed) {
                    let expert = self.request.expert(self.first + rank);
                    if let Err(problem) = expert.and_then(|expert| work(part, &expert)) {
                        let aborted = matches!(problem, Error::Cancelled);
                        let first = !failed[i].swap(true, Relaxed);
                        if aborted || first && self.lose(rank, &problem) {
                            return stop(problem);
                        }
                    }
                }
                if left[i].fetch_sub(1, AcqRel) == 1 && finish {
                    self.request.finish(self.first + rank);
                }
            },
        );
        problem.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// The tokens of a rank's expert are lost; whether no others are left.
    fn lose(&self, rank: usize, problem: &Error) -> bool {
        let groups = &self.groups[self.ranks[rank].clone()];
        let tokens: Vec<usize> = groups.iter().flat_map(|g| g.tokens.iter().copied()).collect();
        (self.lost)(&tokens, problem)
    }
}

/// Down panels of a tile that a thread takes together, at least: 18 KiB, which memory delivers as one stream.
const LEAST_PANELS: usize = 8;

/// Wakes those who wait for an expert that a panic has kept from being finished.
struct AbortOnPanic<'r, 'p>(&'r Request<'p>);

impl Drop for AbortOnPanic<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.abort();
        }
    }
}
