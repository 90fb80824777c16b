//! The memory of a page: keys and values of some positions of one layer. Sequences whose first tokens are the same can share it.

use memmap2::MmapMut;

use super::pool::{Counted, Lease};

/// Positions by which a page is counted as it fills, and between two snapshots.
pub const STEP: usize = 64;

/// Memory that costs nothing where it has not been written yet.
#[derive(Debug)]
pub struct Page {
    memory: MmapMut,
    /// Whether the system may give it as huge pages.
    huge: bool,
    /// As far as it is filled, or will be by the pass that runs.
    lease: Lease,
    _counted: Counted,
}

impl Page {
    /// `bytes` zeros, of which as many as `lease` has will be written, or `None` where the system has no memory for them. It comes from the
    /// system and goes back to it: what an allocator gives twice it has to clear, and memory that was cleared is used, whether there is
    /// something in it or not.
    pub fn new(bytes: usize, lease: Lease) -> Option<Self> {
        // A page fills head by head, each a little: a huge page for each of them would be most of the memory at once. Of a page that is filled they waste nothing, and attention
        // reads it a tenth faster.
        let huge = lease.bytes() >= bytes as u64;
        Some(Self { memory: zeros(bytes, huge)?, huge, _counted: lease.page(), lease })
    }

    /// More of it will be written. When that is all of it, it moves into huge pages.
    pub fn grow(&mut self, lease: Lease) {
        self.lease.join(lease);
        if !self.huge
            && self.lease.bytes() >= self.memory.len() as u64
            && let Some(mut memory) = zeros(self.memory.len(), true)
        {
            memory.copy_from_slice(&self.memory);
            (self.memory, self.huge) = (memory, true);
        }
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

/// Memory of the system, in pages of its usual size or in huge ones where it has them.
fn zeros(bytes: usize, huge: bool) -> Option<MmapMut> {
    let memory = MmapMut::map_anon(bytes).ok()?;
    #[cfg(target_os = "linux")]
    let _ = memory.advise(if huge { memmap2::Advice::HugePage } else { memmap2::Advice::NoHugePage });
    #[cfg(not(target_os = "linux"))]
    let _ = huge;
    Some(memory)
}

#[cfg(test)]
mod tests {
    use super::{super::pool::Pool, *};

    #[test]
    fn a_page_keeps_what_is_in_it_when_it_is_filled() {
        let pool = Pool::new(u64::MAX, 1);
        let mut page = Page::new(1 << 22, pool.take(1 << 20).unwrap()).unwrap();
        page.bytes_mut().iter_mut().zip(0..).for_each(|(byte, i): (&mut u8, u32)| *byte = (i % 251) as u8);
        let before = page.bytes().to_vec();
        for (more, huge) in [(1 << 20, false), (2 << 20, true)] {
            page.grow(pool.take(more).unwrap());
            assert_eq!(page.huge, huge, "huge pages would be most of a page that is not filled");
            assert!(page.bytes() == before);
        }
        assert_eq!(page.leased(), 1 << 22);
    }
}
