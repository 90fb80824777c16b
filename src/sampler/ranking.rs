//! Tokens from the best to the worst, sorted only as far as someone looks: a choice looks at a few of 135,040.

use std::cmp::Ordering;

/// Tokens that are sorted when someone looks at the first.
const FIRST: usize = 64;

/// From the best to the worst, of equals the lower id first.
pub fn by_rank(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The best `n` tokens with a finite logit, and their logits: best first, and of equals the lower id first.
pub fn best(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut ranking = Ranking::new(logits);
    (0..n.min(ranking.len())).map(|i| ranking.get(i)).collect()
}

/// All tokens with a finite logit, in order as far as they were asked for.
pub struct Ranking {
    tokens: Vec<(u32, f32)>,
    sorted: usize,
}

impl Ranking {
    /// The tokens of these logits.
    pub fn new(logits: &[f32]) -> Self {
        let mut tokens = Vec::with_capacity(logits.len());
        tokens.extend((0..).zip(logits.iter().copied()).filter(|(_, l)| l.is_finite()));
        Self { tokens, sorted: 0 }
    }

    /// Tokens that are in order already, all with a finite logit.
    pub fn of_best(best: &[(u32, f32)]) -> Self {
        Self { tokens: best.to_vec(), sorted: best.len() }
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The highest logit.
    pub fn max(&self) -> Option<f32> {
        self.tokens.iter().map(|t| t.1).reduce(f32::max)
    }

    /// Token and logit of rank `i`, of equals the lower id first.
    pub fn get(&mut self, i: usize) -> (u32, f32) {
        while i >= self.sorted {
            let more = self.sorted.max(FIRST).min(self.tokens.len() - self.sorted);
            let rest = &mut self.tokens[self.sorted..];
            rest.select_nth_unstable_by(more - 1, by_rank);
            rest[..more].sort_unstable_by(by_rank);
            self.sorted += more;
        }
        self.tokens[i]
    }

    /// The sum of the weights of the best `n`, in an order that does not depend on how far the tokens are sorted: of all
    /// by id, of fewer by rank.
    pub fn sum(&mut self, n: usize, weight: impl Fn(f32) -> f64) -> f64 {
        if n < self.tokens.len() {
            return (0..n).map(|i| weight(self.get(i).1)).sum();
        }
        if self.sorted > 0 {
            self.tokens.sort_unstable_by_key(|t| t.0);
            self.sorted = 0;
        }
        // Weights side by side, and then their sum in order.
        let mut weights = [0.0; 64];
        let mut sum = 0.0;
        for tokens in self.tokens.chunks(weights.len()) {
            weights.iter_mut().zip(tokens).for_each(|(w, t)| *w = weight(t.1));
            weights[..tokens.len()].iter().for_each(|w| sum += w);
        }
        sum
    }
}
