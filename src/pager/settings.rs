//! How the caller wants experts paged.

use super::Eviction;
use crate::machine::{budget::Limit, source::DirectIo, system};

/// Which way to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Paging {
    /// Mapped where the container fits, streamed where it does not.
    #[default]
    Auto,
    /// Mapped, whatever the memory.
    Mapped,
    /// Streamed, whatever the memory.
    Streamed,
    /// Mapped, without the pager: the system's page faults. For comparison.
    Plain,
}

impl Paging {
    /// The name of the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Mapped => "mapped",
            Self::Streamed => "streamed",
            Self::Plain => "plain",
        }
    }

    /// The inverse of [`Paging::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Auto, Self::Mapped, Self::Streamed, Self::Plain].into_iter().find(|p| p.name() == name)
    }
}

/// How to page.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Which way.
    pub mode: Paging,
    /// The memory to use; by default what is free, less a reserve.
    pub memory: Option<Limit>,
    /// Whether streamed reads go past the page cache.
    pub direct_io: DirectIo,
    /// How the expert that leaves is chosen.
    pub eviction: Eviction,
    /// Streamed: reads what the next layer's router makes of this layer's residual, while nothing else is asked for.
    pub look_ahead: bool,
    /// Threads that read; 0 means as many as an NVMe drive wants.
    pub readers: usize,
    /// Streamed: delivers reads at so many bytes a second, to see how a slower drive would do.
    pub throttle: Option<f64>,
    /// Counts the page faults of this process that waited for a disk: when it has moved, mapped pages may have been dropped. Tests put a
    /// counter of their own here.
    #[doc(hidden)]
    pub major_faults: fn() -> u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Paging::default(),
            memory: None,
            direct_io: DirectIo::default(),
            eviction: Eviction::default(),
            look_ahead: false,
            readers: 0,
            throttle: None,
            major_faults: system::major_faults,
        }
    }
}
