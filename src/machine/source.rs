//! What is read in pieces by several threads: a file, past the page cache if that works, and slower drives for experiments.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use memmap2::MmapMut;

use super::system;
use crate::error::{Error, Result};

/// Offsets, lengths and memory of direct reads are multiples of this.
pub const PAGE: usize = 4096;

/// Whether direct reads can bring these experts in, whose tiles are of `tile_bytes`: containers of ours have them at whole pages.
pub fn in_pages(offsets: &[u64], tile_bytes: usize) -> bool {
    offsets.iter().all(|o| o.is_multiple_of(PAGE as u64)) && tile_bytes.is_multiple_of(PAGE)
}

/// Something that tiles are read from, by several threads at once.
pub trait Source: Send + Sync {
    /// Reads `buffer.len()` bytes at `offset`, or as many as there are.
    ///
    /// # Errors
    /// The system's.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// These bytes will be read soon. A source that has to fetch them begins, and does not wait.
    fn expect(&self, _offset: u64, _length: u64) {}

    /// Nobody wants to read any more: reads that wait for something fail.
    fn close(&self) {}
}

/// Whether reads go past the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectIo {
    /// If that works.
    #[default]
    Auto,
    /// Always: a file system without such reads is an error.
    On,
    /// Never.
    Off,
}

impl DirectIo {
    /// The name of the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }

    /// The inverse of [`DirectIo::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Auto, Self::On, Self::Off].into_iter().find(|d| d.name() == name)
    }
}

/// A container as a source.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    file: File,
    direct: bool,
}

impl FileSource {
    /// Opens `path`. Direct reads are compared with a buffered one at `probe`, the offset of a whole page that is read anyway.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened; [`Error::Argument`] when direct reads are insisted on and do not work.
    pub fn open(path: &Path, how: DirectIo, probe: u64) -> Result<Self> {
        let buffered = File::open(path).map_err(Error::io("open", path))?;
        if how == DirectIo::Off {
            return Ok(Self { path: path.into(), file: buffered, direct: false });
        }
        let direct = system::open_direct(path);
        let problem = match direct.and_then(|file| check(&file, &buffered, probe).map(|()| file)) {
            Ok(file) => return Ok(Self { path: path.into(), file, direct: true }),
            Err(problem) => problem,
        };
        if how == DirectIo::On {
            return Err(Error::Argument(format!(
                "{} cannot be read past the page cache: {problem}; use --direct-io auto",
                path.display()
            )));
        }
        tracing::debug!("{}: reads go through the page cache: {problem}", path.display());
        Ok(Self { path: path.into(), file: buffered, direct: false })
    }

    /// Whether reads go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Fills `buffer` from `offset`, where reads go through the page cache.
    ///
    /// # Errors
    /// [`Error::Io`], also where the file ends before.
    pub fn fill(&self, mut buffer: &mut [u8], mut offset: u64) -> Result<()> {
        debug_assert!(!self.direct);
        while !buffer.is_empty() {
            let n = match self.read_at(buffer, offset) {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                done => done,
            };
            let n = n.map_err(Error::io("read", &self.path))?;
            buffer = &mut buffer[n..];
            offset += n as u64;
        }
        Ok(())
    }

    /// A copy of `length` bytes at `offset`, read in pieces through a buffer of its own, each of which `into` hears.
    ///
    /// # Errors
    /// [`Error::Io`]; those of `into`.
    pub fn copy(&self, offset: u64, length: usize, into: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        const PIECE: usize = 4 << 20;
        let error = || Error::io("read", &self.path);
        let mut piece = MmapMut::map_anon(PIECE).map_err(error())?;
        let (mut at, end) = (offset, offset + length as u64);
        while at < end {
            let start = at / PAGE as u64 * PAGE as u64;
            let wanted = (end - start).next_multiple_of(PAGE as u64).min(PIECE as u64) as usize;
            let skip = (at - start) as usize;
            let needed = wanted.min((end - start) as usize);
            // The last page of a file is short.
            let n = self.read_at(&mut piece[..wanted], start).map_err(error())?;
            if n < needed {
                return Err(error()(io::ErrorKind::UnexpectedEof.into()));
            }
            into(&piece[skip..needed])?;
            at = start + needed as u64;
        }
        Ok(())
    }
}

impl Source for FileSource {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match system::read_at(&self.file, buffer, offset) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

/// Whether both files say the same at `offset`.
fn check(direct: &File, buffered: &File, offset: u64) -> io::Result<()> {
    let mut pages = MmapMut::map_anon(2 * PAGE)?;
    let (a, b) = pages.split_at_mut(PAGE);
    let read = [system::read_at(direct, a, offset)?, system::read_at(buffered, b, offset)?];
    if read[0] == 0 || read[0] != read[1] || a != b {
        return Err(io::Error::other("its pages read otherwise than through the page cache"));
    }
    Ok(())
}

/// A slower drive: reads of the source behind it are delivered at a given rate.
pub struct Throttle {
    source: Box<dyn Source>,
    bytes_per_second: f64,
    /// When the drive is free again.
    free: Mutex<Instant>,
}

impl Throttle {
    /// `source` at `bytes_per_second`, which is positive.
    pub fn new(source: Box<dyn Source>, bytes_per_second: f64) -> Self {
        Self { source, bytes_per_second, free: Mutex::new(Instant::now()) }
    }

    /// `source` at this rate, or as it is.
    pub fn at(source: Box<dyn Source>, bytes_per_second: Option<f64>) -> Box<dyn Source> {
        match bytes_per_second {
            Some(rate) => Box::new(Self::new(source, rate)),
            None => source,
        }
    }
}

impl Source for Throttle {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.source.read_at(buffer, offset)?;
        let time = Duration::from_secs_f64(read as f64 / self.bytes_per_second);
        let done = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            *free = (*free).max(Instant::now()) + time;
            *free
        };
        thread::sleep(done.saturating_duration_since(Instant::now()));
        Ok(read)
    }

    fn expect(&self, offset: u64, length: u64) {
        self.source.expect(offset, length);
    }

    fn close(&self) {
        self.source.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_place_and_length_are_copied() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let bytes: Vec<u8> = (0..9_000_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        for how in [DirectIo::Auto, DirectIo::Off] {
            let source = FileSource::open(&path, how, 4096).unwrap();
            for (offset, length) in
                [(0, 1), (4095, 2), (8192, 4096), (5, 9_000_001 - 5), (4_194_304, 4_194_305)]
            {
                let mut copy = Vec::new();
                let mut into = |piece: &[u8]| {
                    copy.extend_from_slice(piece);
                    Ok(())
                };
                source.copy(offset, length, &mut into).unwrap();
                assert!(copy == bytes[offset as usize..][..length], "{length} bytes at {offset}");
            }
            assert!(source.copy(9_000_000, 2, &mut |_| Ok(())).is_err());
        }
    }
}
