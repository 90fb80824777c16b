//! Speed of the encoders on one core, for each instruction set of this machine, in weights a second.
//!
//! `cargo bench -p yuan-kernels --bench encode -- --quick`

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use yuan_kernels::DType;
use yuan_kernels::encode::encoders;

fn bench(c: &mut Criterion) {
    // Rows of 2048 weights with roughly normal numbers; the searches take the same time for all.
    let weights: Vec<f32> = (0..16 * 2048_u32)
        .map(|i| {
            (0..4).map(|k| ((i * 4 + k).wrapping_mul(0x9E37_79B1) >> 16) as f32).sum::<f32>() / 65536.0 - 2.0
        })
        .collect();
    for e in encoders() {
        for (dtype, encode) in [
            (DType::Q4_0, e.q4_0),
            (DType::Q8_0, e.q8_0),
            (DType::Q3_K, e.q3_k),
            (DType::Q4_K, e.q4_k),
            (DType::Q6_K, e.q6_k),
        ] {
            let mut out = vec![0; dtype.row_bytes(weights.len()).expect("whole blocks")];
            let mut group = c.benchmark_group(format!("encode_{}", dtype.name()));
            group.throughput(Throughput::Elements(weights.len() as u64));
            group.bench_function(e.name, |b| b.iter(|| encode(black_box(&weights), &mut out)));
            group.finish();
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
