//! The bytes of a container, mapped or owned.

use std::{
    fs::{self, File},
    io,
    ops::{Deref, Range},
    path::Path,
    sync::Arc,
};

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::{Mmap, MmapMut};

use super::watch::Watch;
use crate::error::{Error, Result};

/// A shared, immutable range of the bytes of a container. Clones are cheap, and keep the file mapped.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<Owner>,
    range: Range<usize>,
}

enum Owner {
    Mapped(Mapping),
    /// Words, so that what is aligned in a file is aligned in memory (to 16 bytes).
    Owned(Vec<u128>),
    /// Whole pages of memory.
    Pages(Mmap),
}

/// A file in memory. Fields are dropped in their order: it is not watched any more when it is unmapped.
struct Mapping {
    watch: Watch,
    map: Mmap,
    file: File,
}

impl Mapping {
    fn new(map: Mmap, file: File) -> io::Result<Self> {
        let range = map.as_ptr_range();
        // SAFETY: the mapping is ours and for reading, and is unmapped after the watch has ended, as the order of the fields says.
        let watch = unsafe { Watch::new(range.start.expose_provenance()..range.end.addr()) }?;
        Ok(Self { watch, map, file })
    }

    /// Whether zeros were read in place of the file.
    fn is_damaged(&self) -> bool {
        self.watch.is_damaged()
    }
}

impl Owner {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(Mapping { map, .. }) | Self::Pages(map) => map,
            Self::Owned(words) => bytemuck::cast_slice(words),
        }
    }
}

impl Bytes {
    /// Maps a file for reading.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened or mapped; [`Error::BadFile`] when it is empty.
    pub fn map(path: &Path) -> Result<Self> {
        // Asked first, since Windows opens no folder.
        let metadata = fs::metadata(path).map_err(Error::io("open", path))?;
        if !metadata.is_file() {
            return Err(Error::Argument(format!("{} is not a file; give a .gguf file", path.display())));
        }
        let file = File::open(path).map_err(Error::io("open", path))?;
        let metadata = file.metadata().map_err(Error::io("open", path))?;
        if metadata.len() == 0 {
            return Err(Error::bad_file(path, "the file", "it is empty"));
        }
        // SAFETY: the mapping is read-only and private to this process's view of the file; it is sound as long as no
        // one rewrites the file while it is open, which the documentation of `Container::open` asks for
        // (our own tools never change a finished container: they write beside it and rename). Where it is cut off or cannot be read, zeros
        // take its place (`watch.rs`), and what was made of them is dropped (`check_file`).
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        let range = 0..map.len();
        let mapping = Mapping::new(map, file).map_err(Error::io("map", path))?;
        Ok(Self { owner: Arc::new(Owner::Mapped(mapping)), range })
    }

    /// A copy of `bytes`, aligned to 16.
    pub fn copy(bytes: &[u8]) -> Self {
        let mut words = vec![0u128; bytes.len().div_ceil(16)];
        bytemuck::cast_slice_mut::<_, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { owner: Arc::new(Owner::Owned(words)), range: 0..bytes.len() }
    }

    /// Memory of its own, in huge pages if the system has them, filled piece by piece: `fill` passes the pieces to its argument in order.
    ///
    /// # Errors
    /// Those of `fill`; [`Error::Argument`] when it gives more or less than `length` bytes.
    pub fn collect(length: usize, fill: impl FnOnce(&mut dyn FnMut(&[u8])) -> Result<()>) -> Result<Self> {
        let fault =
            |e: io::Error| Error::Argument(format!("the system has no memory for {length} bytes: {e}"));
        let mut bytes = MmapMut::map_anon(length.max(1)).map_err(fault)?;
        #[cfg(target_os = "linux")]
        let _ = bytes.advise(Advice::HugePage);
        let mut at = 0;
        fill(&mut |piece| {
            if let Some(place) = bytes.get_mut(at..at + piece.len()) {
                place.copy_from_slice(piece);
            }
            at += piece.len();
        })?;
        if at != length {
            return Err(Error::Argument(format!("{at} bytes were read in place of {length}")));
        }
        let pages = bytes.make_read_only().map_err(fault)?;
        Ok(Self { owner: Arc::new(Owner::Pages(pages)), range: 0..length })
    }

    /// Where these bytes begin in their file, if they are mapped.
    pub fn file_offset(&self) -> Option<u64> {
        matches!(*self.owner, Owner::Mapped(..)).then_some(self.range.start as u64)
    }

    /// Brings a range of these bytes into memory. A page that cannot be read is an error here, or of [`Bytes::check_file`] after it was touched.
    ///
    /// # Errors
    /// The system's. A system without such a call gives none, and the pages are brought in when they are used.
    pub fn populate(&self, range: Range<usize>) -> io::Result<()> {
        let Owner::Mapped(Mapping { map, .. }) = &*self.owner else { return Ok(()) };
        #[cfg(target_os = "linux")]
        {
            let start = self.range.start + range.start;
            // Reading ahead fills large requests; populating then waits for the pages and enters them.
            map.advise_range(Advice::WillNeed, start, range.len())?;
            match map.advise_range(Advice::PopulateRead, start, range.len()) {
                // Linux before 5.14.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
                // So the system says that these pages cannot be had, where a read would say "Input/output error".
                Err(e) if e.raw_os_error() == Some(libc::EFAULT) => {
                    Err(io::Error::from_raw_os_error(libc::EIO))
                }
                done => done,
            }
        }
        #[cfg(not(target_os = "linux"))]
        {
            let pages = self[range].chunks(4096).map(|page| u64::from(page[0]));
            std::hint::black_box((pages.sum::<u64>(), map.len()));
            Ok(())
        }
    }

    /// Whether the system seems to have these bytes in memory, by their first page and their last. Where it does not say, it has not.
    pub fn is_cached(&self) -> bool {
        #[cfg(target_os = "linux")]
        if let Owner::Mapped(Mapping { map, .. }) = &*self.owner
            && let Some(last) = self.range.end.checked_sub(1).filter(|&last| last < map.len())
        {
            let is_there = |byte: usize| {
                let mut page = 0_u8;
                // SAFETY: the page of a byte within the mapping, which is alive; the system writes one byte for it, and to `page` alone.
                let done = unsafe {
                    libc::mincore(map.as_ptr().add(byte & !4095).cast_mut().cast(), 1, &raw mut page)
                };
                done == 0 && page & 1 == 1
            };
            return is_there(self.range.start) && is_there(last);
        }
        false
    }

    /// Tells the system to read no more of these bytes than the pages that are touched.
    pub fn read_as_asked(&self) {
        #[cfg(target_os = "linux")]
        if let Owner::Mapped(Mapping { map, .. }) = &*self.owner {
            let _ = map.advise_range(Advice::Random, self.range.start, self.range.len());
        }
    }

    /// Tells the system that these bytes will not be needed soon.
    pub fn cool(&self) {
        #[cfg(target_os = "linux")]
        if let Owner::Mapped(Mapping { map, .. }) = &*self.owner {
            let start = self.range.start.next_multiple_of(4096);
            let length = self.range.end.saturating_sub(start);
            // SAFETY: the range lies within the mapping, which is alive; MADV_COLD changes the order in which pages are
            // reclaimed and no contents.
            let _ = unsafe {
                rustix::mm::madvise(
                    map.as_ptr().add(start.min(map.len())).cast_mut().cast(),
                    length,
                    rustix::mm::Advice::LinuxCold,
                )
            };
        }
    }

    /// Checks that the file still holds what was mapped, and that everything read so far was really there. Callers ask before they keep anything
    /// that was computed from the bytes.
    ///
    /// # Errors
    /// [`Error::BadFile`] when it has become shorter, or a part could not be read; [`Error::Io`].
    pub fn check_file(&self, path: &Path) -> Result<()> {
        let Owner::Mapped(mapping) = &*self.owner else { return Ok(()) };
        let (mapped, damaged) = (mapping.map.len(), mapping.is_damaged());
        let length = mapping.file.metadata().map_err(Error::io("read", path))?.len();
        if !damaged && length >= mapped as u64 {
            return Ok(());
        }
        let (problem, remedy) = match length {
            _ if length < mapped as u64 => (
                format!("it was {mapped} bytes when it was opened and is {length} now"),
                "put the whole file in its place and open it again",
            ),
            _ => (
                format!("a part of its {mapped} bytes could not be read while it was in use"),
                "if nobody has changed it the drive may be failing: look into the system's log; put the whole file in its place and open it again",
            ),
        };
        Err(Error::BadFile { path: path.into(), place: "the file".into(), problem, remedy })
    }

    /// A part of these bytes, or `None` where they end before it does.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        let start = self.range.start.checked_add(range.start)?;
        let end = self.range.start.checked_add(range.end)?;
        (start <= end && end <= self.range.end).then(|| Self { owner: self.owner.clone(), range: start..end })
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({:?})", self.range)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Pages behind the end of a file that was cut off fail as those of a broken drive do.
    #[test]
    fn pages_that_cannot_be_had_are_an_error_of_the_drive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, [1; 40_000]).unwrap();
        let bytes = Bytes::map(&path).unwrap();
        bytes.populate(0..40_000).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
        let problem = bytes.populate(8192..40_000).unwrap_err();
        assert_eq!(problem.raw_os_error(), Some(libc::EIO));
        let problem = Error::io("read", &path)(problem).to_string();
        assert!(problem.contains("/f: ") && problem.contains("the drive may be failing"), "{problem}");
    }
}
