//! The second half of a layer: routed experts, or the one MLP of a dense model.

use std::{
    ops::Range,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{
            AtomicUsize,
            Ordering::{AcqRel, Relaxed},
        },
    },
};

use rayon::prelude::*;
use yuan_kernels::{
    BlockQ8, Columns, PanelQ4_0, PanelQ4K,
    blocks::QK,
    panel::{PANEL_ROWS, Panel},
    tile::{TOKEN_BLOCK, tile_pass, tile_pass_float},
};

use super::{
    activations::{Activations, gather},
    buffer::Buffer,
    compute::{Arithmetic, Compute},
    matrix::Matrix,
    router::{Router, Routing},
};
use crate::{
    error::{Error, Result},
    pager::{Expert, Pass, Request},
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

impl Experts {
    /// Asks for the experts that the tokens were routed to, all at once; experts in rows need no asking.
    pub fn request<'p>(&self, pass: &'p Pass<'_>, routing: &Routing) -> Result<Option<Request<'p>>> {
        let (Self::TilesQ4K { layer } | Self::TilesQ4_0 { layer }) = self else { return Ok(None) };
        let used = routing.chosen.first().map_or(0, Vec::len);
        pass.request(*layer, &routing.experts(), used).map(Some)
    }

    /// `sum of weight * expert(m)` [T, H] for what was asked for, added up in the order of the experts' numbers.
    pub fn apply(
        &self,
        compute: &Compute,
        request: Option<&Request<'_>>,
        m: &Activations,
        routing: &Routing,
    ) -> Result<Buffer> {
        let mut groups = group(routing);
        let request = || request.ok_or_else(|| Error::Argument("experts in tiles need a request".into()));
        let outputs = match self {
            Self::Rows(experts) => groups
                .iter()
                .map(|g| Output {
                    n: g.tokens.len(),
                    panels: false,
                    data: experts[g.expert].apply(compute, &m.gather(&g.tokens)),
                })
                .collect(),
            Self::TilesQ4K { .. } => tiled::<PanelQ4K>(compute, request()?, None, m, &mut groups)?,
            Self::TilesQ4_0 { .. } => tiled::<PanelQ4_0>(compute, request()?, None, m, &mut groups)?,
        };
        let hidden = m.cols();
        let mut y = Buffer::zeroed(m.data().len());
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
        let outputs = match self {
            Self::Rows(_) => {
                return Err(Error::Argument("experts in rows are computed on the CPU only".into()));
            }
            Self::TilesQ4K { .. } => tiled::<PanelQ4K>(compute, request, Some(ranks), m, &mut groups)?,
            Self::TilesQ4_0 { .. } => tiled::<PanelQ4_0>(compute, request, Some(ranks), m, &mut groups)?,
        };
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
        let mut h = Buffer::with_capacity(m.rows() * ffn);
        for u in u.chunks_exact(2 * ffn) {
            let (start, (gate, up)) = (h.len(), u.split_at(ffn));
            h.extend_from_slice(gate);
            (compute.kernels.swiglu)(&mut h[start..], up);
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
/// the tiles, whether one thread walks all tiles or every tile has a thread and a partial output of its own. Experts are computed
/// in the order of the request, those that are there first: all of them, or those of `some` ranks.
fn tiled<P: Panel>(
    compute: &Compute,
    request: &Request<'_>,
    some: Option<Range<usize>>,
    m: &Activations,
    groups: &mut Vec<Group>,
) -> Result<Vec<Output>> {
    let (hidden, tiles) = (m.cols(), request.tiles());
    let blocks: usize = groups.iter().map(|g| g.tokens.len().div_ceil(TOKEN_BLOCK)).sum();
    let walk = blocks >= 4 * compute.threads();
    if walk {
        // As many tokens together as leave every thread some: a group that is not cut reads each tile once.
        cut(groups, (blocks / (8 * compute.threads())).max(1) * TOKEN_BLOCK);
    }
    let inputs = Inputs::gather(compute, m, groups);
    let pass = |expert: &Expert<'_>, g: usize, t: usize, y: &mut [f32]| -> Result<()> {
        let tile: &[P] = bytemuck::cast_slice(expert.tile(t)?);
        let y = y.as_chunks_mut().0;
        match &inputs {
            Inputs::Integer(x) => tile_pass(&compute.kernels, tile, hidden, &x[g], y),
            Inputs::Float(x) => tile_pass_float(&compute.kernels, tile, hidden, &x[g], y),
        }
        Ok(())
    };
    let output = |g: &Group| {
        let n = g.tokens.len();
        Output { n, panels: true, data: Buffer::zeroed(n * hidden) }
    };
    let mut outputs: Vec<Output> = groups.iter().map(output).collect();
    // Groups go by the experts' numbers, ranks by the order of the request.
    let groups_of = |expert: usize| {
        groups.partition_point(|g| g.expert < expert)..groups.partition_point(|g| g.expert <= expert)
    };
    let some = some.unwrap_or(0..request.order().len());
    let first = some.start;
    let ranks: Vec<Range<usize>> = request.order()[some].iter().map(|&e| groups_of(e)).collect();
    if walk {
        let parts = ranks.iter().map(Range::len).collect();
        let places: Vec<Mutex<&mut [f32]>> =
            outputs.iter_mut().map(|o| Mutex::new(&mut o.data[..])).collect();
        in_order(compute, request, first, parts, |rank, part, expert| {
            let g = ranks[rank].start + part;
            let mut y = places[g].lock().unwrap_or_else(PoisonError::into_inner);
            (0..tiles).try_for_each(|t| pass(expert, g, t, &mut y))
        })?;
    } else {
        let partials: Vec<OnceLock<Vec<f32>>> = (0..groups.len() * tiles).map(|_| OnceLock::new()).collect();
        in_order(compute, request, first, vec![tiles; groups.len()], |rank, t, expert| {
            let g = ranks[rank].start;
            let mut y = vec![0.0; groups[g].tokens.len() * hidden];
            pass(expert, g, t, &mut y)?;
            let _ = partials[g * tiles + t].set(y);
            Ok(())
        })?;
        for (i, partial) in partials.iter().enumerate() {
            let partial = partial.get().expect("every part is done");
            outputs[i / tiles].data.iter_mut().zip(partial).for_each(|(o, p)| *o += p);
        }
    }
    Ok(outputs)
}

/// Does `work(rank, part, expert)` for the `parts` of every rank of the request from `first` on, where ranks count from. Threads take the parts in order, so that
/// none waits for an expert while another part could be done, and an expert is finished when its last part is.
fn in_order(
    compute: &Compute,
    request: &Request<'_>,
    first: usize,
    parts: Vec<usize>,
    work: impl Fn(usize, usize, &Expert<'_>) -> Result<()> + Sync,
) -> Result<()> {
    let items: Vec<(usize, usize)> =
        parts.iter().enumerate().flat_map(|(rank, &n)| (0..n).map(move |part| (rank, part))).collect();
    let left: Vec<AtomicUsize> = parts.into_iter().map(AtomicUsize::new).collect();
    let next = AtomicUsize::new(0);
    let take = |_| -> Result<()> {
        let _unwinding = AbortOnPanic(request);
        while let Some(&(rank, part)) = items.get(next.fetch_add(1, Relaxed)) {
            let done = request.expert(first + rank).and_then(|expert| work(rank, part, &expert));
            if let Err(problem) = done {
                next.store(items.len(), Relaxed);
                request.abort();
                return Err(problem);
            }
            if left[rank].fetch_sub(1, AcqRel) == 1 {
                request.finish(first + rank);
            }
        }
        Ok(())
    };
    let ends: Vec<Result<()>> =
        compute.run(|| (0..compute.threads()).into_par_iter().with_max_len(1).map(take).collect());
    // Of several problems the one that made the others.
    let problems = ends.into_iter().filter_map(Result::err);
    problems.min_by_key(|e| matches!(e, Error::Cancelled)).map_or(Ok(()), Err)
}

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

/// The rows of activations of each group, as the arithmetic wants them.
enum Inputs {
    Integer(Vec<Buffer<BlockQ8>>),
    Float(Vec<Buffer>),
}

impl Inputs {
    fn gather(compute: &Compute, m: &Activations, groups: &[Group]) -> Self {
        match compute.arithmetic {
            Arithmetic::Integer => {
                m.quantize(compute);
                Self::Integer(groups.iter().map(|g| gather(m.q8(), m.blocks(), &g.tokens)).collect())
            }
            Arithmetic::Float => {
                Self::Float(groups.iter().map(|g| gather(m.data(), m.cols(), &g.tokens)).collect())
            }
        }
    }
}
