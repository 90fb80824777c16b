//! How fast a drive delivers.

use std::{
    io,
    sync::atomic::{
        AtomicBool, AtomicU64, AtomicUsize,
        Ordering::{Relaxed, SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use memmap2::MmapMut;

use super::source::Source;

/// GB a second at which blobs arrive that begin at `offsets`, each of which is so many `pieces` of so many bytes: read piece by piece by
/// `threads`, blob after blob in an order that no read-ahead foresees, for about `time`.
///
/// # Errors
/// The system's.
pub fn speed(
    source: &dyn Source,
    offsets: &[u64],
    [pieces, length]: [usize; 2],
    threads: usize,
    time: Duration,
) -> io::Result<f64> {
    // A step that shares no divisor with the number of blobs visits all of them.
    let step = (offsets.len() / 3..).find(|s| gcd(*s, offsets.len()) == 1).unwrap_or(1);
    let (next, bytes, failed) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let start = Instant::now();
    let read = || -> io::Result<()> {
        let mut piece = MmapMut::map_anon(length)?;
        while start.elapsed() < time && !failed.load(Relaxed) {
            let i = next.fetch_add(1, SeqCst);
            let at = offsets[i / pieces * step % offsets.len()] + (i % pieces * length) as u64;
            let n = source.read_at(&mut piece, at).inspect_err(|_| failed.store(true, Relaxed))?;
            bytes.fetch_add(n as u64, Relaxed);
        }
        Ok(())
    };
    let done: io::Result<Vec<()>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(read)).collect();
        threads.into_iter().map(|t| t.join().unwrap_or(Ok(()))).collect()
    });
    done?;
    Ok(bytes.load(Relaxed) as f64 / 1e9 / start.elapsed().as_secs_f64())
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
