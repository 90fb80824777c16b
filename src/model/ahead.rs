//! How far ahead one token asks memory for weights. Which distance is fastest differs from one CPU to the next, so it is measured
//! when a model is opened, and kept for the next time. No bit of a result depends on it.

use std::{env, fs, hint::black_box, time::Instant};

use bytemuck::Zeroable;
use rayon::prelude::*;
use yuan_kernels::{BlockQ8, Kernels, PanelQ4K, panel::PANEL_BYTES};

use super::threads::Threads;
use crate::{
    error::{Error, Result},
    machine::{
        facts::cpu_field,
        remembered::{keep, recall},
    },
};

/// Bytes that `YUAN_PREFETCH` may say: what is farther than a core's own cache is lost before it is used.
const FARTHEST: usize = 1 << 20;

/// Distances in bytes that are tried: nothing, half a panel, and up to six of them.
const DISTANCES: [usize; 7] =
    [0, PANEL_BYTES / 2, PANEL_BYTES, 2 * PANEL_BYTES, 3 * PANEL_BYTES, 4 * PANEL_BYTES, 6 * PANEL_BYTES];
/// Panels of a row, as a hidden size of 2048 has.
const WIDTH: usize = 8;
/// How often each distance is tried.
const ROUNDS: usize = 11;
/// Parts of the memory. A trial reads one, which the trials before it have driven out of the caches.
const PARTS: usize = 8;
/// Bytes of memory that are read: twice the largest cache, within these bounds.
const MEMORY: [usize; 2] = [64 << 20, 256 << 20];
/// Models that read less for a token find it in the caches.
const SMALLEST: usize = 32 << 20;
/// Weights are asked for ahead only where that is so much faster. Where it is worth anything it is worth more (1.17 to 3 times on a Zen 5), and what a trial of some milliseconds finds in a
/// whole model may be less: on a Zen 4 distances that were 2 to 8 % faster in one trial and slower in the next made one token a fifth slower.
const WORTH: f64 = 1.1;

/// The distance that the environment variable `YUAN_PREFETCH` names.
///
/// # Errors
/// [`Error::Argument`] where that is none.
pub fn named() -> Result<Option<usize>> {
    let Ok(bytes) = env::var("YUAN_PREFETCH") else { return Ok(None) };
    let known = bytes.parse().ok().filter(|&bytes| bytes <= FARTHEST);
    known.map(Some).ok_or_else(|| {
        Error::Argument(format!(
            "YUAN_PREFETCH={bytes} is no distance; give bytes from 0 (ask for nothing ahead) to {FARTHEST}"
        ))
    })
}

/// The distance for a model that reads so many bytes a token, in these threads: as it is [`named`], or was found before, or by trial, which takes some
/// hundredths of a second and `memory` bytes at most.
pub fn best(kernels: &Kernels, threads: &Threads, bytes_per_token: usize, memory: u64) -> usize {
    if let Ok(Some(named)) = named() {
        return named;
    }
    // Kernels without a distance have none to choose.
    if kernels.ahead == 0 || bytes_per_token < SMALLEST {
        return kernels.ahead;
    }
    if let Some(before) = measured(kernels, threads.count()) {
        return before;
    }
    let wanted = (2 * largest_cache()).clamp(MEMORY[0], MEMORY[1]);
    if memory < wanted as u64 {
        return kernels.ahead;
    }
    let start = Instant::now();
    let speeds = measure(kernels, threads, wanted);
    let best = choose(&speeds);
    let shown: Vec<_> = speeds
        .iter()
        .map(|tried| format!("{}: {:.1}, {:.2}", tried.ahead, tried.speed, tried.gain))
        .collect();
    tracing::debug!(
        "weights are asked for {best} bytes ahead, found in {:.0} ms (bytes: GB/s, and how many times that without: {})",
        start.elapsed().as_secs_f64() * 1e3,
        shown.join(", ")
    );
    let [name, circumstances] = place(kernels, threads.count());
    keep(&name, &circumstances, &best.to_string());
    best
}

/// The distance that was found on this machine before, for so many threads.
pub fn measured(kernels: &Kernels, threads: usize) -> Option<usize> {
    let [name, circumstances] = place(kernels, threads);
    let ahead = recall(&name, &circumstances)?.parse().ok()?;
    DISTANCES.contains(&ahead).then_some(ahead)
}

/// Under which name the distance is kept, and for which circumstances.
fn place(kernels: &Kernels, threads: usize) -> [String; 2] {
    // Those that were kept before were chosen otherwise.
    let circumstances = format!("{}\n{}, {threads} threads, against none", cpu(), kernels.name);
    [format!("prefetch-{}-{threads}", kernels.name), circumstances]
}

/// What a trial has found for a distance.
#[derive(Clone, Copy, Debug)]
struct Tried {
    ahead: usize,
    /// GB a second, the median.
    speed: f64,
    /// How many times as fast as asking for nothing ahead a moment before or behind, the median.
    gain: f64,
}

/// The distance that gains the most, or none where that is little.
fn choose(tried: &[Tried]) -> usize {
    let worth = tried.iter().filter(|tried| tried.gain > WORTH);
    worth.max_by(|a, b| a.gain.total_cmp(&b.gain)).map_or(0, |best| best.ahead)
}

/// The speed of one token's products at each distance.
fn measure(kernels: &Kernels, threads: &Threads, bytes: usize) -> Vec<Tried> {
    let row = WIDTH * PANEL_BYTES;
    let part = bytes / PARTS / row;
    let x = [BlockQ8::zeroed(); WIDTH];
    threads.run(|| {
        // Written by the threads, since memory that nobody has written is one page of zeros.
        let rows: Vec<[PanelQ4K; WIDTH]> =
            (0..PARTS * part).into_par_iter().map(|_| bytemuck::cast([1_u8; WIDTH * PANEL_BYTES])).collect();
        let share = part.div_ceil(threads.count());
        let trial = |rows: &[[PanelQ4K; WIDTH]], ahead: usize| {
            let start = Instant::now();
            rows.par_chunks(share).for_each(|rows| {
                let mut acc = [[0.0; 16]];
                rows.iter().for_each(|row| (kernels.panels_q4_k)(row, &x, &mut acc, ahead));
                black_box(acc);
            });
            size_of_val(rows) as f64 / start.elapsed().as_secs_f64() / 1e9
        };
        // By round, since memory is faster in one moment than in the next.
        let mut parts = rows.chunks_exact(part).cycle();
        let mut speed = |ahead: usize| parts.next().map_or(0.0, |rows| trial(rows, ahead));
        let rounds: Vec<_> = (0..ROUNDS).map(|_| DISTANCES.map(&mut speed)).collect();
        let found = DISTANCES.iter().enumerate().map(|(i, &ahead)| Tried {
            ahead,
            speed: median(rounds.iter().map(|round| round[i])),
            gain: median(rounds.iter().map(|round| round[i] / round[0])),
        });
        found.collect()
    })
}

fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(0.0)
}

/// Bytes of the largest cache of this CPU; 0 where the system does not say.
fn largest_cache() -> usize {
    let size = |index: usize| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let text = fs::read_to_string(path).ok()?;
        text.trim().strip_suffix('K')?.parse::<usize>().ok()?.checked_mul(1024)
    };
    (0..8).filter_map(size).max().unwrap_or(0)
}

/// What tells this CPU from others, in one line.
fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    ["model name", "cpu family", "model", "stepping"].map(|name| cpu_field(&text, name)).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_for_ahead_unless_that_is_worth_it() {
        let chosen = |gains: [f64; 3]| {
            let tried = gains.iter().zip(DISTANCES);
            choose(&tried.map(|(&gain, ahead)| Tried { ahead, speed: 20.0, gain }).collect::<Vec<_>>())
        };
        assert_eq!(chosen([1.0, 1.08, 1.05]), 0);
        assert_eq!(chosen([1.0, 1.2, 1.5]), DISTANCES[2]);
        assert_eq!(chosen([1.0, 1.2, 0.9]), DISTANCES[1]);
        assert_eq!(chosen([1.0, f64::NAN, 0.9]), 0);
    }

    #[test]
    fn every_distance_is_measured() {
        let threads = Threads::new(3, 0).unwrap();
        for kernels in yuan_kernels::available() {
            let speeds = measure(kernels, &threads, 1 << 20);
            assert_eq!(speeds.len(), DISTANCES.len());
            assert!(
                speeds.iter().all(|s| s.speed.is_finite() && s.speed > 0.0 && s.gain > 0.0),
                "{speeds:?}"
            );
            assert_eq!(speeds[0].gain, 1.0);
        }
    }

    #[test]
    fn small_models_and_kernels_without_a_distance_are_not_measured() {
        let threads = Threads::new(1, 0).unwrap();
        let best_kernels = yuan_kernels::best();
        assert_eq!(best(best_kernels, &threads, SMALLEST - 1, u64::MAX), best_kernels.ahead);
        let scalar = yuan_kernels::by_name("scalar").unwrap();
        assert_eq!(best(scalar, &threads, usize::MAX, u64::MAX), 0);
    }
}
