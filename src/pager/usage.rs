//! What a pager counts.

use std::time::Duration;

/// How experts come into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The system's page faults bring them in, or they are in memory from the start.
    Plain,
    /// Mapped; the pager has their pages brought in before they are touched.
    Mapped,
    /// Read into slots.
    Streamed,
}

impl Mode {
    /// The name of the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Mapped => "mapped",
            Self::Streamed => "streamed",
        }
    }
}

/// Experts that requests found in memory, and those that they had to wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Found.
    pub hits: u64,
    /// Brought in.
    pub misses: u64,
}

impl Hits {
    /// Hits among all; 1 where nothing was asked for.
    pub fn rate(self) -> f64 {
        let all = self.hits + self.misses;
        if all == 0 { 1.0 } else { self.hits as f64 / all as f64 }
    }

    /// Those since `before`.
    pub fn since(self, before: Self) -> Self {
        Self { hits: self.hits - before.hits, misses: self.misses - before.misses }
    }
}

/// What a pager did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens that used each expert, by `layer * experts + expert`.
    pub uses: Vec<u64>,
    /// Requests of calls with several tokens.
    pub prefill: Hits,
    /// Requests of calls with one token.
    pub decode: Hits,
    /// Bytes of experts that were read or brought in.
    pub bytes_read: u64,
    /// Experts that were read before they were asked for: those that then were, and those that were not. Where they were, it is
    /// a miss of the request all the same.
    pub guesses: Hits,
    /// Reads that failed and were tried again.
    pub retries: u64,
    /// Time in which at least one read was under way.
    pub drive_time: Duration,
    /// Time that threads of the computation waited for tiles, added up over the threads.
    pub waited: Duration,
}
