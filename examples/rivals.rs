//! A table of the model's products and layers of experts against ggml at its best, in a few minutes.
//!
//! `cargo run --release --features ggml --example rivals [-- WORD ...]`: rows whose label has all the words, as in
//! `q4_k experts` or `2048x4096 1t`.

#[path = "../benches/rivals/sides.rs"]
mod sides;

use std::time::{Duration, Instant};

use sides::{Layer, Matrices, SHAPES, Side, TYPES, Threads, batches};
use yuan_kernels::DType;

/// Runs of every side, alternating, and the time after which two are enough.
const RUNS: usize = 5;
const ENOUGH: Duration = Duration::from_millis(500);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |label: &str| words.iter().all(|word| label.contains(word.as_str()));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let pools: Vec<(usize, Threads)> = [1, cores].map(|n| (n, Threads::new(n))).into();
    // One token is bound by memory, where one thread may do as well as all; batches are for all threads.
    let counts = |tokens: usize| pools.iter().filter(move |(n, _)| tokens == 1 || *n == cores);

    println!(
        "yuan ({}), ggml {}; ratio: ggml's better time over ours",
        pools[0].1.ours.kernels(),
        yuan_ggml::version()
    );
    println!("{:38} {:>9} {:>9} {:>9}  {:>6}  speed of ours", "ms", "yuan", "plain", "repacked", "ratio");
    for dtype in TYPES {
        for (rows, cols) in SHAPES {
            let label =
                |t: usize, threads: usize| format!("{} {rows}x{cols} {t} tokens {threads}t", dtype.name());
            let cases: Vec<_> = batches(rows)
                .flat_map(|t| counts(t).map(move |(n, pools)| (t, *n, pools)))
                .filter(|&(t, n, _)| wanted(&label(t, n)))
                .collect();
            if cases.is_empty() {
                continue;
            }
            let matrices = Matrices::new(dtype, rows, cols);
            for (t, n, pools) in cases {
                let each = matrices.products(t) as f64;
                let sides = matrices.sides(pools, t);
                row(&label(t, n), pools, sides, each, t, matrices.bytes(), matrices.operations(t));
            }
        }
    }
    for dtype in [DType::Q4_K, DType::Q4_0] {
        let label = |t: usize, threads: usize| format!("{} experts {t} tokens {threads}t", dtype.name());
        let cases: Vec<_> = [1, 32, 512]
            .into_iter()
            .flat_map(|t| counts(t).map(move |(n, pools)| (t, *n, pools)))
            .filter(|&(t, n, _)| wanted(&label(t, n)))
            .collect();
        if cases.is_empty() {
            continue;
        }
        let layer = Layer::new(dtype);
        for (t, n, pools) in cases {
            let each = layer.passes(t) as f64;
            row(&label(t, n), pools, layer.sides(pools, t), each, t, layer.bytes(t), layer.operations(t));
        }
    }
}

/// Measures the sides in turn and prints the best time of each, for one of the `each` products of a run.
fn row(
    label: &str,
    pools: &Threads,
    mut sides: Vec<Side<'_>>,
    each: f64,
    tokens: usize,
    bytes: usize,
    operations: usize,
) {
    let mut best = vec![f64::INFINITY; sides.len()];
    let start = Instant::now();
    // The first run of each warms up and does not count.
    for run in 0..=RUNS {
        for (side, best) in sides.iter_mut().zip(&mut best) {
            let start = Instant::now();
            (side.run)();
            let time = start.elapsed().as_secs_f64() / each;
            pools.ggml.rest();
            if run > 0 {
                *best = best.min(time);
            }
        }
        if run >= 2 && start.elapsed() > ENOUGH {
            break;
        }
    }
    let time =
        |name: &str| sides.iter().zip(&best).find(|(side, _)| side.name == name).map(|(_, &time)| time);
    let ms = |name: &str| time(name).map_or("-".to_owned(), |time| format!("{:.3}", time * 1e3));
    let ratio = best[1..].iter().copied().fold(f64::INFINITY, f64::min) / best[0];
    let speed = match tokens {
        1 => format!("{:.1} GB/s", bytes as f64 / best[0] / 1e9),
        _ => format!("{:.0} GOP/s", operations as f64 / best[0] / 1e9),
    };
    println!(
        "{label:38} {:>9} {:>9} {:>9}  {ratio:>6.2}  {speed}",
        ms("yuan"),
        ms("ggml plain"),
        ms("ggml repacked")
    );
}
