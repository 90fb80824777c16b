//! Tokens from the best to the worst, sorted only as far as someone looks: a choice looks at a few of 135,040.

use std::cmp::Ordering;

/// Tokens that are sorted when someone looks at the first.
const FIRST: usize = 64;
/// Tokens of a block, of which only the best is looked at first.
const BLOCK: usize = 64;

/// From the best to the worst, of equals the lower id first.
pub fn by_rank(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The best `n` tokens with a finite logit, and their logits: best first, and of equals the lower id first.
///
/// The best of blocks are different tokens, so that the nth of those is reached by `n` tokens at least, and the best `n` are in blocks whose best
/// reaches it: few of many.
pub fn best(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let maxima: Vec<f32> = logits.chunks(BLOCK).map(max_finite).collect();
    let least = match n {
        0 => return Vec::new(),
        n if n <= maxima.len() => *maxima.clone().select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a)).1,
        _ => f32::NEG_INFINITY,
    };
    let blocks = logits.chunks(BLOCK).zip((0..).step_by(BLOCK)).zip(maxima);
    let mut tokens = Vec::new();
    for ((block, first), _) in blocks.filter(|(_, max)| *max >= least) {
        tokens.extend((first..).zip(block.iter().copied()).filter(|(_, l)| l.is_finite() && *l >= least));
    }
    let mut ranking = Ranking { tokens, sorted: 0 };
    (0..n.min(ranking.len())).map(|i| ranking.get(i)).collect()
}

/// The highest finite logit, side by side for many; minus infinity where there is none.
fn max_finite(block: &[f32]) -> f32 {
    let better = |max: f32, logit: f32| if logit > max && logit < f32::INFINITY { logit } else { max };
    let (lanes, rest) = block.as_chunks::<16>();
    let mut maxima = [f32::NEG_INFINITY; 16];
    for lane in lanes {
        maxima.iter_mut().zip(lane).for_each(|(max, logit)| *max = better(*max, *logit));
    }
    maxima.iter().chain(rest).copied().fold(f32::NEG_INFINITY, better)
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
