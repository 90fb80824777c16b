//! The memory of a page: keys and values of some positions of one layer. Sequences whose first tokens are the same can share it.

use memmap2::MmapMut;

/// Memory that costs nothing where it has not been written yet.
#[derive(Debug)]
pub struct Page(MmapMut);

impl Page {
    /// `bytes` zeros, or `None` where the system has no memory for them. It comes from the system and goes back to it: what an allocator gives
    /// twice it has to clear, and memory that was cleared is used, whether there is something in it or not.
    pub fn new(bytes: usize) -> Option<Self> {
        let memory = MmapMut::map_anon(bytes).ok()?;
        // A page fills head by head, each a little: a huge page for each of them would be most of the memory at once.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::NoHugePage);
        Some(Self(memory))
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// All bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
