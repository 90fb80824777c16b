//! The second half of a layer: routed experts, or the one MLP of a dense model.

use std::{
    ops::Range,
    sync::atomic::{
        AtomicBool, AtomicUsize,
        Ordering::{AcqRel, Relaxed},
    },
};

use rayon::prelude::*;
use yuan_kernels::{
    BlockQ8, Columns, Kernels, PanelQ4_0, PanelQ4K,
    blocks::QK,
    panel::{PANEL_ROWS, Panel},
    tile::{
        TOKEN_BLOCK, tile_down, tile_down_float, tile_gate_up, tile_gate_up_float, tile_pass, tile_pass_float,
    },
};

use super::{
    activations::Activations,
    compute::{Arithmetic, Compute},
    matrix::Matrix,
    router::{Router, Routing},
    scratch::Buffer,
};
use crate::{
    error::{Error, Result},
    pager::{
        Expert, Pass, Request,
        sync::{Mutex, lock},
    },
};

/// What stands behind a layer's second norm.
#[derive(Clone, Debug)]
pub enum FeedForward {
    /// Yuan2.0-2B.
    Dense(Mlp),
    /// Yuan2.0-M32.
    Moe {
        /// Picks the experts.
        router: Router,
        /// Their weights.
        experts: Experts,
    },
}

impl FeedForward {
    /// Bytes of weights that one token reads, where an expert in tiles has `tiled` bytes.
    pub fn bytes_per_token(&self, tiled: usize) -> usize {
        match self {
            Self::Dense(mlp) => [&mlp.gate, &mlp.up, &mlp.down].map(Matrix::len_bytes).iter().sum(),
            Self::Moe { router, experts } => {
                let expert = match experts {
                    Experts::Rows(rows) => rows.first().map_or(0, |e| e.w1.len_bytes() + e.w2.len_bytes()),
                    Experts::TilesQ4K { .. } | Experts::TilesQ4_0 { .. } => tiled,
                };
                let projections = [&router.query, &router.key, &router.value].map(Matrix::len_bytes);
                projections.iter().sum::<usize>() + router.used * expert
            }
        }
    }
}

/// `down (gate(m) * silu(up(m)))`: in the dense model the activation is on *up*.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// [F, H].
    pub gate: Matrix,
    /// [F, H].
    pub up: Matrix,
    /// [H, F].
    pub down: Matrix,
}

impl Mlp {
    /// The MLP's output [T, H].
    pub fn apply(&self, compute: &Compute, m: &Activations) -> Buffer {
        let mut h = compute.product(&self.up, m);
        (compute.kernels.swiglu)(&mut h, &compute.product(&self.gate, m));
        compute.product(&self.down, &Activations::new(h, self.gate.rows))
    }
}

/// The experts of one layer.
#[derive(Clone, Debug)]
pub enum Experts {
    /// `Q4_K` neuron tiles behind the pager.
    TilesQ4K {
        /// The layer, as the pager counts.
        layer: usize,
    },
    /// `Q4_0` neuron tiles behind the pager.
    TilesQ4_0 {
        /// The layer, as the pager counts.
        layer: usize,
    },
    /// Row-major matrices.
    Rows(Vec<ExpertRows>),
}

/// One expert as two matrices.
#[derive(Clone, Debug)]
pub struct ExpertRows {
    /// Gate rows over up rows, [2F, H].
    pub w1: Matrix,
    /// [H, F].
    pub w2: Matrix,
}

/// The tokens of one expert.
struct Group {
    expert: usize,
    tokens: Vec<usize>,
    weights: Vec<f32>,
}

/// What an expert made of `n` tokens: rows [n, H], or in the order of the panels, [H / 16][n][16].
struct Output {
    n: usize,
    panels: bool,
    data: Buffer,
}

impl Output {
    /// Outputs `16 g..16 g + 16` of token `i`.
    fn piece(&self, i: usize, g: usize) -> &[f32] {
        let at = if self.panels { g * self.n + i } else { i * (self.data.len() / self.n / PANEL_ROWS) + g };
        &self.data[at * PANEL_ROWS..][..PANEL_ROWS]
    }
}

/// Hears of an expert that could not be read, with the tokens that it was for, and says whether none is left to go on for.
pub type Lost<'l> = &'l (dyn Fn(&[usize], &Error) -> bool + Sync);

impl Experts {
    /// Asks for the experts that the tokens were routed to, all at once; experts in rows need no asking.
    pub fn request<'p>(&self, pass: &'p Pass<'_>, routing: &Routing) -> Result<Option<Request<'p>>> {
        let (Self::TilesQ4K { layer } | Self::TilesQ4_0 { layer }) = self else { return Ok(None) };
        let used = routing.chosen.first().map_or(0, Vec::len);
        pass.request(*layer, &routing.experts(), used).map(Some)
    }

    /// `sum of weight * expert(m)` [T, H] for what was asked for, added up in the order of the experts' numbers. Rows of tokens that `lost` has
    /// heard of mean nothing.
    pub fn apply(
        &self,
        compute: &Compute,
        request: Option<&Request<'_>>,
        m: &Activations,
        routing: &Routing,
        lost: Lost<'_>,
    ) -> Result<Buffer> {
        let mut groups = group(routing);
        let request = || request.ok_or_else(|| Error::Argument("experts in tiles need a request".into()));
        let outputs = match self {
            Self::Rows(experts) => groups
                .iter()
                .map(|g| Output {
                    n: g.tokens.len(),
                    panels: false,
                    data: experts[g.expert].apply(compute, &m.gather(compute, &g.tokens)),
                })
                .collect(),
            Self::TilesQ4K { .. } => tiled::<PanelQ4K>(compute, request()?, None, m, &mut groups, lost)?,
            Self::TilesQ4_0 { .. } => tiled::<PanelQ4_0>(compute, request()?, None, m, &mut groups, lost)?,
        };
        let hidden = m.cols();
        let mut y = compute.scratch.zeros(m.data().len());
        let columns = if m.rows() < TOKEN_BLOCK { hidden } else { QK };
        compute.run(|| {
            Columns::split(&mut y, hidden, columns).par_iter_mut().for_each(|y| {
                let pieces = y.range().start / PANEL_ROWS..y.range().end / PANEL_ROWS;
                for (group, output) in groups.iter().zip(&outputs) {
                    for (i, (&t, weight)) in group.tokens.iter().zip(&group.weights).enumerate() {
                        for (g, y) in pieces.clone().zip(y.row(t).chunks_exact_mut(PANEL_ROWS)) {
                            y.iter_mut().zip(output.piece(i, g)).for_each(|(y, o)| *y += weight * o);
                        }
                    }
                }
            });
        });
        Ok(y)
    }
}

#[cfg(feature = "gpu")]
impl Experts {
    /// Gives every output of the `ranks` of what was asked for as `(token, expert, column, outputs from there on)`, not yet weighted;
    /// `routing` has no others.
    pub fn each(
        &self,
        compute: &Compute,
        request: &Request<'_>,
        ranks: Range<usize>,
        m: &Activations,
        routing: &Routing,
        mut give: impl FnMut(usize, usize, usize, &[f32]),
    ) -> Result<()> {
        let mut groups = group(routing);
        let problem = Mutex::new(None);
        let lost: Lost<'_> = &|_, error| {
            lock(&problem).get_or_insert_with(|| error.again());
            true
        };
        let outputs = match self {
            Self::Rows(_) => {
                return Err(Error::Argument("experts in rows are computed on the CPU only".into()));
            }
            Self::TilesQ4K { .. } => tiled::<PanelQ4K>(compute, request, Some(ranks), m, &mut groups, lost)?,
            Self::TilesQ4_0 { .. } => {
                tiled::<PanelQ4_0>(compute, request, Some(ranks), m, &mut groups, lost)?
            }
        };
        if let Some(problem) = lock(&problem).take() {
            return Err(problem);
        }
        for (group, output) in groups.iter().zip(&outputs) {
            for (i, &t) in group.tokens.iter().enumerate() {
                (0..m.cols() / PANEL_ROWS)
                    .for_each(|g| give(t, group.expert, g * PANEL_ROWS, output.piece(i, g)));
            }
        }
        Ok(())
    }
}

impl ExpertRows {
    /// `w2 (silu(gate) * up)`, [n, H].
    fn apply(&self, compute: &Compute, m: &Activations) -> Buffer {
        let ffn = self.w2.cols;
        let u = compute.product(&self.w1, m);
        let mut h = compute.scratch.buffer(m.rows() * ffn);
        for (h, u) in h.chunks_exact_mut(ffn).zip(u.chunks_exact(2 * ffn)) {
            let (gate, up) = u.split_at(ffn);
            h.copy_from_slice(gate);
            (compute.kernels.swiglu)(h, up);
        }
        compute.product(&self.w2, &Activations::new(h, ffn))
    }
}

/// The routed tokens by expert, experts in order of number, tokens in order.
fn group(routing: &Routing) -> Vec<Group> {
    let mut by_expert = std::collections::BTreeMap::<usize, Group>::new();
    for (t, chosen) in routing.chosen.iter().enumerate() {
        for &(expert, weight) in chosen {
            let group =
                by_expert.entry(expert).or_insert_with(|| Group { expert, tokens: vec![], weights: vec![] });
            group.tokens.push(t);
            group.weights.push(weight);
        }
    }
    by_expert.into_values().collect()
}

/// The outputs of each group's expert, for which large groups are cut up. A tile's share is added to an output in the order of
/// the tiles. Experts are computed in the order of the request, those that are there first: all of them, or those of `some` ranks.
///
/// Many blocks of tokens are shared out as they are: one thread walks all tiles with one of them, and a tile that is in its cache serves all its
/// tokens. Of few blocks the tiles are shared out: first the neurons of each tile, then, for some columns at a time, the outputs of all.
fn tiled<P: Panel>(
    compute: &Compute,
    request: &Request<'_>,
    some: Option<Range<usize>>,
    m: &Activations,
    groups: &mut Vec<Group>,
    lost: Lost<'_>,
) -> Result<Vec<Output>> {
    let hidden = m.cols();
    let blocks: usize = groups.iter().map(|g| g.tokens.len().div_ceil(TOKEN_BLOCK)).sum();
    let walk = blocks >= 4 * compute.threads();
    if walk {
        // As many tokens together as leave every thread some: a group that is not cut reads each tile once.
        cut(groups, (blocks / (8 * compute.threads())).max(1) * TOKEN_BLOCK);
    }
    let output = |g: &Group| {
        let n = g.tokens.len();
        Output { n, panels: true, data: compute.scratch.zeros(n * hidden) }
    };
    let mut outputs: Vec<Output> = groups.iter().map(output).collect();
    // Groups go by the experts' numbers, ranks by the order of the request.
    let groups_of = |expert: usize| {
        groups.partition_point(|g| g.expert < expert)..groups.partition_point(|g| g.expert <= expert)
    };
    let some = some.unwrap_or(0..request.order().len());
    let ranks: Vec<Range<usize>> = request.order()[some.clone()].iter().map(|&e| groups_of(e)).collect();
    let work = Work { compute, request, first: some.start, ranks: &ranks, groups, lost };
    match compute.arithmetic {
        Arithmetic::Integer => {
            m.quantize(compute);
            let gather = |g: &Group| compute.scratch.gather(m.q8(), m.blocks(), &g.tokens);
            let inputs: Vec<_> = groups.iter().map(gather).collect();
            work.run::<P, BlockQ8>(hidden, &inputs, &mut outputs, walk)?;
        }
        Arithmetic::Float => {
            let gather = |g: &Group| compute.scratch.gather(m.data(), m.cols(), &g.tokens);
            let inputs: Vec<_> = groups.iter().map(gather).collect();
            work.run::<P, f32>(hidden, &inputs, &mut outputs, walk)?;
        }
    }
    Ok(outputs)
}

/// Activations as an arithmetic has them, and what a tile does with them.
trait Inputs: bytemuck::Pod + Send + Sync {
    /// Elements that 256 activations take.
    const LEN: usize;

    fn pass<P: Panel>(kernels: &Kernels, tile: &[P], hidden: usize, x: &[Self], y: &mut [[f32; PANEL_ROWS]]);

    fn gate_up<P: Panel>(kernels: &Kernels, tile: &[P], hidden: usize, x: &[Self], h: &mut [Self]);

    fn down<P: Panel>(
        kernels: &Kernels,
        tile: &[P],
        hidden: usize,
        range: Range<usize>,
        h: &[Self],
        y: &mut [[f32; PANEL_ROWS]],
    );
}

macro_rules! inputs {
    ($type:ty, $len:expr, $pass:ident, $gate_up:ident, $down:ident) => {
        impl Inputs for $type {
            const LEN: usize = $len;

            fn pass<P: Panel>(
                k: &Kernels,
                tile: &[P],
                hidden: usize,
                x: &[Self],
                y: &mut [[f32; PANEL_ROWS]],
            ) {
                $pass(k, tile, hidden, x, y);
            }

            fn gate_up<P: Panel>(k: &Kernels, tile: &[P], hidden: usize, x: &[Self], h: &mut [Self]) {
                $gate_up(k, tile, hidden, x, h);
            }

            fn down<P: Panel>(
                k: &Kernels,
                tile: &[P],
                hidden: usize,
                range: Range<usize>,
                h: &[Self],
                y: &mut [[f32; PANEL_ROWS]],
            ) {
                $down(k, tile, hidden, range, h, y);
            }
        }
    };
}
inputs!(BlockQ8, 1, tile_pass, tile_gate_up, tile_down);
inputs!(f32, QK, tile_pass_float, tile_gate_up_float, tile_down_float);

/// The work of a layer's experts.
struct Work<'w> {
    compute: &'w Compute,
    request: &'w Request<'w>,
    /// The rank in the request of the first of `ranks`.
    first: usize,
    /// By rank, the groups of its expert.
    ranks: &'w [Range<usize>],
    groups: &'w [Group],
    lost: Lost<'w>,
}

impl Work<'_> {
    /// Adds the experts' outputs to zeros.
    fn run<P: Panel, I: Inputs>(
        &self,
        hidden: usize,
        inputs: &[Buffer<I>],
        outputs: &mut [Output],
        walk: bool,
    ) -> Result<()> {
        if walk {
            self.walk::<P, I>(hidden, inputs, outputs)
        } else {
            self.spread::<P, I>(hidden, inputs, outputs)
        }
    }

    /// One thread walks all tiles with a group.
    fn walk<P: Panel, I: Inputs>(
        &self,
        hidden: usize,
        inputs: &[Buffer<I>],
        outputs: &mut [Output],
    ) -> Result<()> {
        let parts: Vec<usize> = self.ranks.iter().map(Range::len).collect();
        let places: Vec<Mutex<&mut [f32]>> =
            outputs.iter_mut().map(|o| Mutex::new(&mut o.data[..])).collect();
        self.in_order(0..parts.len(), &parts, true, |rank, part, expert| {
            let g = self.ranks[rank].start + part;
            let mut y = lock(&places[g]);
            (0..self.request.tiles()).try_for_each(|t| {
                let tile: &[P] = bytemuck::cast_slice(expert.tile(t)?);
                I::pass(&self.compute.kernels, tile, hidden, &inputs[g], y.as_chunks_mut().0);
                Ok(())
            })
        })
    }

    /// Threads share the tiles of as many experts as there are places for.
    fn spread<P: Panel, I: Inputs>(
        &self,
        hidden: usize,
        inputs: &[Buffer<I>],
        outputs: &mut [Output],
    ) -> Result<()> {
        let tiles = self.request.tiles();
        let mut start = 0;
        while start < self.ranks.len() {
            let placed = self.request.placed(self.first + start);
            let wave = start..self.ranks.len().min(start + placed.max(1));
            start = wave.end;
            // A group that was not cut is the only one of its expert.
            let groups: Vec<usize> = wave.clone().map(|rank| self.ranks[rank].start).collect();
            let tokens = |g: &usize| self.groups[*g].tokens.len();
            let len: usize = groups.iter().map(tokens).sum();
            let mut neurons = self.compute.scratch.buffer::<I>(len * tiles * I::LEN);
            let mut rest = &mut neurons[..];
            let mut places = Vec::with_capacity(wave.len() * tiles);
            for g in &groups {
                for _ in 0..tiles {
                    let place;
                    (place, rest) = rest.split_at_mut(tokens(g) * I::LEN);
                    places.push(Mutex::new(place));
                }
            }
            self.in_order(wave.clone(), &vec![tiles; wave.len()], false, |rank, t, expert| {
                let tile: &[P] = bytemuck::cast_slice(expert.tile(t)?);
                let x = &inputs[self.ranks[rank].start];
                let mut h = lock(&places[(rank - wave.start) * tiles + t]);
                I::gate_up(&self.compute.kernels, tile, hidden, x, &mut h);
                Ok(())
            })?;
            drop(places);
            self.down::<P, I>(hidden, wave, &neurons, outputs)?;
        }
        Ok(())
    }

    /// The outputs of the experts of some ranks, whose neurons are [rank][tile][token].
    fn down<P: Panel, I: Inputs>(
        &self,
        hidden: usize,
        wave: Range<usize>,
        neurons: &[I],
        outputs: &mut [Output],
    ) -> Result<()> {
        let (tiles, panels) = (self.request.tiles(), hidden / PANEL_ROWS);
        let columns = panels.div_ceil(4 * self.compute.threads()).max(LEAST_PANELS.min(panels));
        let mut items = Vec::new();
        let mut at = 0;
        let mut outputs: Vec<Option<&mut Output>> = outputs.iter_mut().map(Some).collect();
        let experts: Vec<_> = wave.clone().map(|rank| self.request.expert(self.first + rank)).collect();
        for (rank, expert) in wave.clone().zip(&experts) {
            let group = self.ranks[rank].start;
            let (Some(output), n) = (outputs[group].take(), self.groups[group].tokens.len()) else {
                continue;
            };
            let h = &neurons[at..][..tiles * n * I::LEN];
            at += h.len();
            if let Ok(expert) = expert {
                let parts = output.data.chunks_mut(columns * n * PANEL_ROWS).enumerate();
                items.extend(parts.map(|(i, y)| (rank, expert, n, h, i * columns, y)));
            }
        }
        let add = |(_, expert, n, h, first, y): &mut (usize, &Expert<'_>, usize, &[I], usize, &mut [f32])| {
            let y = y.as_chunks_mut().0;
            let range = *first..*first + y.len() / *n;
            for (t, h) in h.chunks_exact(*n * I::LEN).enumerate() {
                // A tile that could not be read has been told of.
                let Ok(tile) = expert.tile(t) else { return };
                I::down(
                    &self.compute.kernels,
                    bytemuck::cast_slice::<_, P>(tile),
                    hidden,
                    range.clone(),
                    h,
                    y,
                );
            }
        };
        self.compute.run(|| items.par_iter_mut().with_max_len(1).for_each(add));
        drop(items);
        drop(experts);
        wave.for_each(|rank| self.request.finish(self.first + rank));
        Ok(())
    }

    /// Does `work(rank, part, expert)` for the parts of every rank of `wave`. Threads take the parts in order, so that none waits for an expert
    /// while another part could be done; an expert is finished, where `finish` says so, when its last part is. Of an expert that could not be
    /// read the other parts are left out.
    ///
    /// # Errors
    /// When nothing is left to go on for.
    fn in_order(
        &self,
        wave: Range<usize>,
        parts: &[usize],
        finish: bool,
        work: impl Fn(usize, usize, &Expert<'_>) -> Result<()> + Sync,
    ) -> Result<()> {
        let items: Vec<(usize, usize)> =
            wave.clone().zip(parts).flat_map(|(rank, &n)| (0..n).map(move |part| (rank, part))).collect();
        let left: Vec<AtomicUsize> = parts.iter().map(|&n| AtomicUsize::new(n)).collect();
        let failed: Vec<AtomicBool> = parts.iter().map(|_| AtomicBool::new(false)).collect();
        let next = AtomicUsize::new(0);
        let take = |_| -> Result<()> {
            let _unwinding = AbortOnPanic(self.request);
            while let Some(&(rank, part)) = items.get(next.fetch_add(1, Relaxed)) {
                let i = rank - wave.start;
                if !failed[i].load(Relaxed) {
                    let expert = self.request.expert(self.first + rank);
                    let done = expert.and_then(|expert| work(rank, part, &expert));
                    if let Err(problem) = done {
                        let aborted = matches!(problem, Error::Cancelled);
                        let first = !failed[i].swap(true, Relaxed);
                        if aborted || first && self.lose(rank, &problem) {
                            next.store(items.len(), Relaxed);
                            self.request.abort();
                            return Err(problem);
                        }
                    }
                }
                if left[i].fetch_sub(1, AcqRel) == 1 && finish {
                    self.request.finish(self.first + rank);
                }
            }
            Ok(())
        };
        let threads = self.compute.threads();
        let ends: Vec<Result<()>> =
            self.compute.run(|| (0..threads).into_par_iter().with_max_len(1).map(take).collect());
        // Of several problems the one that made the others.
        let problems = ends.into_iter().filter_map(Result::err);
        problems.min_by_key(|e| matches!(e, Error::Cancelled)).map_or(Ok(()), Err)
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

/// Cuts groups into parts of up to `most` tokens.
fn cut(groups: &mut Vec<Group>, most: usize) {
    let parts = groups.drain(..).flat_map(|g| {
        let parts = g.tokens.chunks(most).zip(g.weights.chunks(most));
        let part =
            |(t, w): (&[usize], &[f32])| Group { expert: g.expert, tokens: t.into(), weights: w.into() };
        parts.map(part).collect::<Vec<_>>()
    });
    *groups = parts.collect();
}
