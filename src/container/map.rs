//! The bytes of a container, mapped or owned. The one place outside the kernels that is `unsafe`.

use std::{
    fs::File,
    ops::{Deref, Range},
    path::Path,
    sync::Arc,
};

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A shared, immutable range of the bytes of a container. Clones are cheap, and keep the file mapped.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<Owner>,
    range: Range<usize>,
}

enum Owner {
    Mapped(Mmap),
    /// Words, so that what is aligned in a file is aligned in memory (to 16 bytes).
    Owned(Vec<u128>),
}

impl Owner {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
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
        let file = File::open(path).map_err(Error::io("open", path))?;
        let metadata = file.metadata().map_err(Error::io("open", path))?;
        if !metadata.is_file() {
            return Err(Error::Argument(format!("{} is no file; give a .gguf file", path.display())));
        }
        if metadata.len() == 0 {
            return Err(Error::bad_file(path, "the file", "it is empty"));
        }
        // SAFETY: the mapping is read-only and private to this process's view of the file; it is sound as long as no
        // one truncates or rewrites the file while it is open, which the documentation of `Container::open` asks for
        // (our own tools never change a finished container: they write beside it and rename).
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        let range = 0..map.len();
        Ok(Self { owner: Arc::new(Owner::Mapped(map)), range })
    }

    /// A copy of `bytes`, aligned to 16.
    pub fn copy(bytes: &[u8]) -> Self {
        let mut words = vec![0u128; bytes.len().div_ceil(16)];
        bytemuck::cast_slice_mut::<_, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { owner: Arc::new(Owner::Owned(words)), range: 0..bytes.len() }
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
