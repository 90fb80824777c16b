//! The structure that the format hangs on: panels of 16 rows against rows as GGUF files have them, for 1 to 32 tokens, weights
//! in the L2 cache and out of every cache, on one core.
//!
//! `cargo bench -p yuan-kernels --bench tile -- --quick`; SPEED.md has the table.

#[cfg(target_arch = "x86_64")]
mod orders;

use std::hint::black_box;

use bytemuck::{Pod, cast_slice_mut};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use yuan_kernels::{
    BlockQ3K, BlockQ4_0, BlockQ4K, BlockQ6K, BlockQ8, BlockQ8_0, BlockQ8x8, PanelQ3K, PanelQ4_0, PanelQ4K,
    PanelQ6K, PanelQ8_0, available,
    panel::Panel,
    tile::{tile_panels, tile_pass},
};

const COLUMNS: usize = 2048;
const TOKENS: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Groups of 16 rows of 2048 weights: half a megabyte at 4.5 bits, and 300 MB.
const PLACES: [(&str, usize); 2] = [("L2", 28), ("memory", 16_384)];

/// `n` of anything with all bytes 0x2d: scales are then ordinary numbers.
fn filled<T: Pod>(n: usize) -> Vec<T> {
    let mut items = vec![T::zeroed(); n];
    cast_slice_mut::<T, u8>(&mut items).fill(0x2d);
    items
}

/// One group of 16 rows after another, in a circle: what is `n` groups long stays in its cache, or in none.
fn groups<W: Pod, X: Pod>(
    c: &mut Criterion,
    name: &str,
    kernels: &str,
    tokens: &[usize],
    blocks_of_16_rows: usize,
    mut product: impl FnMut(&[W], &[X], &mut [[f32; 16]]),
) {
    for (place, n) in PLACES {
        let weights = filled::<W>(n * blocks_of_16_rows);
        for &tokens in tokens {
            // Out of cache only a few tokens are bound by memory; the rest says nothing that L2 does not.
            if place == "memory" && tokens > 4 {
                continue;
            }
            let x = filled::<X>(tokens * COLUMNS / 256);
            let mut acc = vec![[0.0; 16]; tokens];
            let mut group = c.benchmark_group(format!("{name}/{place}"));
            group.throughput(Throughput::Bytes(size_of_val(&weights[..blocks_of_16_rows]) as u64));
            let mut at = 0;
            group.bench_function(BenchmarkId::new(kernels, tokens), |b| {
                b.iter(|| {
                    product(&weights[at * blocks_of_16_rows..][..blocks_of_16_rows], black_box(&x), &mut acc);
                    at = (at + 1) % n;
                });
            });
            group.finish();
        }
    }
}

/// 16 rows of standard blocks, row after row.
fn rows<W: Pod, X: Pod>(dot: fn(&[W], &[X]) -> f32) -> impl FnMut(&[W], &[X], &mut [[f32; 16]]) {
    move |w, x, acc| {
        for (r, row) in w.chunks_exact(w.len() / 16).enumerate() {
            for (x, acc) in x.chunks_exact(COLUMNS / 256).zip(&mut *acc) {
                acc[r] += dot(row, x);
            }
        }
    }
}

/// Orders of nibbles, T tokens at a time.
#[cfg(target_arch = "x86_64")]
fn orders<const T: usize>(c: &mut Criterion) {
    for (name, product) in orders::orders::<T>() {
        groups::<orders::Weights, BlockQ8>(
            c,
            &format!("order/{name}"),
            "avx512",
            &[T],
            COLUMNS / 256,
            |w, x, acc| {
                let mut rows = [x; T];
                rows.iter_mut().zip(x.chunks_exact(x.len() / T)).for_each(|(row, x)| *row = x);
                let mut sums = [[0; 16]; T];
                product(w, rows, &mut sums);
                acc.iter_mut().zip(sums).for_each(|(acc, sums)| *acc = sums.map(|s| s as f32));
            },
        );
    }
}

fn bench(c: &mut Criterion) {
    #[cfg(target_arch = "x86_64")]
    {
        orders::<1>(c);
        orders::<4>(c);
        orders::<8>(c);
    }
    for k in available().filter(|k| k.name != "scalar") {
        let panels = COLUMNS / 256;
        groups::<PanelQ4K, BlockQ8>(c, "q4_k panels", k.name, &TOKENS, panels, |p, x, acc| {
            Panel::product(k, p, x, acc)
        });
        groups::<BlockQ4K, BlockQ8>(c, "q4_k rows", k.name, &TOKENS, 16 * COLUMNS / 256, rows(k.dot_q4_k));
        groups::<PanelQ4_0, BlockQ8>(c, "q4_0 panels", k.name, &TOKENS, panels, |p, x, acc| {
            Panel::product(k, p, x, acc)
        });
        groups::<BlockQ4_0, BlockQ8>(c, "q4_0 rows", k.name, &TOKENS, 16 * COLUMNS / 32, rows(k.dot_q4_0));
        groups::<PanelQ8_0, BlockQ8x8>(c, "q8_0 panels", k.name, &TOKENS, panels, |p, x, acc| {
            Panel::product(k, p, x, acc)
        });
        groups::<BlockQ8_0, BlockQ8x8>(c, "q8_0 rows", k.name, &TOKENS, 16 * COLUMNS / 32, rows(k.dot_q8_0));
        groups::<PanelQ3K, BlockQ8>(c, "q3_k panels", k.name, &TOKENS, panels, |p, x, acc| {
            Panel::product(k, p, x, acc)
        });
        groups::<BlockQ3K, BlockQ8>(c, "q3_k rows", k.name, &TOKENS, 16 * COLUMNS / 256, rows(k.dot_q3_k));
        groups::<PanelQ6K, BlockQ8>(c, "q6_k panels", k.name, &TOKENS, panels, |p, x, acc| {
            Panel::product(k, p, x, acc)
        });
        groups::<BlockQ6K, BlockQ8>(c, "q6_k rows", k.name, &TOKENS, 16 * COLUMNS / 256, rows(k.dot_q6_k));

        for (place, tiles) in [("L2", 1), ("memory", 320)] {
            let weights = filled::<PanelQ4K>(tiles * tile_panels(COLUMNS));
            for tokens in TOKENS {
                let x = filled::<BlockQ8>(tokens * COLUMNS / 256);
                let mut y = vec![[0.0; 16]; tokens * COLUMNS / 16];
                let mut group = c.benchmark_group(format!("q4_k tile pass/{place}"));
                group.throughput(Throughput::Bytes(size_of_val(&weights[..tile_panels(COLUMNS)]) as u64));
                let mut at = 0;
                group.bench_function(BenchmarkId::new(k.name, tokens), |b| {
                    b.iter(|| {
                        let tile = &weights[at * tile_panels(COLUMNS)..][..tile_panels(COLUMNS)];
                        tile_pass(k, tile, COLUMNS, black_box(&x), &mut y);
                        at = (at + 1) % tiles;
                    });
                });
                group.finish();
            }
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
