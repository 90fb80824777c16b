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
                let [q, k, v] = compute.products(of.each_ref(), m);
                (q, Some([k, v]))
            }
        };
        let experts = self.projections.experts();
        let mut chosen: Chosen = smallvec![(0, 0.0); m.rows() * self.used];
        let rows = logits.par_chunks_exact_mut(experts).zip(chosen.par_chunks_exact_mut(self.used));
        compute.each(rows.enumerate().with_min_len(8), |(t, (logits, chosen))| {
            if let Some(attention) = &attention {
                let [k, v] = attention.each_ref().map(|x| &x[t * experts..][..experts]);
                attend(compute, logits, k, v);
            }
            let mut scores = compute.scratch.copy(logits);
            choose(&mut scores, chosen, self.normalize);
        });
        Routing { logits: Some(logits), used: self.used, chosen }
    }
}

/// Each `q` becomes `sum_j softmax_j(q k_j) v_j`: no scale, no mask. All queries take each step together, key by key, so that vectors of queries do it; of each the
/// sums go over the keys in their order.
fn attend(compute: &Compute, q: &mut [f32], k: &[f32], v: &[f32]) {
    let n = q.len();
    let mut room = compute.scratch.buffer::<f32>((2 + k.len()) * n);
    let (max, rest) = room.split_at_mut(n);
    let (sums, scores) = rest.split_at_mut(n);
    max.fill(f32::NEG_INFINITY);
    for (scores, k) in scores.chunks_exact_mut(n).zip(k) {
        for ((score, max), q) in scores.iter_mut().zip(&mut *max).zip(&*q) {
            *score = q * k;
            *max = max.max(*score);
        }
    }
    for scores in scores.chunks_exact_mut(n) {
        scores.iter_mut().zip(&*max).for_each(|(score, max)| *score -= max);
    }
    (compute.kernels.exps)(scores);
    sums.fill(0.0);
    for powers in scores.chunks_exact(n) {
        sums.iter_mut().zip(powers).for_each(|(sum, power)| *sum += power);
    }
    q.fill(0.0);
    for (powers, v) in scores.chunks_exact(n).zip(v) {
        for ((q, power), sum) in q.iter_mut().zip(powers).zip(&*sums) {
            *q += power / sum * v;
        }
    }
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

/// The softmax of `x` in its place.
pub fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|x| *x = yuan_kernels::exp(*x - max));
    let sum: f32 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
}

#[cfg(test)]
mod tests {
    use super::{
        super::{compute::Arithmetic, threads::Threads},
        *,
    };

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

    fn compute() -> Compute {
        Compute::new(Threads::new(1, 1).unwrap(), Arithmetic::Integer, None).unwrap()
    }

    #[test]
    fn uniform_attention_gives_the_mean_value() {
        let mut q = [0.0; 2];
        attend(&compute(), &mut q, &[1.0, -5.0], &[2.0, 4.0]);
        assert!(q.iter().all(|q| (q - 3.0).abs() < 1e-6));
    }

    #[test]
    fn queries_that_attend_together_have_the_bits_of_one() {
        let alone = |q: f32, k: &[f32], v: &[f32]| -> f32 {
            let mut scores: Vec<f32> = k.iter().map(|k| q * k).collect();
            softmax(&mut scores);
            scores.iter().zip(v).fold(0.0, |sum, (p, v)| sum + p * v)
        };
        let compute = compute();
        for n in [1, 2, 7, 32, 33] {
            let wave = |step: f32| (0..n).map(|i| 9.0 * (i as f32 * step).sin()).collect::<Vec<f32>>();
            let (queries, k, v) = (wave(1.3), wave(0.7), wave(2.1));
            let mut q = queries.clone();
            attend(&compute, &mut q, &k, &v);
            let alone: Vec<f32> = queries.iter().map(|q| alone(*q, &k, &v)).collect();
            assert_eq!(
                q.iter().map(|q| q.to_bits()).collect::<Vec<_>>(),
                alone.iter().map(|q| q.to_bits()).collect::<Vec<_>>()
            );
        }
    }
}
