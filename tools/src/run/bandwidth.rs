//! How fast memory is read.

use std::{
    hint::black_box,
    thread::Builder,
    time::{Duration, Instant},
};

use anyhow::Context;
use yuan::model::bench::read;
use yuan_tools::console::size;

/// Passes over the memory.
const PASSES: usize = 9;

/// GB/s at which `threads` threads read memory that no cache holds, taking at most `most` bytes for it: the median of nine passes, since the best
/// of a few is often one that a virtual machine's neighbours were silent for.
///
/// # Errors
/// The system gives no such memory, or no threads.
pub fn read_bandwidth(threads: usize, most: u64) -> anyhow::Result<f64> {
    let bytes =
        (threads.saturating_mul(256 << 20)).min(1 << 30).min(usize::try_from(most).unwrap_or(usize::MAX));
    let words = (bytes / 8 / threads).max(1);
    let mut data = Vec::new();
    let refused =
        || format!("the system refuses {} to measure the memory with", size((words * threads * 8) as u64));
    data.try_reserve_exact(words * threads).with_context(refused)?;
    data.resize(words * threads, 1_u64);
    let pass = || -> anyhow::Result<Duration> {
        let start = Instant::now();
        std::thread::scope(|scope| {
            data.chunks(words).try_for_each(|part| {
                let started = Builder::new().spawn_scoped(scope, move || black_box(read(part)));
                started.map(drop).with_context(|| format!("cannot start {threads} threads"))
            })
        })?;
        Ok(start.elapsed())
    };
    let mut times = (0..PASSES).map(|_| pass()).collect::<anyhow::Result<Vec<_>>>()?;
    times.sort();
    Ok((data.len() * 8) as f64 / times[PASSES / 2].as_secs_f64().max(1e-9) / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_takes_no_more_than_it_may() {
        assert!(read_bandwidth(3, 1 << 20).unwrap() > 0.0);
        assert!(read_bandwidth(2, 0).unwrap() > 0.0);
    }
}
