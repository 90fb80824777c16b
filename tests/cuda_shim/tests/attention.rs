//! Attention over a cache in f16 and in q8_0: the bits of the CPU's spans, whether each span has a block or one block takes all.

mod common;

use bytemuck::Zeroable;
use common::{Arg, Buffer, Random, assert_same, run, scalar};
use half::f16;
use yuan_cuda::launch::{self, SPAN};
use yuan_kernels::{BlockQ8, BlockQ8_0, DType, encode::best_encoders, exp};

/// A cache with keys and values in one of the types, by head and position.
struct Cache {
    dtype: DType,
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
        Self { dtype, dim, capacity, keys: store(), values: store() }
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
        let mut quantized = [BlockQ8::zeroed()];
        (scalar().quantize)(q, &mut quantized);
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

fn check(random: &mut Random, dtype: DType, [heads, dim, start, tokens]: [usize; 4]) {
    let capacity = start + tokens + 3;
    let cache = Cache::random(random, dtype, [heads, dim, capacity]);
    let width = heads * dim;
    let queries: Vec<f32> = random.floats(tokens * width).iter().map(|x| 3.0 * x).collect();
    let wanted: Vec<f32> = (0..tokens * heads)
        .flat_map(|i| cache.attend(&queries[i * dim..][..dim], i % heads, start + i / heads + 1))
        .collect();
    let (q, at) = (Buffer::of(&queries), Buffer::of(&[start as i32]));
    let (keys, values) = (Buffer::of(&cache.keys), Buffer::of(&cache.values));
    let what = format!("{} {heads} x {dim}, {tokens} tokens behind {start}", dtype.name());

    // One span more than there is: as a launch that was recorded for a longer context has.
    for spans in [launch::spans(start + tokens), launch::spans(start + tokens) + 1] {
        let partials = Buffer::<f32>::fresh(launch::partials(heads, dim, spans, tokens));
        let out = Buffer::fresh(tokens * width);
        let args: [&dyn Arg; 9] = [&q, &keys, &values, &partials, &at, &heads, &dim, &capacity, &spans];
        run(launch::attend_spans(dtype, heads, dim, spans, tokens), &args);
        run(launch::attend_join(heads, tokens), &[&partials, &out, &at, &heads, &dim, &spans]);
        assert_same(out.get(), &wanted, &format!("{what}, spans"));
    }

    let out = Buffer::fresh(tokens * width);
    let args: [&dyn Arg; 9] = [&q, &keys, &values, &out, &at, &heads, &dim, &capacity, &tokens];
    run(launch::attend_many(dtype, heads, dim, tokens), &args);
    assert_same(out.get(), &wanted, &format!("{what}, many"));
}

#[test]
fn attention_gives_the_bits_of_the_cpus_spans() {
    let mut random = Random(31);
    for dtype in [DType::F16, DType::Q8_0] {
        // The first token, odd numbers, the borders of a span, and three spans.
        for shape in [
            [2, 32, 0, 1],
            [3, 64, 0, 9],
            [1, 128, 5, 8],
            [1, 64, 510, 5],
            [1, 32, 512, 1],
            [1, 32, 1030, 11],
        ] {
            check(&mut random, dtype, shape);
        }
    }
}

#[test]
fn heads_of_the_true_width_do_too() {
    let mut random = Random(32);
    for dtype in [DType::F16, DType::Q8_0] {
        check(&mut random, dtype, [2, 256, 37, 3]);
    }
}

#[test]
fn widths_without_kernels_are_refused() {
    assert_eq!(launch::attend_spans(DType::F16, 1, 288, 1, 1), None);
    assert_eq!(launch::attend_many(DType::Q8_0, 1, 40, 1), None);
    assert_eq!(launch::heads(DType::Q4_0, 1, 64, 1), None);
}
