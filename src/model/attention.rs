//! Causal attention over the keys and values of one layer (MODEL.md, "Attention").
//!
//! Positions are taken in spans of [`SPAN`]. Each span has its own softmax, not yet divided by its sum; spans are put together
//! from the first to the last. So a query's result does not depend on the queries beside it, nor on which thread
//! took which span.

use std::{iter::repeat_n, ops::Range};

use bytemuck::{Pod, Zeroable};
use yuan_kernels::{Kernels, encode::best_encoders, exp};

use super::{
    activations::Activations,
    compute::Compute,
    scratch::{Buffer, parts_of},
    state::{KvCache, SPAN},
};

/// Queries of one head that share the keys and values: so many that what is read of them for each is little, and so few that a prompt has work for
/// many threads.
const QUERIES: usize = 16;

/// Rows of a sequence that are so few that its spans are shared out too.
const FEW: usize = 4;

/// Numbers that one thread puts together sooner than two.
const JOINED_TOGETHER: usize = 32 << 10;

/// Some queries of one head, which takes them over some spans at a time: in pieces.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Block {
    /// Place of the sequence.
    sequence: usize,
    head: usize,
    /// Rows of the pass from `start` on, up to [`QUERIES`].
    start: usize,
    rows: usize,
    /// Spans that the last of the queries sees.
    spans: usize,
    /// Of which a piece has so many.
    together: usize,
    /// Number of its first piece.
    first: usize,
    /// Where what its pieces give begins.
    place: usize,
}

impl Block {
    fn pieces(&self) -> usize {
        self.spans.div_ceil(self.together)
    }
}

/// `softmax(q·k / sqrt(head_dim)) v` for the queries [rows, heads * head_dim] of a pass, heads side by side. Each sequence has its cache and its
/// rows, which are the last positions there.
pub fn attend(compute: &Compute, sequences: &[(&KvCache, Range<usize>)], queries: &[f32]) -> Activations {
    let Some((kv, _)) = sequences.first() else { return Activations::new(compute.scratch.buffer(0), 1) };
    let (heads, dim) = (kv.heads(), kv.head_dim());
    let width = heads * dim;
    let rotated = rotated(compute, sequences, queries);
    let queries = rotated.as_deref().unwrap_or(queries);

    // Head by head, since the keys and values of one head of a long context fit in a processor's caches, and those of all do not.
    let of_head = sequences.iter().enumerate().flat_map(|(sequence, (kv, rows))| {
        rows.clone().step_by(QUERIES).map(move |start| {
            let end = rows.end.min(start + QUERIES);
            let spans = (kv.len() - (rows.end - end)).div_ceil(SPAN);
            let together = if rows.len() <= FEW { 1 } else { spans };
            Block { sequence, start, rows: end - start, spans, together, ..Block::zeroed() }
        })
    });
    let blocks = (0..heads).flat_map(|head| of_head.clone().map(move |block| Block { head, ..block }));
    let mut blocks = compute.scratch.list(blocks);
    let blocks_of_head = blocks.len() / heads;
    let (mut pieces, mut place) = (0, 0);
    for block in blocks.iter_mut() {
        (block.first, block.place) = (pieces, place);
        pieces += block.pieces();
        place += block.pieces() * block.rows * dim;
    }
    let mut mixed = compute.scratch.buffer::<f32>(place);
    let mut totals = compute.scratch.buffer::<Totals>(pieces);
    let lengths = blocks.iter().flat_map(|block| repeat_n(block.rows * dim, block.pieces()));
    let pieces = blocks.iter().flat_map(|block| {
        (0..block.spans).step_by(block.together).map(move |s| (block, s..s + block.together))
    });
    let pieces = pieces.zip(parts_of(&mut mixed, lengths)).zip(totals.iter_mut());
    // Beside what a thread works with, room for what a later span gives.
    let room = || (Work::new(compute, dim), compute.scratch.buffer(QUERIES * dim));
    compute.in_turn_with(pieces, room, |(work, more), (((block, mut spans), mixed), totals)| {
        let (kv, rows) = &sequences[block.sequence];
        let query = |t: usize| &queries[t * width + block.head * dim..][..dim];
        let q = work.q.chunks_exact_mut(dim).zip(block.start..block.start + block.rows);
        q.for_each(|(q, t)| q.copy_from_slice(query(t)));
        // Positions that the first of the queries sees.
        let visible = kv.len() - (rows.end - block.start) + 1;
        let first = spans.next().unwrap_or_default();
        *totals = attend_span(&compute.kernels, kv, block.head, visible, first, work, mixed);
        for span in spans {
            let more = &mut more[..mixed.len()];
            let later = attend_span(&compute.kernels, kv, block.head, visible, span, work, more);
            totals.join(dim, mixed, &later, more);
        }
    });

    let mut out = compute.scratch.buffer(queries.len());
    let heads_together = JOINED_TOGETHER.div_ceil((place / heads).max(1));
    compute.each_columns(&mut out, width, dim, heads_together, |out| {
        let head = out.range().start / dim;
        let mut joined = compute.scratch.buffer::<f32>(QUERIES * dim);
        for block in &blocks[head * blocks_of_head..][..blocks_of_head] {
            let size = block.rows * dim;
            let joined = &mut joined[..size];
            joined.copy_from_slice(&mixed[block.place..][..size]);
            let totals = &totals[block.first..][..block.pieces()];
            let mut all = totals[0];
            for (i, later) in totals.iter().enumerate().skip(1) {
                all.join(dim, joined, later, &mixed[block.place + i * size..][..size]);
            }
            let rows = block.start..block.start + block.rows;
            for ((row, mixed), sum) in rows.zip(joined.chunks_exact(dim)).zip(all.sums) {
                out.row(row).iter_mut().zip(mixed).for_each(|(o, m)| *o = m / sum);
            }
        }
    });
    Activations::new(out, width)
}

/// The queries, those of sequences with rotated keys rotated alike; `None` where there are no such.
fn rotated(
    compute: &Compute,
    sequences: &[(&KvCache, Range<usize>)],
    queries: &[f32],
) -> Option<Buffer<f32>> {
    sequences.iter().any(|(kv, _)| kv.rotation().is_some()).then(|| {
        let width = sequences.first().map_or(1, |(kv, _)| kv.heads() * kv.head_dim());
        let mut rotated = compute.scratch.copy(queries);
        let rotations = sequences.iter().flat_map(|(kv, rows)| repeat_n(kv.rotation(), rows.len()));
        let rows = rotated.chunks_exact_mut(width).zip(rotations);
        let rows = rows.filter_map(|(row, rotation)| Some((row, rotation?)));
        compute.in_turn(rows, |(row, rotation)| (best_encoders().rotate)(row, rotation));
        rotated
    })
}

/// What a thread uses again from piece to piece.
struct Work {
    /// Queries [T, head_dim].
    q: Buffer,
    scores: Buffer,
    weights: Buffer,
}

impl Work {
    fn new(compute: &Compute, dim: usize) -> Self {
        let [q, scores, weights] =
            [dim, SPAN, SPAN].map(|of_query| compute.scratch.buffer(QUERIES * of_query));
        Self { q, scores, weights }
    }
}

/// What some queries take from some positions, beside the values: these, each times its `e^(score - max)`, are added up as [T, head_dim].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Totals {
    /// The largest score of each query; minus infinity where it sees none of the positions.
    max: [f32; QUERIES],
    /// The sum of `e^(score - max)` of each.
    sums: [f32; QUERIES],
}

impl Totals {
    const NONE: Self = Self { max: [f32::NEG_INFINITY; QUERIES], sums: [0.0; QUERIES] };

    /// Both together, with their values, `other` being of later positions.
    fn join(&mut self, dim: usize, mixed: &mut [f32], other: &Self, others: &[f32]) {
        for (t, mixed) in mixed.chunks_exact_mut(dim).enumerate() {
            let max = self.max[t].max(other.max[t]);
            if other.sums[t] == 0.0 {
                continue;
            }
            let (mine, theirs) = (exp(self.max[t] - max), exp(other.max[t] - max));
            mixed.iter_mut().zip(&others[t * dim..]).for_each(|(m, o)| *m = *m * mine + o * theirs);
            self.sums[t] = self.sums[t] * mine + other.sums[t] * theirs;
            self.max[t] = max;
        }
    }
}

/// The queries of `work`, [T, head_dim], of one head over one span, whose values go to `mixed`; the first query sees `visible` positions, each
/// other one more than the one before it.
fn attend_span(
    kernels: &Kernels,
    kv: &KvCache,
    head: usize,
    visible: usize,
    span: usize,
    work: &mut Work,
    mixed: &mut [f32],
) -> Totals {
    let dim = kv.head_dim();
    let tokens = mixed.len() / dim;
    let start = span * SPAN;
    let seen = |t: usize| (visible + t).saturating_sub(start).min(SPAN);
    let n = seen(tokens - 1);
    let (q, scores) = (&work.q[..tokens * dim], &mut work.scores[..tokens * n]);
    scores.fill(0.0);
    kv.scores(kernels, head, start..start + n, q, scores);
    let scale = 1.0 / (dim as f32).sqrt();
    scores.iter_mut().for_each(|s| *s *= scale);

    let mut totals = Totals::NONE;
    for t in 0..tokens {
        let scores = &mut scores[t * n..][..seen(t)];
        totals.max[t] = largest(scores);
        totals.sums[t] = if scores.is_empty() { 0.0 } else { (kernels.exp_sum)(scores, totals.max[t]) };
    }
    // What all queries see is mixed for all of them; the rest, fewer positions than queries, one by one.
    mixed.fill(0.0);
    let common = seen(0);
    let mut weights = &*scores;
    if common < n {
        let of_common = &mut work.weights[..tokens * common];
        let rows = of_common.chunks_exact_mut(common.max(1)).zip(scores.chunks_exact(n));
        rows.for_each(|(of_common, all)| of_common.copy_from_slice(&all[..common]));
        weights = of_common;
    }
    kv.mix(kernels, head, start..start + common, weights, mixed);
    for (t, mixed) in mixed.chunks_exact_mut(dim).enumerate() {
        let weights = &scores[t * n..][common..seen(t)];
        kv.mix(kernels, head, start + common..start + seen(t), weights, mixed);
    }
    totals
}

/// The largest score, or minus infinity. Sixteen at a time, since one after the other would wait for each.
fn largest(scores: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (sixteens, rest) = scores.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for scores in sixteens {
        lanes.iter_mut().zip(scores).for_each(|(lane, score)| *lane = larger(*lane, *score));
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            compute::Arithmetic,
            state::{KvType, Pool, store},
            threads::Threads,
        },
        *,
    };

    const HEADS: usize = 2;
    const DIM: usize = 64;

    fn number(seed: usize) -> f32 {
        ((seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// The last of 131,072 positions sees all of them. Every key has one large number at the same place, as the keys of models have.
    #[test]
    fn a_query_sees_every_position_of_the_longest_context() {
        let n = 131_072;
        let width = HEADS * DIM;
        let row = |i: usize, of: usize| -> Vec<f32> {
            let large = |d: usize| if of == 0 && d % DIM == 5 { 12.0 } else { 0.0 };
            (0..width).map(|d| number(3 * (i * width + d) + of) + large(d)).collect()
        };
        let query: Vec<f32> = (0..width).map(|d| 2.0 * number(3 * d + 2)).collect();
        let mut expected = vec![0.0_f64; width];
        for (head, expected) in expected.chunks_exact_mut(DIM).enumerate() {
            let part = |row: Vec<f32>| row[head * DIM..][..DIM].to_vec();
            let q = &query[head * DIM..][..DIM];
            let mut sum = 0.0;
            for i in 0..n {
                let score: f64 = part(row(i, 0)).iter().zip(q).map(|(k, q)| f64::from(k * q)).sum();
                let weight = (score / (DIM as f64).sqrt() - 4.0).exp();
                sum += weight;
                expected.iter_mut().zip(part(row(i, 1))).for_each(|(e, v)| *e += weight * f64::from(v));
            }
            expected.iter_mut().for_each(|e| *e /= sum);
        }
        let largest = expected.iter().fold(0.0_f64, |most, e| most.max(e.abs()));
        let compute = Compute::new(Threads::new(2, 2).unwrap(), Arithmetic::Integer, None).unwrap();
        // Twelve is 24 of the 4-bit steps that a number of one would have: without a rotation its block has one step left for all others.
        for (kv, most) in [("f16", 1e-3), ("q8_0", 0.02), ("q8_0:q4_0", 0.1), ("q4_0", 0.25)] {
            let mut cache = KvCache::new(HEADS, DIM, KvType::from_name(kv).unwrap());
            let pool = Pool::new(u64::MAX, 1);
            for start in (0..n).step_by(SPAN) {
                let rows =
                    |of: usize| -> Vec<f32> { (start..start + SPAN).flat_map(|i| row(i, of)).collect() };
                let mut lease = pool.take(cache.missing(start + SPAN)).unwrap();
                cache.reserve(start + SPAN, &mut lease).unwrap();
                let (keys, values) = (rows(0), rows(1));
                store(&compute, 2 * keys.len(), [(&mut cache, &keys[..], &values[..])].into_iter());
            }
            let bytes = HEADS * KvType::from_name(kv).unwrap().bytes(DIM) * n;
            assert_eq!(pool.usage().bytes, bytes as u64);
            let found = attend(&compute, &[(&cache, 0..1)], &query);
            let errors = found.data().iter().zip(&expected).map(|(f, e)| (f64::from(*f) - e).abs());
            let error = errors.fold(0.0, f64::max) / largest;
            assert!(error < most, "{kv}: {error}");
        }
    }
}
