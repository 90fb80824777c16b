//! The router: which experts a token goes to, and with what weights (MODEL.md, "Router").

use rayon::prelude::*;

use super::{activations::Activations, compute::Compute, matrix::Matrix};

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

/// The routing of T tokens.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    /// Logits [T, E], before the softmax over the experts.
    pub logits: Vec<f32>,
    /// For each token its chosen experts with their weights, best first.
    pub chosen: Vec<Vec<(usize, f32)>>,
}

impl Routing {
    /// The experts chosen by all tokens, in the order of the tokens.
    pub fn experts(&self) -> Vec<usize> {
        self.chosen.iter().flatten().map(|(expert, _)| *expert).collect()
    }
}

impl Router {
    /// Routes the T rows of `m`.
    pub fn route(&self, compute: &Compute, m: &Activations) -> Routing {
        // The logits, or for the attention router the queries that become them, beside its keys and values.
        let (mut logits, attention) = match &self.projections {
            Projections::Linear(w) => (compute.product(w, m).to_vec(), None),
            Projections::Attention(of) => {
                let [q, k, v] = of.each_ref().map(|w| compute.product(w, m));
                (q.to_vec(), Some([k, v]))
            }
        };
        let experts = self.projections.experts();
        let mut chosen = vec![Vec::new(); m.rows()];
        let rows = logits.par_chunks_exact_mut(experts).zip(&mut chosen).enumerate().with_min_len(8);
        compute.each(rows, |(t, (logits, chosen))| {
            if let Some(attention) = &attention {
                let [k, v] = attention.each_ref().map(|x| &x[t * experts..][..experts]);
                let mut scores = vec![0.0; experts];
                logits.iter_mut().for_each(|q| *q = attend(*q, k, v, &mut scores));
            }
            *chosen = choose(logits, self.used, self.normalize);
        });
        Routing { logits, chosen }
    }
}

/// `sum_j softmax_j(q k_j) v_j`: no scale, no mask. `scores` has room for a score of each key.
fn attend(q: f32, k: &[f32], v: &[f32], scores: &mut [f32]) -> f32 {
    scores.iter_mut().zip(k).for_each(|(score, k)| *score = q * k);
    softmax(scores);
    scores.iter().zip(v).map(|(p, v)| p * v).sum()
}

/// The `used` best of a softmax over the logits, best first, equals by number.
fn choose(logits: &[f32], used: usize, normalize: bool) -> Vec<(usize, f32)> {
    let mut scores = logits.to_vec();
    softmax(&mut scores);
    let mut order: Vec<(usize, f32)> = scores.into_iter().enumerate().collect();
    order.sort_by(|(i, a), (j, b)| b.total_cmp(a).then(i.cmp(j)));
    order.truncate(used);
    if normalize {
        let sum: f32 = order.iter().map(|(_, p)| p).sum();
        order.iter_mut().for_each(|(_, p)| *p /= sum);
    }
    order
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
        let chosen = choose(&[0.0, 3.0, 1.0, 2.0], 2, true);
        assert_eq!(chosen.iter().map(|c| c.0).collect::<Vec<_>>(), [1, 3]);
        let first = 1.0 / (1.0 + (-1f32).exp());
        assert!((chosen[0].1 - first).abs() < 1e-6 && (chosen[1].1 - (1.0 - first)).abs() < 1e-6);
    }

    #[test]
    fn equals_go_by_number() {
        assert_eq!(choose(&[1.0; 4], 2, true), [(0, 0.5), (1, 0.5)]);
    }

    #[test]
    fn uniform_attention_gives_the_mean_value() {
        assert!((attend(0.0, &[1.0, -5.0], &[2.0, 4.0], &mut [0.0; 2]) - 3.0).abs() < 1e-6);
    }
}
