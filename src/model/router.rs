//! The router: which experts a token goes to, and with what weights (MODEL.md, "Router").

use rayon::prelude::*;
use smallvec::{SmallVec, smallvec};

use super::{activations::Activations, compute::Compute, matrix::Matrix, scratch::Buffer};

/// Weights of the router of one layer.
#[derive(Clone, Debug)]
pub struct Router {
    /// What the logits of the experts come from.
    pub projections: Projections,
    /// Experts that a token uses.
    pub used: usize,
    /// Whether the weights of the chosen are divided by their sum.
    pub normalize: bool,
}

/// Projections of a token's input, each [E, H].
#[derive(Clone, Debug)]
pub enum Projections {
    /// Of the attention router: the query, the key and the value of every expert.
    Attention([Matrix; 3]),
    /// Of the linear router: the logits.
    Linear(Matrix),
}

impl Projections {
    /// All of them, in their order.
    pub fn matrices(&self) -> &[Matrix] {
        match self {
            Self::Attention(matrices) => matrices,
            Self::Linear(matrix) => std::slice::from_ref(matrix),
        }
    }

    /// E.
    pub const fn experts(&self) -> usize {
        match self {
            Self::Attention([query, ..]) => query.rows,
            Self::Linear(matrix) => matrix.rows,
        }
    }

    /// Bytes of the weights.
    pub fn len_bytes(&self) -> usize {
        self.matrices().iter().map(Matrix::len_bytes).sum()
    }
}

/// A router and the norm before it in f32, for those that ask what decides on experts.
#[derive(Clone, Debug)]
pub struct WideRouter {
    /// Weights of the norm, \[H\].
    pub norm: Vec<f32>,
    /// Projections [E, H], row by row, in the order of [`Projections::matrices`].
    pub projections: Vec<Vec<f32>>,
    /// Experts that a token uses.
    pub used: usize,
}

/// The routing of T tokens.
#[derive(Debug)]
pub struct Routing {
    /// Logits [T, E], before the softmax over the experts; `None` where the choice is not a router's.
    pub logits: Option<Buffer>,
    /// Experts that a token uses.
    pub used: usize,
    /// [T, used] experts with their weights, of each token the best first.
    pub chosen: Chosen,
}

/// Experts with their weights.
pub type Chosen = SmallVec<[(usize, f32); 16]>;

impl Routing {
    /// Of each token its experts with their weights.
    pub fn by_token(&self) -> impl Iterator<Item = &[(usize, f32)]> {
        self.chosen.chunks_exact(self.used)
    }

    /// The experts chosen by all tokens, in the order of the tokens.
    pub fn experts(&self) -> SmallVec<[usize; 16]> {
        self.chosen.iter().map(|(expert, _)| *expert).collect()
    }
}

impl Router {
    /// Routes the T rows of `m`.
    pub fn route(&self, compute: &Compute, m: &Activations) -> Routing {
        // The logits, or for the attention router the queries that become them, beside its keys and values.
        let (mut logits, attention) = match &self.projections {
            Projections::Linear(w) => (compute.product(w, m), None),
            Projections::Attention(of) => {
                let [q, k, v] = of.each_ref().map(|w| compute.product(w, m));
                (q, Some([k, v]))
            }
        };
        let experts = self.projections.experts();
        let mut chosen: Chosen = smallvec![(0, 0.0); m.rows() * self.used];
        let rows = logits.par_chunks_exact_mut(experts).zip(chosen.par_chunks_exact_mut(self.used));
        compute.each(rows.enumerate().with_min_len(8), |(t, (logits, chosen))| {
            let mut scores = compute.scratch.buffer::<f32>(experts);
            if let Some(attention) = &attention {
                let [k, v] = attention.each_ref().map(|x| &x[t * experts..][..experts]);
                logits.iter_mut().for_each(|q| *q = attend(*q, k, v, &mut scores));
            }
            scores.copy_from_slice(logits);
            choose(&mut scores, chosen, self.normalize);
        });
        Routing { logits: Some(logits), used: self.used, chosen }
    }
}

/// `sum_j softmax_j(q k_j) v_j`: no scale, no mask. `scores` has room for a score of each key.
fn attend(q: f32, k: &[f32], v: &[f32], scores: &mut [f32]) -> f32 {
    scores.iter_mut().zip(k).for_each(|(score, k)| *score = q * k);
    softmax(scores);
    scores.iter().zip(v).map(|(p, v)| p * v).sum()
}

/// The best of a softmax over `logits`, best first, equals by number; their softmax takes the logits' place.
fn choose(logits: &mut [f32], chosen: &mut [(usize, f32)], normalize: bool) {
    softmax(logits);
    let order = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    for i in 0..chosen.len() {
        let (before, rest) = chosen.split_at_mut(i);
        let left = logits.iter().copied().enumerate().filter(|(e, _)| before.iter().all(|(b, _)| b != e));
        rest[0] = left.min_by(order).expect("no more experts are used than there are");
    }
    if normalize {
        let sum: f32 = chosen.iter().map(|(_, p)| p).sum();
        chosen.iter_mut().for_each(|(_, p)| *p /= sum);
    }
}

fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|x| *x = yuan_kernels::exp(*x - max));
    let sum: f32 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_best_share_the_weight() {
        let mut chosen = [(0, 0.0); 2];
        choose(&mut [0.0, 3.0, 1.0, 2.0], &mut chosen, true);
        assert_eq!(chosen.iter().map(|c| c.0).collect::<Vec<_>>(), [1, 3]);
        let first = 1.0 / (1.0 + (-1f32).exp());
        assert!((chosen[0].1 - first).abs() < 1e-6 && (chosen[1].1 - (1.0 - first)).abs() < 1e-6);
    }

    #[test]
    fn equals_go_by_number() {
        let mut chosen = [(0, 0.0); 2];
        choose(&mut [1.0; 4], &mut chosen, true);
        assert_eq!(chosen, [(0, 0.5), (1, 0.5)]);
    }

    #[test]
    fn uniform_attention_gives_the_mean_value() {
        assert!((attend(0.0, &[1.0, -5.0], &[2.0, 4.0], &mut [0.0; 2]) - 3.0).abs() < 1e-6);
    }
}
