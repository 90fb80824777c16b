//! Work that is queued as a whole: a driver takes a few microseconds for a kernel that is launched by itself, and less for one of a graph.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    device::Device,
    driver::{Prepared, Work},
    memory::View,
};
use crate::error::Result;

/// Operations that were put down in place of being queued, and the buffers that they are about.
#[derive(Debug, Default)]
pub struct List {
    work: Vec<Work>,
    buffers: BTreeSet<u64>,
}

impl List {
    /// Adds work on these views.
    pub(super) fn push<'v>(&mut self, work: Work, views: impl Iterator<Item = View<'v>>) {
        self.work.push(work);
        self.buffers.extend(views.map(|view| view.number()).filter(|&number| number != 0));
    }
}

/// Work of a list, ready to be queued.
#[derive(Debug)]
pub struct Graph {
    device: Arc<Device>,
    prepared: Prepared,
    buffers: Vec<u64>,
}

impl Graph {
    /// Prepares the work.
    ///
    /// # Errors
    /// As [`Device::call`].
    pub fn new(device: &Arc<Device>, list: &List) -> Result<Self> {
        let prepared = device.call(|c| c.prepare(&list.work))?;
        Ok(Self { device: device.clone(), prepared, buffers: list.buffers.iter().copied().collect() })
    }

    /// Whether the buffers that it is about are all there.
    pub fn is_current(&self) -> bool {
        self.device.with_buffers(&self.buffers, |_| Ok(())).is_ok()
    }

    /// Queues all of it, behind what is queued.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] when it is not current; as [`Device::call`].
    pub fn queue(&self) -> Result<()> {
        // SAFETY: `Ops` has checked the sizes when the list was filled; the buffers are there, and whoever drops one waits for what is queued.
        self.device.with_buffers(&self.buffers, |c| unsafe { c.queue_prepared(self.prepared) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: it was prepared by `new`, and nobody has it any more.
        let _ = self.device.call(|c| unsafe { c.discard(self.prepared) });
    }
}
