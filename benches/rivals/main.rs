//! Matrix products and layers of experts as the model computes them, beside ggml at its best.
//!
//! `cargo bench --features ggml --bench rivals -- q4_k/16384x2048`; for a table of all, `examples/rivals.rs`.

mod sides;

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sides::{Layer, Matrices, SHAPES, Side, TYPES, Threads, batches};
use yuan_kernels::DType;

const THREADS: [usize; 2] = [1, 2];

/// Weights are made for groups that the command line asks for only: there are gigabytes of them.
fn wanted(group: &str) -> bool {
    let mut filters = std::env::args().skip(1).filter(|a| !a.starts_with('-')).peekable();
    filters.peek().is_none() || filters.any(|f| group.contains(&f) || f.contains(group))
}

fn run(c: &mut Criterion, group: &str, id: &str, throughput: Throughput, sides: Vec<Side<'_>>) {
    let mut group = c.benchmark_group(group);
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group.throughput(throughput);
    for mut side in sides {
        group.bench_function(BenchmarkId::new(side.name, id), |b| b.iter(|| (side.run)()));
    }
    group.finish();
}

fn products(c: &mut Criterion) {
    for dtype in TYPES {
        for (rows, cols) in SHAPES {
            let group = format!("{}/{rows}x{cols}", dtype.name());
            if !wanted(&group) {
                continue;
            }
            let matrices = Matrices::new(dtype, rows, cols);
            for threads in THREADS {
                let pools = Threads::new(threads);
                for tokens in batches(rows) {
                    let n = matrices.products(tokens);
                    let throughput = match tokens {
                        1 => Throughput::Bytes((n * matrices.bytes()) as u64),
                        _ => Throughput::Elements((n * matrices.operations(tokens)) as u64),
                    };
                    let id = format!("{tokens} tokens, {threads} threads");
                    run(c, &group, &id, throughput, matrices.sides(&pools, tokens));
                    pools.ggml.rest();
                }
            }
        }
    }
}

fn experts(c: &mut Criterion) {
    for dtype in [DType::Q4_K, DType::Q4_0] {
        let group = format!("{}/experts", dtype.name());
        if !wanted(&group) {
            continue;
        }
        let layer = Layer::new(dtype);
        for threads in THREADS {
            let pools = Threads::new(threads);
            for tokens in [1, 32, 512] {
                let n = layer.passes(tokens);
                let throughput = match tokens {
                    1 => Throughput::Bytes((n * layer.bytes(tokens)) as u64),
                    _ => Throughput::Elements((n * layer.operations(tokens)) as u64),
                };
                let id = format!("{tokens} tokens, {threads} threads");
                run(c, &group, &id, throughput, layer.sides(&pools, tokens));
                pools.ggml.rest();
            }
        }
    }
}

criterion_group!(benches, products, experts);
criterion_main!(benches);
