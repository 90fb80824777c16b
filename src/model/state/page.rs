//! The memory of a page: keys and values of some positions of one layer. Sequences whose first tokens are the same can share it.

use memmap2::MmapMut;

use super::pool::{Counted, Lease};

/// Positions by which a page is counted as it fills, and between two snapshots.
pub const STEP: usize = 64;

/// Memory that costs nothing where it has not been written yet.
#[derive(Debug)]
pub struct Page {
    memory: MmapMut,
    /// As far as it is filled, or will be by the pass that runs.
    lease: Lease,
    _counted: Counted,
}

impl Page {
    /// `bytes` zeros, of which as many as `lease` has will be written, or `None` where the system has no memory for them. It comes from the
    /// system and goes back to it: what an allocator gives twice it has to clear, and memory that was cleared is used, whether there is
    /// something in it or not.
    pub fn new(bytes: usize, lease: Lease) -> Option<Self> {
        let memory = MmapMut::map_anon(bytes).ok()?;
        // A page fills head by head, each a little: a huge page for each of them would be most of the memory at once.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::NoHugePage);
        Some(Self { memory, _counted: lease.page(), lease })
    }

    /// More of it will be written.
    pub fn grow(&mut self, lease: Lease) {
        self.lease.join(lease);
    }

    /// Bytes that are counted.
    pub fn leased(&self) -> u64 {
        self.lease.bytes()
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory
    }

    /// All bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory
    }
}
