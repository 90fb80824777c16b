//! What stands between the products: the bits of the CPU's definitions.

mod common;

use bytemuck::Zeroable;
use common::{Buffer, Null, Random, assert_same, rows, run, scalar};
use half::f16;
use yuan_cuda::launch::{self, SPAN};
use yuan_kernels::{
    BlockQ8, BlockQ8_0, BlockQ8x8, DType, dequantize, encode::best_encoders, exp, panel::ActivationBlock,
};

fn quantized<X: ActivationBlock>(x: &[f32], cols: usize) -> Vec<X> {
    let mut out = vec![X::zeroed(); x.len() / cols * cols.div_ceil(256)];
    for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols.div_ceil(256))) {
        X::quantize(scalar(), x, out);
    }
    out
}

/// Equal byte for byte, NaN included.
#[track_caller]
fn assert_blocks<X: ActivationBlock + std::fmt::Debug>(found: &[X], wanted: &[X], what: &str) {
    for (i, (f, w)) in found.iter().zip(wanted).enumerate() {
        assert!(bytemuck::bytes_of(f) == bytemuck::bytes_of(w), "{what}: block {i}\n{f:?}\n{w:?}");
    }
    assert_eq!(found.len(), wanted.len());
}

#[test]
fn activations_are_quantized_as_on_the_cpu() {
    let mut random = Random(21);
    for (rows, cols) in [(1, 256), (3, 300), (2, 2048), (5, 7), (9, 768)] {
        let mut x = random.floats(rows * cols);
        x[0] = 127.0; // ties
        x[1] = 0.5;
        x[2] = -1.5;
        let (n, x_device, what) = (rows * cols.div_ceil(256), Buffer::of(&x), format!("{rows} x {cols}"));
        let (q8, eights) = (Buffer::<BlockQ8>::fresh(n), Buffer::<BlockQ8x8>::fresh(n));
        run(launch::quantize(cols, rows), &[&x_device, &q8, &256usize, &cols, &rows]);
        assert_blocks(q8.get(), &quantized(&x, cols), &what);
        run(launch::quantize(cols, rows), &[&x_device, &eights, &32usize, &cols, &rows]);
        assert_blocks(eights.get(), &quantized(&x, cols), &what);
    }
    for strange in [0.0, -0.0, 1e-38, 1e-45, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        let x = [strange, 0.0, -1e-40, 0.0];
        let (q8, eights) = (Buffer::<BlockQ8>::fresh(1), Buffer::<BlockQ8x8>::fresh(1));
        run(launch::quantize(4, 1), &[&Buffer::of(&x), &q8, &256usize, &4usize, &1usize]);
        assert_blocks(q8.get(), &quantized(&x, 4), &format!("{strange}"));
        run(launch::quantize(4, 1), &[&Buffer::of(&x), &eights, &32usize, &4usize, &1usize]);
        assert_blocks(eights.get(), &quantized(&x, 4), &format!("{strange}"));
    }
}

fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    x.chunks_exact(weight.len())
        .flat_map(|row| {
            let (chunks, rest) = row.as_chunks::<16>();
            let mut sums = [0f32; 16];
            chunks.iter().for_each(|c| sums.iter_mut().zip(c).for_each(|(s, v)| *s += v * v));
            let sum = sums.iter().sum::<f32>() + rest.iter().map(|v| v * v).sum::<f32>();
            let scale = 1.0 / (sum / row.len() as f32 + eps).sqrt();
            row.iter().zip(weight).map(|(v, w)| v * scale * w).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn the_norm_is_the_cpus_in_both_forms() {
    let mut random = Random(22);
    for (rows, cols) in [(1, 2048), (3, 256), (2, 100), (1, 1024)] {
        let (x, weight) = (random.floats(rows * cols), random.floats(cols));
        let (x_device, w_device) = (Buffer::of(&x), Buffer::of(&weight));
        let (out, q8) = (Buffer::fresh(rows * cols), Buffer::fresh(rows * cols.div_ceil(256)));
        let launch = launch::rms_norm(cols, rows);
        let wanted = rms_norm(&x, &weight, 1e-6);
        run(launch, &[&x_device, &Null, &w_device, &out, &q8, &256usize, &cols, &1e-6f32]);
        assert_same(out.get(), &wanted, "norm");
        assert_blocks::<BlockQ8>(q8.get(), &quantized(&wanted, cols), "its blocks");
        // Either form alone, and in place.
        let eights = Buffer::fresh(rows * cols.div_ceil(256));
        run(launch, &[&x_device, &Null, &w_device, &Null, &eights, &32usize, &cols, &1e-6f32]);
        assert_blocks::<BlockQ8x8>(eights.get(), &quantized(&wanted, cols), "the blocks alone");
        run(launch, &[&x_device, &Null, &w_device, &x_device, &Null, &32usize, &cols, &1e-6f32]);
        assert_same(x_device.get(), &wanted, "in place");
        // A residual is added first.
        let plus = random.floats(rows * cols);
        let sums: Vec<f32> = x.iter().zip(&plus).map(|(x, p)| x + p).collect();
        let (x_device, out) = (Buffer::of(&x), Buffer::fresh(rows * cols));
        run(launch, &[&x_device, &Buffer::of(&plus), &w_device, &out, &Null, &256usize, &cols, &1e-6f32]);
        assert_same(x_device.get(), &sums, "the sums");
        assert_same(out.get(), &rms_norm(&sums, &weight, 1e-6), "their norm");
    }
    assert_eq!(launch::rms_norm(20_000, 1), None);
}

#[test]
fn rows_of_the_embedding_are_widened_as_on_the_cpu() {
    let mut random = Random(24);
    let (rows, cols) = (5, 512);
    let ids = [4, 0, 3, 3];
    for dtype in DType::ALL {
        let row = dtype.row_bytes(cols).expect("whole blocks");
        let weights = random.floats(rows * cols);
        let mut table = vec![0u8; rows * row];
        let (encode, halves) = (best_encoders(), weights.iter().map(|&w| f16::from_f32(w)));
        match dtype {
            DType::F32 => table.copy_from_slice(bytemuck::cast_slice(&weights)),
            DType::F16 => table.copy_from_slice(bytemuck::cast_slice(&halves.collect::<Vec<_>>())),
            // The upper half of a float.
            DType::Bf16 => table
                .as_chunks_mut()
                .0
                .iter_mut()
                .zip(&weights)
                .for_each(|(t, w)| *t = ((w.to_bits() >> 16) as u16).to_le_bytes()),
            DType::Q8_0 => (encode.q8_0)(&weights, &mut table),
            DType::Q4_0 => (encode.q4_0)(&weights, &mut table),
            DType::Q3_K => (encode.q3_k)(&weights, &mut table),
            DType::Q4_K => (encode.q4_k)(&weights, &mut table),
            DType::Q6_K => (encode.q6_k)(&weights, &mut table),
        }
        let out = Buffer::fresh(ids.len() * cols);
        let launch = launch::embed(dtype, ids.len());
        run(launch, &[&Buffer::of(&table), &Buffer::of(&ids), &out, &cols]);
        let mut wanted = vec![0.0; ids.len() * cols];
        for (id, wanted) in ids.into_iter().zip(wanted.chunks_exact_mut(cols)) {
            dequantize(dtype, &table[id as usize * row..][..row], wanted);
        }
        assert_same(out.get(), &wanted, dtype.name());
    }
}

#[test]
fn pairs_stand_behind_the_last_inputs_of_their_sequences() {
    let mut random = Random(25);
    for (sequences, cols) in [(&[1][..], 2048), (&[4], 128), (&[3], 100), (&[1, 3, 1, 2], 100)] {
        let rows = rows(&sequences.iter().map(|n| (5, *n)).collect::<Vec<_>>());
        let (tokens, pitch) = (rows.len(), cols + 36);
        let (x, last) = (random.floats(tokens * cols), random.floats(sequences.len() * pitch));
        let before = |t: usize| match rows[t] {
            [_, sequence, 1, _] => &last[sequence as usize * pitch..][..cols],
            _ => &x[(t - 1) * cols..][..cols],
        };
        for interleaved in [0, 1] {
            let wanted: Vec<f32> = (0..tokens)
                .flat_map(|t| {
                    let (p, c) = (before(t), &x[t * cols..][..cols]);
                    match interleaved {
                        0 => [p, c].concat(),
                        _ => p.iter().zip(c).flat_map(|(p, c)| [*p, *c]).collect(),
                    }
                })
                .collect();
            let pairs = Buffer::fresh(2 * tokens * cols);
            let q8 = Buffer::fresh(tokens * (2 * cols).div_ceil(256));
            let (x, last, rows) =
                (Buffer::of(&x), Buffer::of(&last), Buffer::of(bytemuck::cast_slice::<_, i32>(&rows)));
            let launch = launch::filter_pairs(cols, tokens);
            run(launch, &[&x, &last, &rows, &pairs, &q8, &256usize, &cols, &pitch, &interleaved, &tokens]);
            assert_same(pairs.get(), &wanted, "pairs");
            assert_blocks::<BlockQ8>(q8.get(), &quantized(&wanted, 2 * cols), "their blocks");
            let only = Buffer::fresh(tokens * (2 * cols).div_ceil(256));
            run(launch, &[&x, &last, &rows, &Null, &only, &32usize, &cols, &pitch, &interleaved, &tokens]);
            assert_blocks::<BlockQ8x8>(only.get(), &quantized(&wanted, 2 * cols), "the blocks alone");
        }
    }
}

/// Queries, and keys and values by head, as MODEL.md has them.
struct Heads {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

#[allow(clippy::too_many_arguments)]
fn heads(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    angles: &[f32],
    heads: usize,
    dim: usize,
    rot: usize,
    tokens: usize,
) -> Heads {
    let width = heads * dim;
    let mut all = Heads { queries: vec![], keys: vec![], values: v.to_vec() };
    for t in 0..tokens {
        let joined = [&q[t * width..][..width], &k[t * width..][..width]].concat();
        let slice = |i: usize| {
            let mut head = joined[i * dim..][..dim].to_vec();
            for j in 0..rot / 2 {
                let (a, b) = (head[j], head[j + rot / 2]);
                let (cos, sin) = (angles[(t * rot / 2 + j) * 2], angles[(t * rot / 2 + j) * 2 + 1]);
                (head[j], head[j + rot / 2]) = (a * cos - b * sin, b * cos + a * sin);
            }
            head
        };
        (0..heads).for_each(|h| {
            all.queries.extend(slice(2 * h));
            all.keys.extend(slice(2 * h + 1));
        });
    }
    all
}

/// In the last of two layers, and on both sides of a page's border.
#[test]
fn heads_are_split_rotated_and_stored() {
    let mut random = Random(26);
    let cases = [
        (4, 128, 64, &[(2, 3)][..]),
        (2, 256, 128, &[(0, 1)]),
        (3, 32, 32, &[(510, 5)]),
        (2, 32, 32, &[(1, 1), (511, 2), (0, 1)]),
    ];
    for (n, dim, rot, sequences) in cases {
        let rows = rows(sequences);
        let (width, tokens, layers, stride) = (n * dim, rows.len(), 2, 2);
        let [q, k, mut v] = [(); 3].map(|()| random.floats(tokens * width));
        // A block with the inverse scale 1, and ties.
        v[..6].copy_from_slice(&[127.0, 0.5, -0.5, 1.5, -2.5, 126.5]);
        let angles: Vec<f32> = (0..tokens * rot / 2)
            .flat_map(|_| {
                let a = 7.0 * random.float();
                [a.cos(), a.sin()]
            })
            .collect();
        let wanted = heads(&q, &k, &v, &angles, n, dim, rot, tokens);
        let device = [&q, &k, &v, &angles].map(|x| Buffer::of(x));
        let at = Buffer::of(bytemuck::cast_slice::<_, i32>(&rows));
        let page = 2 * layers * n * SPAN * dim;
        // Where the entries of a head of a row go: the page, and the place in it.
        let place = |t: usize, head: usize, values: usize| {
            let [position, sequence, ..] = rows[t].map(|n| n as usize);
            let piece = ((layers - 1) * 2 + values) * n + head;
            (sequence * stride + position / SPAN, (piece * SPAN + position % SPAN) * dim)
        };
        let pieces = |values: usize| {
            let of = if values == 0 { &wanted.keys } else { &wanted.values };
            of.chunks_exact(dim).enumerate().map(move |(i, head)| (i / n, i % n, values, head))
        };
        let layer = layers - 1;
        let launch_with = |dtype: DType, table: &[u64]| {
            let queries = Buffer::fresh(tokens * width);
            run(
                launch::heads(dtype, n, dim, tokens),
                &[
                    &device[0],
                    &device[1],
                    &device[2],
                    &device[3],
                    &queries,
                    &Buffer::of(table),
                    &at,
                    &layer,
                    &n,
                    &dim,
                    &rot,
                    &stride,
                ],
            );
            assert_same(queries.get(), &wanted.queries, "queries");
        };

        let pages: Vec<Buffer<f16>> = (0..sequences.len() * stride).map(|_| Buffer::zeroed(page)).collect();
        launch_with(DType::F16, &pages.iter().map(Buffer::address).collect::<Vec<_>>());
        let mut all = vec![vec![f16::ZERO; page]; pages.len()];
        for (t, head, values, from) in pieces(0).chain(pieces(1)) {
            let (page, at) = place(t, head, values);
            let to = &mut all[page][at..at + dim];
            to.iter_mut().zip(from).for_each(|(t, x)| *t = f16::from_f32(*x));
        }
        for (page, all) in pages.iter().zip(&all) {
            assert!(page.get() == all, "f16 pages");
        }

        let pages: Vec<Buffer<BlockQ8_0>> =
            (0..sequences.len() * stride).map(|_| Buffer::zeroed(page / 32)).collect();
        launch_with(DType::Q8_0, &pages.iter().map(Buffer::address).collect::<Vec<_>>());
        let mut all = vec![vec![BlockQ8_0::zeroed(); page / 32]; pages.len()];
        for (t, head, values, from) in pieces(0).chain(pieces(1)) {
            let (page, at) = place(t, head, values);
            (best_encoders().q8_0)(from, bytemuck::cast_slice_mut(&mut all[page][at / 32..(at + dim) / 32]));
        }
        for (page, all) in pages.iter().zip(&all) {
            assert!(page.get() == all, "q8_0 pages");
        }
    }
}

/// As src/model/router.rs.
fn softmax(x: &[f32]) -> Vec<f32> {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f32> = x.iter().map(|x| exp(x - max)).collect();
    let sum: f32 = e.iter().sum();
    e.into_iter().map(|e| e / sum).collect()
}

#[test]
fn routers_choose_as_the_cpu_does() {
    let mut random = Random(27);
    let cases = [(5, 32, 2, false), (2, 8, 8, false), (3, 200, 4, false), (1, 6, 3, true)];
    for ((tokens, experts, used, equal), linear) in cases.into_iter().flat_map(|case| [(case, 0), (case, 1)])
    {
        let width = if linear == 1 { experts } else { 3 * experts };
        let x: Vec<f32> = if equal {
            vec![0.25; tokens * width]
        } else {
            random.floats(tokens * width).iter().map(|x| 4.0 * x).collect()
        };
        for normalize in [0, 1] {
            let logits = Buffer::fresh(tokens * experts);
            let (chosen, weights) =
                (Buffer::<i32>::fresh(tokens * used), Buffer::<f32>::fresh(tokens * used));
            run(
                launch::route(experts, used, tokens),
                &[&Buffer::of(&x), &logits, &chosen, &weights, &experts, &used, &normalize, &linear],
            );
            for (t, row) in x.chunks_exact(width).enumerate() {
                let (q, others) = row.split_at(experts);
                let (k, v) = others.split_at(others.len() / 2);
                let attend = |q: &f32| {
                    let p = softmax(&k.iter().map(|k| q * k).collect::<Vec<_>>());
                    p.iter().zip(v).map(|(p, v)| p * v).sum::<f32>()
                };
                let wanted = if linear == 1 { q.to_vec() } else { q.iter().map(attend).collect() };
                assert_same(&logits.get()[t * experts..][..experts], &wanted, "logits");
                let mut order: Vec<_> = softmax(&wanted).into_iter().enumerate().collect();
                order.sort_by(|(i, a), (j, b)| b.total_cmp(a).then(i.cmp(j)));
                order.truncate(used);
                let sum: f32 = order.iter().map(|(_, p)| p).sum();
                let p: Vec<f32> =
                    order.iter().map(|(_, p)| if normalize == 1 { p / sum } else { *p }).collect();
                let numbers: Vec<i32> = order.iter().map(|(e, _)| *e as i32).collect();
                assert_eq!(&chosen.get()[t * used..][..used], numbers);
                assert_same(&weights.get()[t * used..][..used], &p, "weights");
            }
        }
    }
    assert_eq!(launch::route(300, 2, 1), None);
    assert_eq!(launch::route(8, 9, 1), None);
}

#[test]
fn the_largest_are_found_chunk_by_chunk() {
    let mut random = Random(28);
    for (n, k) in [(1usize, 1), (5, 7), (4096, 3), (9001, 40)] {
        // Few different values: equals are many.
        let values: Vec<f32> = (0..n).map(|_| (random.below(50) as f32) - 25.0).collect();
        let chunks = n.div_ceil(launch::TOP_CHUNK);
        let (best, ids) = (Buffer::<f32>::fresh(chunks * k), Buffer::<i32>::fresh(chunks * k));
        run(launch::top_k(n, k), &[&Buffer::of(&values), &Null, &best, &ids, &n, &k]);
        let (all_best, all_ids) = (Buffer::<f32>::fresh(k), Buffer::<i32>::fresh(k));
        let left = chunks * k;
        assert!(left <= launch::TOP_CHUNK);
        run(launch::top_k(left, k), &[&best, &ids, &all_best, &all_ids, &left, &k]);
        let mut order: Vec<(i32, f32)> = values.iter().enumerate().map(|(i, v)| (i as i32, *v)).collect();
        order.sort_by(|(i, a), (j, b)| b.total_cmp(a).then(i.cmp(j)));
        order.resize(k.max(n), (-1, f32::NEG_INFINITY));
        assert_same(all_best.get(), &order[..k].iter().map(|o| o.1).collect::<Vec<_>>(), "values");
        assert_eq!(all_ids.get(), order[..k].iter().map(|o| o.0).collect::<Vec<_>>());
    }
}
