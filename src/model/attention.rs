//! Causal attention over the keys and values of one layer (MODEL.md, "Attention").
//!
//! Positions are taken in spans of [`SPAN`]. Each span has its own softmax, not yet divided by its sum; spans are put together
//! from the first to the last. So a query's result does not depend on the queries beside it, nor on which thread
//! took which span.

use std::ops::Range;

use rayon::prelude::*;
use yuan_kernels::{Columns, Kernels, exp};

use super::{
    activations::Activations,
    buffer::Buffer,
    compute::Compute,
    kv::{KvCache, SPAN},
};

/// Queries of one head that share the keys and values.
const QUERIES: usize = 4;

/// `softmax(q·k / sqrt(head_dim)) v` for the queries [T, heads * head_dim] of the last T positions, heads side by side.
pub fn attend(compute: &Compute, kv: &KvCache, queries: &[f32]) -> Activations {
    let (heads, dim) = (kv.heads(), kv.head_dim());
    let width = heads * dim;
    let tokens = queries.len() / width;
    let first = kv.len() - tokens;
    let mut out = Buffer::zeroed(queries.len());
    let blocks = tokens.div_ceil(QUERIES);

    let block_of =
        |item: usize| (item % heads, item / heads * QUERIES..tokens.min((item / heads + 1) * QUERIES));
    let gather = |head: usize, block: &Range<usize>| -> Vec<f32> {
        block.clone().flat_map(|t| &queries[t * width + head * dim..][..dim]).copied().collect()
    };
    let attended: Vec<Attended> = compute.run(|| {
        if blocks == 1 {
            // Few queries: spans are shared out too.
            let spans = kv.len().div_ceil(SPAN);
            let item = |i: usize| {
                let (head, block) = block_of(i / spans);
                attend_span(
                    &compute.kernels,
                    kv,
                    head,
                    &gather(head, &block),
                    first + block.start + 1,
                    i % spans,
                )
            };
            let parts: Vec<Attended> = (0..heads * spans).into_par_iter().map(item).collect();
            let mut parts = parts.into_iter();
            return (0..heads)
                .map(|_| parts.by_ref().take(spans).reduce(Attended::join).unwrap_or_default())
                .collect();
        }
        let item = |i: usize| {
            let (head, block) = block_of(i);
            let (q, visible) = (gather(head, &block), first + block.start + 1);
            let spans = (first + block.end).div_ceil(SPAN);
            let parts = (0..spans).map(|span| attend_span(&compute.kernels, kv, head, &q, visible, span));
            parts.reduce(Attended::join).unwrap_or_default()
        };
        (0..heads * blocks).into_par_iter().map(item).collect()
    });
    let mut by_head = Columns::split(&mut out, width, dim);
    let by_head = by_head.par_iter_mut().enumerate().with_min_len(heads.div_ceil(tokens));
    compute.run(|| {
        by_head.for_each(|(head, out)| {
            for i in (head..attended.len()).step_by(heads) {
                let (mixed, sums) = (attended[i].mixed.chunks_exact(dim), &attended[i].sums);
                for (t, (mixed, sum)) in block_of(i).1.zip(mixed.zip(sums)) {
                    out.row(t).iter_mut().zip(mixed).for_each(|(o, m)| *o = m / sum);
                }
            }
        });
    });
    Activations::new(out, width)
}

/// What some queries take from some positions.
#[derive(Debug, Default)]
struct Attended {
    /// The largest score of each query; minus infinity where it sees none of the positions.
    max: Vec<f32>,
    /// The sum of `e^(score - max)` of each.
    sums: Vec<f32>,
    /// The values, each times its `e^(score - max)`, added up: [T, head_dim].
    mixed: Vec<f32>,
}

impl Attended {
    /// Both together, `other` being of later positions.
    fn join(mut self, other: Self) -> Self {
        let dim = self.mixed.len() / self.max.len();
        for t in 0..self.max.len() {
            let max = self.max[t].max(other.max[t]);
            let mixed = self.mixed[t * dim..][..dim].iter_mut();
            if other.sums[t] == 0.0 {
                continue;
            }
            let (mine, theirs) = (exp(self.max[t] - max), exp(other.max[t] - max));
            mixed.zip(&other.mixed[t * dim..]).for_each(|(m, o)| *m = *m * mine + o * theirs);
            self.sums[t] = self.sums[t] * mine + other.sums[t] * theirs;
            self.max[t] = max;
        }
        self
    }
}

/// The queries `q` [T, head_dim] of one head over one span; the first query sees `visible` positions, each other one more
/// than the one before it.
fn attend_span(
    kernels: &Kernels,
    kv: &KvCache,
    head: usize,
    q: &[f32],
    visible: usize,
    span: usize,
) -> Attended {
    let dim = kv.head_dim();
    let tokens = q.len() / dim;
    let start = span * SPAN;
    let seen = |t: usize| (visible + t).saturating_sub(start).min(SPAN);
    let n = seen(tokens - 1);
    let mut scores = Buffer::<f32>::zeroed(tokens * n);
    kv.scores(kernels, head, start..start + n, q, &mut scores);
    let scale = 1.0 / (dim as f32).sqrt();
    scores.iter_mut().for_each(|s| *s *= scale);

    let (mut max, mut sums) = (Vec::new(), Vec::new());
    for t in 0..tokens {
        let scores = &mut scores[t * n..][..seen(t)];
        max.push(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        sums.push(if scores.is_empty() { 0.0 } else { (kernels.exp_sum)(scores, max[t]) });
    }
    // What all queries see is mixed for all of them; the rest, at most three positions, one by one.
    let mut mixed = vec![0.0; tokens * dim];
    let common = seen(0);
    let weights: Vec<f32> = (0..tokens).flat_map(|t| &scores[t * n..][..common]).copied().collect();
    kv.mix(kernels, head, start..start + common, &weights, &mut mixed);
    for (t, mixed) in mixed.chunks_exact_mut(dim).enumerate() {
        let weights = &scores[t * n..][common..seen(t)];
        kv.mix(kernels, head, start + common..start + seen(t), weights, mixed);
    }
    Attended { max, sums, mixed }
}
