//! Mapped files whose loss is survived: where they lie, and whether a part of one could not be had. The system tells a handler of the thread that reads
//! such a part (`sigbus.rs`, `in_page_error.rs`), which puts zeros in its place and notes it here. Whoever has read the mapping asks afterwards.

use std::{
    io,
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
            fence,
        },
    },
};

#[cfg(windows)]
use super::in_page_error::{WHOLE, install, page};
#[cfg(unix)]
use super::sigbus::{install, page};

/// Files that can be mapped at the same time.
const MOST: usize = 1024;

/// A mapping that the handler knows. A handler takes no locks: it reads words, and a version that is odd while they are written.
pub(super) struct Place {
    version: AtomicUsize,
    start: AtomicUsize,
    /// 0 where the place is free.
    end: AtomicUsize,
    damaged: AtomicBool,
    /// How far a handler has got that takes more than one step.
    #[cfg(windows)]
    pub steps: AtomicUsize,
}

static PLACES: [Place; MOST] = [const { Place::new() }; MOST];
/// For those who write to [`PLACES`].
static WRITING: Mutex<()> = Mutex::new(());

impl Place {
    const fn new() -> Self {
        Self {
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            damaged: AtomicBool::new(false),
            #[cfg(windows)]
            steps: AtomicUsize::new(WHOLE),
        }
    }

    /// With [`WRITING`] held.
    fn write(&self, range: Range<usize>) {
        let version = self.version.load(Relaxed);
        self.version.store(version + 1, Relaxed);
        fence(Release);
        self.start.store(range.start, Relaxed);
        self.end.store(range.end, Relaxed);
        self.version.store(version + 2, Release);
    }

    /// A part of it could not be had.
    pub fn damage(&self) {
        self.damaged.store(true, Release);
    }

    /// The addresses, unless they are being changed: those of a mapping that is in use are not.
    fn range(&self) -> Option<Range<usize>> {
        let version = self.version.load(Acquire);
        let range = self.start.load(Relaxed)..self.end.load(Relaxed);
        fence(Acquire);
        (version.is_multiple_of(2) && self.version.load(Relaxed) == version).then_some(range)
    }
}

/// A mapping that is watched until this is dropped, which must be before it is unmapped.
pub(super) struct Watch(&'static Place);

impl Watch {
    /// Watches the mapping of a file at `range`.
    ///
    /// # Errors
    /// When too many are watched.
    ///
    /// # Safety
    /// `range` is a mapping for reading that is nobody else's, and stays so until the `Watch` is dropped.
    pub unsafe fn new(range: Range<usize>) -> io::Result<Self> {
        install();
        let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        let free = PLACES.iter().find(|place| place.end.load(Relaxed) == 0);
        let place = free.ok_or_else(|| io::Error::other(format!("{MOST} files are mapped already")))?;
        place.damaged.store(false, Relaxed);
        #[cfg(windows)]
        place.steps.store(WHOLE, Relaxed);
        // The last page of a mapping is a whole one.
        place.write(range.start..range.end.next_multiple_of(page()));
        Ok(Self(place))
    }

    /// Whether something was read from the mapping that could not be had.
    pub fn is_damaged(&self) -> bool {
        self.0.damaged.load(Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.write(0..0);
    }
}

/// The watched mapping that an address lies in, and where it is. For handlers: it takes no lock.
pub(super) fn place_of(address: usize) -> Option<(&'static Place, Range<usize>)> {
    PLACES.iter().find_map(|place| Some(place).zip(place.range().filter(|range| range.contains(&address))))
}
