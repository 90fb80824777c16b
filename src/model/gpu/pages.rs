//! The pages of keys and values on the GPU: copies of 512 positions of a session, in all layers. They come out of one pool, which is bounded. Each can be dropped at any
//! time, since the host has the truth: those of the session whose last call is longest ago go first.

use std::{
    cmp::Reverse,
    sync::{Arc, Weak},
};

use yuan_cuda::launch;
use yuan_kernels::DType;

use super::{
    mirror::{self, Mirror},
    scratch::Shape,
};
use crate::{
    error::{Error, Result},
    gpu::{
        Device,
        memory::{Buffer, Pinned},
        ops::Cache,
    },
    model::{State, state::SPAN},
};

/// Positions of a page.
pub const PAGE: usize = launch::SPAN;
const _: () = assert!(PAGE == SPAN, "a page here is the copy of one of the host");

/// What a page of one type looks like: [layers][keys, values][heads][`PAGE`][dim].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShape {
    pub dtype: DType,
    /// Bytes of one head of one position.
    pub row: usize,
    pub bytes: usize,
}

impl PageShape {
    pub fn new(shape: &Shape, dtype: DType) -> Self {
        let row = shape.dim / dtype.block_len() * dtype.block_bytes();
        Self { dtype, row, bytes: Cache::page_bytes(dtype, shape.layers, shape.heads, shape.dim) }
    }

    /// Where a position lies in the piece `piece` (layer, keys or values, head) of its page.
    pub fn at(&self, piece: usize, position: usize) -> usize {
        (piece * PAGE + position % PAGE) * self.row
    }
}

/// A page, and whose it is.
#[derive(Debug)]
struct Page {
    memory: Buffer,
    owner: Weak<()>,
    /// Which of its owner's.
    number: usize,
    /// So many of its first positions are the host's.
    filled: usize,
    /// When its owner's last call was.
    used: u64,
}

/// All pages.
#[derive(Debug)]
pub struct Pages {
    device: Arc<Device>,
    number: u64,
    pages: Vec<Page>,
    /// Bytes that they may take, and that they take.
    most: u64,
    taken: u64,
    clock: u64,
}

impl Pages {
    /// Pages of up to `most` bytes. None is there yet.
    pub fn new(device: &Arc<Device>, most: u64) -> Self {
        let number = mirror::pool_number();
        Self { device: device.clone(), number, pages: Vec::new(), most, taken: 0, clock: 0 }
    }

    /// Gives the session the pages for so many `positions`, and says whether there is room for them beside those of the `busy` sessions.
    ///
    /// # Errors
    /// As [`Device::call`], but not for want of memory.
    pub fn acquire(
        &mut self,
        mirror: &mut Mirror,
        positions: usize,
        shape: &PageShape,
        busy: &[Arc<()>],
    ) -> Result<Option<Arc<()>>> {
        let needed = positions.div_ceil(PAGE);
        if (needed as u64).saturating_mul(shape.bytes as u64) > self.most {
            return Ok(None);
        }
        let (owner, cut) = mirror.owner(self.number);
        self.clock += 1;
        let mut has = vec![false; needed];
        for page in self.pages.iter_mut().filter(|page| is(&page.owner, &owner)) {
            page.filled = page.filled.min(cut.saturating_sub(page.number * PAGE));
            page.used = self.clock;
            // A state keeps its type, but for one that was put in its place.
            if page.memory.size() != shape.bytes {
                page.owner = Weak::new();
            } else if let Some(has) = has.get_mut(page.number) {
                *has = true;
            }
        }
        for number in (0..needed).filter(|&number| !has[number]) {
            let Some(memory) = self.take(shape.bytes, &owner, needed, busy)? else { return Ok(None) };
            let owner = Arc::downgrade(&owner);
            self.pages.push(Page { memory, owner, number, filled: 0, used: self.clock });
        }
        Ok(Some(owner))
    }

    /// Memory for a page: of a session that is gone, new, or of whoever needs it least.
    fn take(
        &mut self,
        bytes: usize,
        owner: &Arc<()>,
        needed: usize,
        busy: &[Arc<()>],
    ) -> Result<Option<Buffer>> {
        loop {
            let gone = |page: &Page| page.owner.strong_count() == 0;
            if let Some(i) = self.pages.iter().position(|page| gone(page) && page.memory.size() == bytes) {
                return Ok(Some(self.pages.swap_remove(i).memory));
            }
            if self.taken + bytes as u64 <= self.most {
                match Buffer::new(&self.device, bytes) {
                    Ok(memory) => {
                        self.taken += bytes as u64;
                        return Ok(Some(memory));
                    }
                    // Less than was thought: others use the GPU, too.
                    Err(Error::Memory(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            let may_go = |page: &Page| match is(&page.owner, owner) {
                true => page.number >= needed,
                false => !busy.iter().any(|busy| is(&page.owner, busy)),
            };
            let pages = self.pages.iter().enumerate().filter(|(_, page)| may_go(page));
            let least = pages.min_by_key(|(_, page)| (!gone(page), page.used, Reverse(page.number)));
            let Some((i, _)) = least else { return Ok(None) };
            let memory = self.pages.swap_remove(i).memory;
            if memory.size() == bytes {
                return Ok(Some(memory));
            }
            self.taken -= memory.size() as u64;
        }
    }

    /// Sends what the pages of a session, which it has acquired for all of them, lack of the host's positions.
    pub fn complete(
        &mut self,
        owner: &Arc<()>,
        state: &State,
        shape: &PageShape,
        pinned: &mut Pinned,
    ) -> Result<()> {
        let position = state.position();
        for page in self.pages.iter_mut().filter(|page| is(&page.owner, owner)) {
            let first = page.number * PAGE;
            let end = PAGE.min(position.saturating_sub(first));
            if page.filled < end {
                mirror::send(state, shape, &page.memory, first + page.filled..first + end, pinned)?;
                page.filled = end;
            }
        }
        Ok(())
    }

    /// The host has the positions of a session up to this one as they are here.
    pub fn filled(&mut self, owner: &Arc<()>, position: usize) {
        for page in self.pages.iter_mut().filter(|page| is(&page.owner, owner)) {
            page.filled = PAGE.min(position.saturating_sub(page.number * PAGE));
        }
    }

    /// A page of a session.
    ///
    /// # Errors
    /// [`Error::Argument`] when it has no such page.
    pub fn page(&self, owner: &Arc<()>, number: usize) -> Result<&Buffer> {
        let page = self.pages.iter().find(|page| page.number == number && is(&page.owner, owner));
        page.map(|page| &page.memory)
            .ok_or_else(|| Error::Argument(format!("page {number} of a session is not on the GPU")))
    }
}

fn is(page: &Weak<()>, owner: &Arc<()>) -> bool {
    std::ptr::eq(page.as_ptr(), Arc::as_ptr(owner)) && page.strong_count() > 0
}
