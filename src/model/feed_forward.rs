//! The second half of a layer: routed experts, or the one MLP of a dense model.

use std::ops::Range;

use smallvec::SmallVec;
use yuan_kernels::{DType, blocks::QK, panel::PANEL_ROWS, tile::TOKEN_BLOCK, with_panel};

use super::{
    activations::Activations,
    compute::Compute,
    matrix::Matrix,
    phases::Phase,
    probe::{Stage, WatchAt},
    router::{Router, Routing},
    scratch::Buffer,
    tiles::{Lost, tiled},
};
#[cfg(feature = "gpu")]
use crate::pager::sync::{Mutex, lock};
use crate::{
    error::{Error, Result},
    list::List,
    pager::{Pass, Request},
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
                    Experts::Tiles { .. } => tiled,
                };
                router.projections.len_bytes() + router.used * expert
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
    pub fn apply(&self, compute: &Compute, m: &Activations, watch: &mut WatchAt<'_, '_>) -> Buffer {
        let mut h = compute.product(&self.up, m);
        (compute.kernels.swiglu)(&mut h, &compute.product(&self.gate, m));
        watch.see(Stage::Neurons { expert: 0, first: 0 }, &h);
        compute.product(&self.down, &Activations::new(h, self.gate.rows))
    }
}

/// The experts of one layer.
#[derive(Clone, Debug)]
pub enum Experts {
    /// Neuron tiles behind the pager.
    Tiles {
        /// The layer, as the pager counts.
        layer: usize,
        /// Type of their panels.
        dtype: DType,
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
pub struct Group {
    pub expert: usize,
    pub tokens: SmallVec<[usize; 4]>,
    weights: SmallVec<[f32; 4]>,
}

impl Group {
    /// Shows the expert's tokens: their weights, and what it takes of them.
    pub fn show(&self, watch: &mut WatchAt<'_, '_>, inputs: &[f32]) {
        watch.see(Stage::Chosen(self.expert), &self.weights);
        watch.see(Stage::ExpertInput(self.expert), inputs);
    }
}

/// What an expert made of `n` tokens: rows [n, H], or in the order of the panels, [H / 16][n][16].
pub struct Output {
    n: usize,
    panels: bool,
    pub data: Buffer,
}

impl Output {
    /// Zeros for `n` tokens, in the order of the panels.
    pub fn zeros(compute: &Compute, n: usize, hidden: usize) -> Self {
        Self { n, panels: true, data: compute.scratch.zeros(n * hidden) }
    }

    /// Outputs `16 g..16 g + 16` of token `i`.
    fn piece(&self, i: usize, g: usize) -> &[f32] {
        let at = if self.panels { g * self.n + i } else { i * (self.data.len() / self.n / PANEL_ROWS) + g };
        &self.data[at * PANEL_ROWS..][..PANEL_ROWS]
    }
}

impl Experts {
    /// Asks for the experts that the tokens were routed to, all at once; experts in rows need no asking.
    pub fn request<'p>(&self, pass: &'p Pass<'_>, routing: &Routing) -> Result<Option<Request<'p>>> {
        let Self::Tiles { layer, .. } = self else { return Ok(None) };
        pass.request(*layer, &routing.experts(), routing.used).map(Some)
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
        watch: &mut WatchAt<'_, '_>,
    ) -> Result<Buffer> {
        compute.phase(Phase::Experts);
        let mut groups = group(routing);
        let request = || request.ok_or_else(|| Error::Argument("experts in tiles need a request".into()));
        let outputs = match self {
            Self::Rows(experts) => groups
                .iter()
                .map(|g| Output {
                    n: g.tokens.len(),
                    panels: false,
                    data: experts[g.expert].apply(compute, &m.gather(compute, &g.tokens), |x, h| {
                        g.show(watch, x.data());
                        watch.see(Stage::Neurons { expert: g.expert, first: 0 }, h);
                    }),
                })
                .collect(),
            Self::Tiles { dtype, .. } => {
                tiled_as(*dtype, compute, request()?, None, m, &mut groups, lost, Some(watch))?
            }
        };
        let hidden = m.cols();
        let mut y = compute.scratch.zeros(m.data().len());
        let columns = if m.rows() < TOKEN_BLOCK { hidden } else { QK };
        compute.phase(Phase::Sum);
        compute.each_columns(&mut y, hidden, columns, 1, |y| {
            let pieces = y.range().start / PANEL_ROWS..y.range().end / PANEL_ROWS;
            for (group, output) in groups.iter().zip(&outputs) {
                for (i, (&t, weight)) in group.tokens.iter().zip(&group.weights).enumerate() {
                    for (g, y) in pieces.clone().zip(y.row(t).chunks_exact_mut(PANEL_ROWS)) {
                        y.iter_mut().zip(output.piece(i, g)).for_each(|(y, o)| *y += weight * o);
                    }
                }
            }
        });
        Ok(y)
    }
}

#[cfg(feature = "gpu")]
impl Experts {
    /// Gives every output of the `ranks` of what was asked for as `(token, expert, column, outputs from there on)`, not yet weighted.
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
        groups.retain(|group| request.order()[ranks.clone()].contains(&group.expert));
        let problem = Mutex::new(None);
        let lost: Lost<'_> = &|_, error| {
            lock(&problem).get_or_insert_with(|| error.again());
            true
        };
        let outputs = match self {
            Self::Rows(_) => {
                return Err(Error::Argument("experts in rows are computed on the CPU only".into()));
            }
            Self::Tiles { dtype, .. } => {
                tiled_as(*dtype, compute, request, Some(ranks), m, &mut groups, lost, None)?
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

/// [`tiled`] with the panels of a type.
#[allow(clippy::too_many_arguments)]
fn tiled_as(
    dtype: DType,
    compute: &Compute,
    request: &Request<'_>,
    ranks: Option<Range<usize>>,
    m: &Activations,
    groups: &mut List<Group>,
    lost: Lost<'_>,
    watch: Option<&mut WatchAt<'_, '_>>,
) -> Result<List<Output>> {
    with_panel!(
        dtype,
        P => tiled::<P>(compute, request, ranks, m, groups, lost, watch),
        _ => Err(Error::Argument(format!("there are no tiles of {}", dtype.name())))
    )
}

impl ExpertRows {
    /// `w2 (silu(gate) * up)`, [n, H]; `show` sees `m` and what `w2` is multiplied with.
    fn apply(&self, compute: &Compute, m: &Activations, show: impl FnOnce(&Activations, &[f32])) -> Buffer {
        let ffn = self.w2.cols;
        let u = compute.product(&self.w1, m);
        let mut h = compute.scratch.buffer(m.rows() * ffn);
        for (h, u) in h.chunks_exact_mut(ffn).zip(u.chunks_exact(2 * ffn)) {
            let (gate, up) = u.split_at(ffn);
            h.copy_from_slice(gate);
            (compute.kernels.swiglu)(h, up);
        }
        show(m, &h);
        compute.product(&self.w2, &Activations::new(h, ffn))
    }
}

/// The routed tokens by expert, experts in order of number, tokens in order.
fn group(routing: &Routing) -> List<Group> {
    let mut groups = List::<Group>::new();
    for (t, chosen) in routing.by_token().enumerate() {
        for &(expert, weight) in chosen {
            let place = groups.binary_search_by_key(&expert, |group| group.expert).unwrap_or_else(|place| {
                groups.insert(place, Group { expert, tokens: SmallVec::new(), weights: SmallVec::new() });
                place
            });
            groups[place].tokens.push(t);
            groups[place].weights.push(weight);
        }
    }
    groups
}

/// Cuts groups into parts of up to `most` tokens.
pub fn cut(groups: &mut List<Group>, most: usize) {
    let parts = groups.drain(..).flat_map(|g| {
        let parts = g.tokens.chunks(most).zip(g.weights.chunks(most));
        let part =
            |(t, w): (&[usize], &[f32])| Group { expert: g.expert, tokens: t.into(), weights: w.into() };
        parts.map(part).collect::<List<_>>()
    });
    *groups = parts.collect();
}
