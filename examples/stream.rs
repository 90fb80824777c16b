//! How fast decoding streams experts through the cores, beside how fast the same threads read the same memory: one token
//! after another passes two experts of the published geometry, of a layer larger than every cache.
//!
//! `cargo run --release --example stream [-- RUNS]`: a run reads the layer and then computes with it; the figures are medians.

use std::{hint::black_box, iter::repeat_n, time::Instant};

use yuan::{
    container::TileLayout,
    model::bench::{Bench, Layer},
    quantize::DType,
};
use yuan_kernels::{available, encode::best_encoders};

const HIDDEN: usize = 2048;
const FFN: usize = 8192;
/// 1.1 GB.
const EXPERTS: usize = 40;

fn main() {
    let runs = std::env::args().nth(1).map_or(9, |n| n.parse().expect("a number of runs"));
    let pages = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    println!("huge pages: {}", if pages.is_empty() { "unknown" } else { pages.trim() });
    println!("{:6} {:12} {:>7}  {:>9} {:>9}  {:>6}", "", "GB/s", "threads", "read", "experts", "share");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for dtype in [DType::Q4_K, DType::Q4_0] {
        let layer = layer(dtype);
        for kernels in available().filter(|kernels| kernels.name != "scalar") {
            for threads in [1, cores] {
                let bench = Bench::with_kernels(threads, kernels).expect("threads");
                let [read, experts, share] = measure(&bench, &layer, runs);
                println!(
                    "{:6} {:12} {threads:7}  {read:9.1} {experts:9.1}  {:5.0} %",
                    dtype.name(),
                    kernels.name,
                    100.0 * share
                );
            }
        }
    }
}

/// Bytes a second, in GB, of reading and of computing, and the share that the second is of the first.
fn measure(bench: &Bench, layer: &Layer, runs: usize) -> [f64; 3] {
    let x: Vec<f32> = (0..HIDDEN).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect();
    // Two experts a token, in an order without a pattern.
    let token = |t: usize| vec![[2 * t, 2 * t + 1].map(|i| (i * 7 % EXPERTS, 0.5)).to_vec()];
    let tokens: Vec<_> = (0..EXPERTS / 2).map(token).collect();
    let pass = || {
        bench.run(|| {
            for chosen in &tokens {
                black_box(bench.experts(layer, &x, chosen).expect("an output"));
            }
        });
    };
    let speed = |work: &dyn Fn()| {
        let start = Instant::now();
        work();
        layer.len_bytes() as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    let read = || {
        black_box(bench.read(layer));
    };
    pass();
    let pairs: Vec<[f64; 2]> = (0..runs.max(1)).map(|_| [speed(&read), speed(&pass)]).collect();
    let median = |of: &dyn Fn(&[f64; 2]) -> f64| {
        let mut values: Vec<f64> = pairs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    [median(&|p| p[0]), median(&|p| p[1]), median(&|p| p[1] / p[0])]
}

/// A layer whose experts have the same weights, each in memory of its own.
fn layer(dtype: DType) -> Layer {
    let encode = match dtype {
        DType::Q4_0 => best_encoders().q4_0,
        _ => best_encoders().q4_k,
    };
    // A few rows of random weights over and over.
    let matrix = |rows: usize, cols: usize| {
        let noise = |i: usize| ((i * 2_654_435_761) >> 8 & 0xffff) as f32 / 65536.0 - 0.5;
        let weights: Vec<f32> = (0..32 * cols).map(|i| noise(i) / 16.0).collect();
        let mut bytes = vec![0; dtype.row_bytes(weights.len()).expect("whole blocks")];
        encode(&weights, &mut bytes);
        bytes.repeat(rows / 32)
    };
    let layout = TileLayout::new(HIDDEN, FFN, dtype).expect("tiles");
    let blob = layout.pack(&matrix(2 * FFN, HIDDEN), &matrix(HIDDEN, FFN));
    Layer::new(layout, &repeat_n(blob, EXPERTS).collect::<Vec<_>>()).expect("a layer")
}
