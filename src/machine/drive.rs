//! How fast a drive delivers.

use std::{
    fs, io,
    path::Path,
    sync::atomic::{
        AtomicBool, AtomicU64, AtomicUsize,
        Ordering::{Relaxed, SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use memmap2::MmapMut;

use super::source::{DirectIo, FileSource, Source};
use crate::error::{Error, Result};

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
        let start = |_| {
            let started = thread::Builder::new().spawn_scoped(scope, read);
            // Those that have started end at once.
            started.inspect_err(|_| failed.store(true, Relaxed))
        };
        let threads = (0..threads).map(start).collect::<io::Result<Vec<_>>>()?;
        threads.into_iter().map(|t| t.join().unwrap_or(Ok(()))).collect()
    });
    done?;
    Ok(bytes.load(Relaxed) as f64 / 1e9 / start.elapsed().as_secs_f64())
}

/// How fast a file is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// GB a second.
    pub gb_per_second: f64,
    /// Whether reads go past the page cache. Those that do not say more of memory than of the drive.
    pub direct: bool,
}

/// Bytes that are read at a time of any file, about those of a tile.
const PIECE: usize = 1 << 20;
/// Threads that read it, as many as read experts.
const READERS: usize = 4;

/// The speed at which a file of any kind is read in pieces of 1 MiB, for about `time`.
///
/// # Errors
/// [`Error::Io`]; [`Error::Argument`] for a file that is smaller than a piece.
pub fn speed_of_file(path: &Path, time: Duration) -> Result<Speed> {
    let length = fs::metadata(path).map_err(Error::io("read", path))?.len();
    let offsets: Vec<u64> = (0..length / PIECE as u64).map(|i| i * PIECE as u64).collect();
    if offsets.is_empty() {
        let path = path.display();
        return Err(Error::Argument(format!(
            "{path} is too small for its drive to be measured by; give a larger file"
        )));
    }
    let source = FileSource::open(path, DirectIo::Auto, 0)?;
    let gb_per_second =
        speed(&source, &offsets, [1, PIECE], READERS, time).map_err(Error::io("read", path))?;
    Ok(Speed { gb_per_second, direct: source.is_direct() })
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_measured_and_one_without_a_piece_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, vec![7; 3 * PIECE + 5]).unwrap();
        let speed = speed_of_file(&path, Duration::from_millis(20)).unwrap();
        assert!(speed.gb_per_second > 0.0 && speed.gb_per_second.is_finite());
        fs::write(&path, vec![7; PIECE - 1]).unwrap();
        let refused = speed_of_file(&path, Duration::from_millis(20)).unwrap_err().to_string();
        assert!(refused.contains("too small"), "{refused}");
    }
}
