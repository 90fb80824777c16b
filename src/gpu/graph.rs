//! Work that is queued as a whole: a driver takes a few microseconds for a kernel that is launched by itself, and less for one of a graph.

use std::sync::Arc;

use super::{
    device::Device,
    driver::{Prepared, Work},
};
use crate::error::Result;

/// Work of a list that [`super::ops::Ops::listed`] has filled.
#[derive(Debug)]
pub struct Graph {
    device: Arc<Device>,
    prepared: Prepared,
}

impl Graph {
    /// Prepares the work.
    ///
    /// # Errors
    /// As [`Device::call`].
    pub fn new(device: &Arc<Device>, work: &[Work]) -> Result<Self> {
        let prepared = device.call(|c| c.prepare(work))?;
        Ok(Self { device: device.clone(), prepared })
    }

    /// Queues all of it, behind what is queued.
    ///
    /// # Errors
    /// As [`Device::call`].
    ///
    /// # Safety
    /// The buffers that the list was filled for are there.
    pub unsafe fn queue(&self) -> Result<()> {
        // SAFETY: `Ops` has checked the sizes when the list was filled, and the caller says that the buffers are the same.
        self.device.call(|c| unsafe { c.queue_prepared(self.prepared) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: it was prepared by `new`, and nobody has it any more.
        let _ = self.device.call(|c| unsafe { c.discard(self.prepared) });
    }
}
