//! Attention over pages in f16 and in q8_0, of one sequence and of several: the bits of the CPU's spans, whether each span has a block or one block takes all.

mod common;

use bytemuck::Zeroable;
use common::{Arg, Buffer, Random, assert_same, rows, run, scalar};
use half::f16;
use yuan_cuda::launch::{self, QUERIES, SPAN};
use yuan_kernels::{BlockQ8_0, BlockQ8x8, DType, encode::best_encoders, exp};

/// Layers of a page, of which the last is attended to.
const LAYERS: usize = 2;

/// Keys and values of a sequence's last layer in one of the types, by head and position.
struct Cache {
    dtype: DType,
    heads: usize,
    dim: usize,
    capacity: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Cache {
    fn random(random: &mut Random, dtype: DType, [heads, dim, capacity]: [usize; 3]) -> Self {
        let mut store = || {
            let floats: Vec<f32> = random.floats(heads * dim * capacity).iter().map(|x| 2.0 * x).collect();
            match dtype {
                DType::F16 => {
                    bytemuck::cast_slice(&floats.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>())
                        .to_vec()
                }
                _ => {
                    let mut blocks = vec![0; floats.len() / 32 * 34];
                    (best_encoders().q8_0)(&floats, &mut blocks);
                    blocks
                }
            }
        };
        Self { dtype, heads, dim, capacity, keys: store(), values: store() }
    }

    /// As pages [layers][keys, values][heads][SPAN][dim], with what no result may see where there are no positions, and in the other layers.
    fn pages(&self) -> Vec<Buffer<u8>> {
        let row = self.dtype.row_bytes(self.dim).expect("whole blocks");
        let page = |number: usize| {
            let mut bytes = vec![0xa5u8; 2 * LAYERS * self.heads * SPAN * row];
            for (i, of) in [&self.keys, &self.values].into_iter().enumerate() {
                for head in 0..self.heads {
                    for position in number * SPAN..self.capacity.min((number + 1) * SPAN) {
                        let piece = ((LAYERS - 1) * 2 + i) * self.heads + head;
                        let to = (piece * SPAN + position % SPAN) * row;
                        bytes[to..to + row].copy_from_slice(self.row(of, head, position));
                    }
                }
            }
            Buffer::of(&bytes)
        };
        (0..self.capacity.div_ceil(SPAN)).map(page).collect()
    }

    fn row<'a>(&self, of: &'a [u8], head: usize, position: usize) -> &'a [u8] {
        let bytes = self.dtype.row_bytes(self.dim).expect("whole blocks");
        &of[(head * self.capacity + position) * bytes..][..bytes]
    }

    fn score(&self, q: &[f32], head: usize, position: usize) -> f32 {
        let key = self.row(&self.keys, head, position);
        if self.dtype == DType::F16 {
            return (scalar().dot_f16)(&bytemuck::pod_collect_to_vec(key), q);
        }
        let mut quantized = [BlockQ8x8::zeroed()];
        (scalar().quantize_x8)(q, &mut quantized);
        (scalar().dot_q8_0)(&bytemuck::pod_collect_to_vec::<u8, BlockQ8_0>(key), &quantized)
    }

    fn mix(&self, p: f32, head: usize, position: usize, y: &mut [f32]) {
        let value = self.row(&self.values, head, position);
        if self.dtype == DType::F16 {
            (scalar().mix_f16)(&[p], self.dim, &bytemuck::pod_collect_to_vec(value), y);
        } else {
            (scalar().mix_q8_0)(&[p], self.dim, &bytemuck::pod_collect_to_vec::<u8, BlockQ8_0>(value), y);
        }
    }

    /// As src/model/attention.rs: spans, and their join.
    fn attend(&self, q: &[f32], head: usize, visible: usize) -> Vec<f32> {
        let mut all: Option<(f32, f32, Vec<f32>)> = None;
        for start in (0..visible).step_by(SPAN) {
            let end = visible.min(start + SPAN);
            let scale = 1.0 / (self.dim as f32).sqrt();
            let mut scores: Vec<f32> = (start..end).map(|i| self.score(q, head, i) * scale).collect();
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum = (scalar().exp_sum)(&mut scores, max);
            let mut mixed = vec![0.0; self.dim];
            (start..end).for_each(|i| self.mix(scores[i - start], head, i, &mut mixed));
            all = Some(match all {
                None => (max, sum, mixed),
                Some((m, s, y)) => {
                    let most = m.max(max);
                    let (a, b) = (exp(m - most), exp(max - most));
                    let y = y.iter().zip(&mixed).map(|(y, o)| y * a + o * b).collect();
                    (most, s * a + sum * b, y)
                }
            });
        }
        let (_, sum, mixed) = all.expect("a query sees itself");
        mixed.iter().map(|m| m / sum).collect()
    }
}

/// Sequences of which each has some positions and then some tokens.
fn check(random: &mut Random, dtype: DType, [heads, dim]: [usize; 2], sequences: &[(usize, usize)]) {
    let caches: Vec<Cache> = sequences
        .iter()
        .map(|(start, tokens)| Cache::random(random, dtype, [heads, dim, start + tokens]))
        .collect();
    let (width, tokens) = (heads * dim, sequences.iter().map(|s| s.1).sum::<usize>());
    let queries: Vec<f32> = random.floats(tokens * width).iter().map(|x| 3.0 * x).collect();
    let rows = rows(sequences);
    let wanted: Vec<f32> = (0..tokens * heads)
        .flat_map(|i| {
            let [position, sequence, ..] = rows[i / heads];
            let cache = &caches[sequence as usize];
            cache.attend(&queries[i * dim..][..dim], i % heads, position as usize + 1)
        })
        .collect();
    let pages: Vec<Vec<Buffer<u8>>> = caches.iter().map(Cache::pages).collect();
    // Of a sequence that has fewer pages than others, the other places are never looked at.
    let stride = pages.iter().map(Vec::len).max().unwrap();
    let table = pages.iter().flat_map(|pages| {
        (0..stride).map(|page| pages.get(page).map_or(0xdead_0000, Buffer::address)).collect::<Vec<u64>>()
    });
    let (q, table) = (Buffer::of(&queries), Buffer::of(&table.collect::<Vec<_>>()));
    let (at, layer) = (Buffer::of(bytemuck::cast_slice::<_, i32>(&rows)), LAYERS - 1);
    let what = format!("{} {heads} x {dim}, {sequences:?}", dtype.name());

    // One span more than there is: as a launch that was recorded for a longer context has.
    for spans in [stride, stride + 1] {
        let partials = Buffer::<f32>::fresh(launch::partials(heads, dim, spans, tokens));
        let out = Buffer::fresh(tokens * width);
        let args: [&dyn Arg; 9] = [&q, &table, &at, &partials, &layer, &heads, &dim, &stride, &spans];
        run(launch::attend_spans(dtype, heads, dim, spans, tokens), &args);
        run(launch::attend_join(heads, tokens), &[&partials, &out, &at, &heads, &dim, &spans]);
        assert_same(out.get(), &wanted, &format!("{what}, spans"));
    }

    let mut groups = Vec::new();
    let mut first = 0;
    for (_, n) in sequences {
        groups.extend((0..*n).step_by(QUERIES).flat_map(|t| [(first + t) as i32, QUERIES.min(n - t) as i32]));
        first += n;
    }
    let out = Buffer::fresh(tokens * width);
    let args: [&dyn Arg; 9] = [&q, &table, &at, &Buffer::of(&groups), &out, &layer, &heads, &dim, &stride];
    run(launch::attend_many(dtype, heads, dim, groups.len() / 2), &args);
    assert_same(out.get(), &wanted, &format!("{what}, many"));
}

#[test]
fn attention_gives_the_bits_of_the_cpus_spans() {
    let mut random = Random(31);
    for dtype in [DType::F16, DType::Q8_0] {
        // The first token, odd numbers, the borders of a span, and three spans.
        for (shape, sequence) in [
            ([2, 32], (0, 1)),
            ([3, 64], (0, 9)),
            ([1, 128], (5, 8)),
            ([1, 64], (510, 5)),
            ([1, 32], (512, 1)),
            ([1, 32], (1030, 11)),
        ] {
            check(&mut random, dtype, shape, &[sequence]);
        }
    }
}

#[test]
fn sequences_do_not_notice_their_neighbours() {
    let mut random = Random(33);
    for dtype in [DType::F16, DType::Q8_0] {
        check(&mut random, dtype, [2, 32], &[(511, 1), (0, 1), (3, 1), (520, 1)]);
        check(&mut random, dtype, [1, 64], &[(0, 3), (508, 9), (7, 1), (600, 2)]);
    }
}

#[test]
fn heads_of_the_true_width_do_too() {
    let mut random = Random(32);
    for dtype in [DType::F16, DType::Q8_0] {
        check(&mut random, dtype, [2, 256], &[(37, 3)]);
    }
}

#[test]
fn widths_without_kernels_are_refused() {
    assert_eq!(launch::attend_spans(DType::F16, 1, 288, 1, 1), None);
    assert_eq!(launch::attend_many(DType::Q8_0, 1, 40, 1), None);
    assert_eq!(launch::heads(DType::Q4_0, 1, 64, 1), None);
}
