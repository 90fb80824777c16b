//! The second half of a layer: routed experts, or the one MLP of a dense model.

use rayon::prelude::*;
use yuan_kernels::{
    PanelQ4_0, PanelQ4K,
    panel::Panel,
    tile::{TOKEN_BLOCK, tile_pass, tile_pass_float},
};

use super::{
    activations::Activations,
    buffer::Buffer,
    compute::{Arithmetic, Compute},
    matrix::Matrix,
    router::{Router, Routing},
};
use crate::{error::Result, pager::Pager};

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

impl Experts {
    /// `sum of weight * expert(m)` [T, H], added up in the order of the experts' numbers.
    pub fn apply(
        &self,
        compute: &Compute,
        pager: &Pager,
        m: &Activations,
        routing: &Routing,
    ) -> Result<Buffer> {
        let groups = group(routing);
        let outputs = match self {
            Self::Rows(experts) => {
                groups.iter().map(|g| experts[g.expert].apply(compute, &m.gather(&g.tokens))).collect()
            }
            Self::TilesQ4K { layer } => tiled::<PanelQ4K>(compute, pager, *layer, m, &groups)?,
            Self::TilesQ4_0 { layer } => tiled::<PanelQ4_0>(compute, pager, *layer, m, &groups)?,
        };
        let hidden = m.cols();
        let mut y = Buffer::zeroed(m.data().len());
        for (group, output) in groups.iter().zip(outputs) {
            for ((&t, weight), output) in
                group.tokens.iter().zip(&group.weights).zip(output.chunks_exact(hidden))
            {
                y[t * hidden..][..hidden].iter_mut().zip(output).for_each(|(y, o)| *y += weight * o);
            }
        }
        Ok(y)
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

/// The outputs [n, H] of each group's expert. A tile's share is added to an output in the order of the tiles, whether one
/// thread walks all tiles of a block of tokens or every tile has a thread and a partial output of its own.
fn tiled<P: Panel>(
    compute: &Compute,
    pager: &Pager,
    layer: usize,
    m: &Activations,
    groups: &[Group],
) -> Result<Vec<Buffer>> {
    let (hidden, tiles) = (m.cols(), pager.tiles());
    let pass = |expert: usize, t: usize, x: &Activations, first: usize, y: &mut [f32]| -> Result<()> {
        let tile: &[P] = bytemuck::cast_slice(pager.tile(layer, expert, t)?);
        match compute.arithmetic {
            Arithmetic::Integer => {
                let x = &x.q8(compute.kernels)[first * x.blocks()..][..y.len() / hidden * x.blocks()];
                tile_pass(compute.kernels, tile, hidden, x, y);
            }
            Arithmetic::Float => {
                tile_pass_float(compute.kernels, tile, hidden, &x.data()[first * hidden..][..y.len()], y);
            }
        }
        Ok(())
    };
    let inputs: Vec<Activations> = groups.iter().map(|g| m.gather(&g.tokens)).collect();
    let mut outputs: Vec<Buffer> = groups.iter().map(|g| Buffer::zeroed(g.tokens.len() * hidden)).collect();

    let blocks: usize = groups.iter().map(|g| g.tokens.len().div_ceil(TOKEN_BLOCK)).sum();
    // A thread takes as many tokens through an expert as leaves every thread some: each tile is then read once.
    let together = (blocks / (8 * compute.threads())).max(1) * TOKEN_BLOCK;
    if blocks >= 4 * compute.threads() {
        compute.run(|| {
            let by_group = outputs.par_iter_mut().zip(&inputs).zip(groups);
            by_group.try_for_each(|((output, x), group)| {
                output.par_chunks_mut(together * hidden).enumerate().try_for_each(|(chunk, y)| {
                    (0..tiles).try_for_each(|t| pass(group.expert, t, x, chunk * together, y))
                })
            })
        })?;
    } else {
        let partial = |i: usize| -> Result<Vec<f32>> {
            let (g, t) = (i / tiles, i % tiles);
            let mut y = vec![0.0; groups[g].tokens.len() * hidden];
            pass(groups[g].expert, t, &inputs[g], 0, &mut y)?;
            Ok(y)
        };
        let partials: Vec<_> =
            compute.run(|| (0..groups.len() * tiles).into_par_iter().map(partial).collect());
        for (i, partial) in partials.into_iter().enumerate() {
            outputs[i / tiles].iter_mut().zip(partial?).for_each(|(o, p)| *o += p);
        }
    }
    Ok(outputs)
}
