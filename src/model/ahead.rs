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
const ROUNDS: usize = 7;
/// Parts of the memory. A trial reads one, which the trials before it have driven out of the caches.
const PARTS: usize = 8;
/// Bytes of memory that are read: twice the largest cache, within these bounds.
const MEMORY: [usize; 2] = [64 << 20, 256 << 20];
/// Models that read less for a token find it in the caches.
const SMALLEST: usize = 32 << 20;
/// A distance counts as better than the usual one when it is so much faster.
const WORTH: f64 = 1.02;

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
    let best = choose(&speeds, kernels.ahead);
    let shown: Vec<_> = speeds.iter().map(|(ahead, speed)| format!("{ahead}: {speed:.1}")).collect();
    tracing::debug!(
        "weights are asked for {best} bytes ahead, found in {:.0} ms (GB/s by bytes: {})",
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
    let circumstances = format!("{}\n{}, {threads} threads", cpu(), kernels.name);
    [format!("prefetch-{}-{threads}", kernels.name), circumstances]
}

/// The fastest distance of those with their speeds, or the `usual` one where that is hardly slower.
fn choose(speeds: &[(usize, f64)], usual: usize) -> usize {
    let of = |ahead| speeds.iter().find(|s| s.0 == ahead).map_or(0.0, |s| s.1);
    let best = speeds.iter().fold((usual, of(usual)), |best, &now| if now.1 > best.1 { now } else { best });
    if best.1 > of(usual) * WORTH { best.0 } else { usual }
}

/// The speed of one token's products at each distance in GB a second, medians.
fn measure(kernels: &Kernels, threads: &Threads, bytes: usize) -> Vec<(usize, f64)> {
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
        let mut speeds = DISTANCES.map(|ahead| (ahead, Vec::new()));
        for (i, rows) in (0..ROUNDS * DISTANCES.len()).zip(rows.chunks_exact(part).cycle()) {
            let (ahead, speeds) = &mut speeds[i % DISTANCES.len()];
            speeds.push(trial(rows, *ahead));
        }
        let medians = speeds.into_iter().map(|(ahead, mut speeds)| {
            speeds.sort_by(f64::total_cmp);
            (ahead, speeds[ROUNDS / 2])
        });
        medians.collect()
    })
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
    fn the_usual_distance_stays_unless_another_is_worth_it() {
        let usual = 2 * PANEL_BYTES;
        let speeds = |of: [f64; 3]| [(0, of[0]), (usual, of[1]), (3 * PANEL_BYTES, of[2])];
        assert_eq!(choose(&speeds([10.0, 20.0, 20.3]), usual), usual);
        assert_eq!(choose(&speeds([10.0, 20.0, 21.0]), usual), 3 * PANEL_BYTES);
        assert_eq!(choose(&speeds([22.0, 20.0, 21.0]), usual), 0);
        assert_eq!(choose(&speeds([f64::NAN, 20.0, f64::NAN]), usual), usual);
    }

    #[test]
    fn every_distance_is_measured() {
        let threads = Threads::new(3, 0).unwrap();
        for kernels in yuan_kernels::available() {
            let speeds = measure(kernels, &threads, 1 << 20);
            assert_eq!(speeds.len(), DISTANCES.len());
            assert!(speeds.iter().all(|(_, speed)| speed.is_finite() && *speed > 0.0), "{speeds:?}");
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
