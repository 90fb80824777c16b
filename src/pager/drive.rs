//! How fast a drive delivers experts.

use std::{
    sync::atomic::{
        AtomicBool, AtomicU64, AtomicUsize,
        Ordering::{Relaxed, SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use memmap2::MmapMut;

use super::{
    pool::readers,
    settings::Settings,
    source::{DirectIo, FileSource, PAGE, Throttle, in_pages},
};
use crate::{
    container::{Bytes, Container, ExpertView},
    error::{Error, Result},
};

/// GB a second at which tiles of a container's experts arrive, read as a streamed model reads them: by as many threads, expert after expert
/// in an order that no read-ahead foresees, for about `time`.
///
/// # Errors
/// [`Error::Io`]; [`Error::Argument`] when the container has no tiles in a file.
pub fn calibrate(container: &Container, settings: &Settings, time: Duration) -> Result<f64> {
    let config = container.config();
    let mut offsets = Vec::new();
    for (l, e) in (0..config.layers).flat_map(|l| (0..config.experts).map(move |e| (l, e))) {
        if let ExpertView::Tiles { bytes, .. } = container.expert(l, e)? {
            offsets.extend(Bytes::file_offset(&bytes));
        }
    }
    let Some(layout) = container.tile_layout().filter(|_| !offsets.is_empty()) else {
        return Err(Error::Argument(format!("{} has no experts in tiles", container.path().display())));
    };
    let (tiles, length) = (layout.tiles(), layout.tile_bytes());
    let how = if in_pages(&offsets, length) { settings.direct_io } else { DirectIo::Off };
    let file = FileSource::open(container.path(), how, offsets[0] / PAGE as u64 * PAGE as u64)?;
    let source = Throttle::at(Box::new(file), settings.throttle);

    // A step that shares no divisor with the number of experts visits all of them.
    let step = (offsets.len() / 3..).find(|s| gcd(*s, offsets.len()) == 1).unwrap_or(1);
    let (next, bytes, failed) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let start = Instant::now();
    let read = || -> std::io::Result<()> {
        let mut tile = MmapMut::map_anon(length)?;
        while start.elapsed() < time && !failed.load(Relaxed) {
            let i = next.fetch_add(1, SeqCst);
            let at = offsets[i / tiles * step % offsets.len()] + (i % tiles * length) as u64;
            let n = source.read_at(&mut tile, at).inspect_err(|_| failed.store(true, Relaxed))?;
            bytes.fetch_add(n as u64, Relaxed);
        }
        Ok(())
    };
    let done: std::io::Result<Vec<()>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..readers(settings.readers)).map(|_| scope.spawn(read)).collect();
        threads.into_iter().map(|t| t.join().unwrap_or(Ok(()))).collect()
    });
    done.map_err(Error::io("read", container.path()))?;
    Ok(bytes.load(Relaxed) as f64 / 1e9 / start.elapsed().as_secs_f64())
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
