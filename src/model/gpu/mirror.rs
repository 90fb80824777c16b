//! What is copied of a session's keys and values between the host, which has the truth, and the pages on the GPU. So a session is saved, restored,
//! cut and enlarged as without a GPU, and outlives one that fails.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use yuan_kernels::DType;

use super::pages::{PAGE, PageShape, Pages};
use crate::{
    error::Result,
    gpu::{
        driver::Rows,
        memory::{Buffer, Pinned},
    },
    model::{KvType, State, state::KvCache},
};

/// By what a session is known to the pages that hold a copy of its keys and values. They are free when it is gone.
#[derive(Debug, Default)]
pub struct Mirror {
    /// The number of the pages' pool, and the session there.
    owner: Option<(u64, Arc<()>)>,
    /// From this position on the host has had others since the last call.
    cut: usize,
}

/// A copy of a session's state is a session of its own.
impl Clone for Mirror {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Mirror {
    /// Positions from here on are other ones than the host's.
    pub fn truncate(&mut self, position: usize) {
        self.cut = self.cut.min(position);
    }

    /// A pass has succeeded: what the pages have is the host's.
    pub(super) fn equals(&mut self) {
        self.cut = usize::MAX;
    }

    /// The session in the pool of this number, and from which position on its pages no longer are the host's.
    pub(super) fn owner(&mut self, pool: u64) -> (Arc<()>, usize) {
        match &self.owner {
            Some((number, owner)) if *number == pool => {
                let owner = owner.clone();
                (owner, std::mem::replace(&mut self.cut, usize::MAX))
            }
            _ => {
                let owner = Arc::new(());
                (self.owner, self.cut) = (Some((pool, owner.clone())), usize::MAX);
                (owner, 0)
            }
        }
    }
}

/// A number that no other pool has.
pub(super) fn pool_number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Relaxed)
}

/// The type, if the kernels have it.
pub const fn dtype(kv: KvType) -> Option<DType> {
    match kv {
        KvType::F16 => Some(DType::F16),
        KvType::Q8_0 => Some(DType::Q8_0),
        _ => None,
    }
}

/// The bytes of some positions of one page on the host: of each layer the keys, head by head, and then the values.
fn read(state: &State, positions: Range<usize>) -> impl Iterator<Item = &[u8]> {
    state.layers.iter().flat_map(move |layer| layer.kv.part(positions.clone()))
}

/// Adds positions, which are of one page, on the host, and gives their bytes in the order of [`read`], to be overwritten.
fn append(state: &mut State, positions: usize) -> Vec<&mut [u8]> {
    state.layers.iter_mut().flat_map(|layer| extended(&mut layer.kv, positions)).collect()
}

fn extended(kv: &mut KvCache, positions: usize) -> Vec<&mut [u8]> {
    kv.extend(positions).collect()
}

/// The parts of some positions that lie in one page each.
fn by_page(positions: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let first = positions.start / PAGE;
    (first..positions.end.div_ceil(PAGE))
        .map(move |page| positions.start.max(page * PAGE)..positions.end.min((page + 1) * PAGE))
}

/// Sends some positions of one page of the host to the GPU's.
pub(super) fn send(
    state: &State,
    shape: &PageShape,
    page: &Buffer,
    positions: Range<usize>,
    pinned: &mut Pinned,
) -> Result<()> {
    let (row, width) = (shape.row, positions.len() * shape.row);
    let pieces: Vec<&[u8]> = read(state, positions.clone()).collect();
    let most = (pinned.size() / width.max(1)).max(1);
    for (i, group) in pieces.chunks(most).enumerate() {
        let host = pinned.host()?;
        host.chunks_exact_mut(width).zip(group).for_each(|(to, from)| to.copy_from_slice(from));
        let rows = Rows { count: group.len(), width, pitch: PAGE * row };
        let at = shape.at(i * most, positions.start);
        pinned.upload_rows(0, page.part(at..page.size())?, rows)?;
    }
    Ok(())
}

/// Brings positions behind the host's, which a pass has computed, to the host.
pub(super) fn bring_back(
    state: &mut State,
    shape: &PageShape,
    pages: &Pages,
    tokens: usize,
    pinned: &mut Pinned,
) -> Result<()> {
    let (start, row) = (state.position(), shape.row);
    let Some((_, owner)) = state.mirror.owner.clone() else { return Ok(()) };
    for positions in by_page(start..start + tokens) {
        let width = positions.len() * row;
        let most = (pinned.size() / width).max(1);
        let page = pages.page(&owner, positions.start / PAGE)?;
        let mut to = append(state, positions.len());
        for (i, group) in to.chunks_mut(most).enumerate() {
            let rows = Rows { count: group.len(), width, pitch: PAGE * row };
            let at = shape.at(i * most, positions.start);
            pinned.download_rows(0, page.part(at..page.size())?, rows)?;
            let host = pinned.host()?;
            group.iter_mut().zip(host.chunks_exact(width)).for_each(|(to, from)| to.copy_from_slice(from));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_cut_at_the_borders_of_pages() {
        for (positions, borders) in [
            (0..3, &[0, 3][..]),
            (500..1030, &[500, 512, 1024, 1030]),
            (512..1024, &[512, 1024]),
            (1024..1024, &[1024]),
        ] {
            let cut: Vec<_> = by_page(positions).collect();
            let wanted: Vec<_> = borders.windows(2).map(|b| b[0]..b[1]).collect();
            assert_eq!(cut, wanted);
        }
    }

    #[test]
    fn a_session_is_a_new_one_in_another_pool_and_loses_what_was_cut_once() {
        let mut mirror = Mirror::default();
        let (first, cut) = mirror.owner(1);
        assert_eq!(cut, 0);
        mirror.truncate(700);
        mirror.truncate(900);
        let (again, cut) = mirror.owner(1);
        assert!(Arc::ptr_eq(&first, &again) && cut == 700);
        assert_eq!(mirror.owner(1).1, usize::MAX);
        mirror.truncate(3);
        mirror.equals();
        assert_eq!(mirror.owner(1).1, usize::MAX);
        let (other, cut) = mirror.owner(2);
        assert!(!Arc::ptr_eq(&first, &other) && cut == 0);
        assert_eq!(mirror.clone().owner(2).1, 0);
    }
}
