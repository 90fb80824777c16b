//! Memory of a device, and memory of the host that the device copies from and to. Neither is given back while a copy or a kernel
//! may use it, and the host does not touch pinned memory that is being copied.

use std::{marker::PhantomData, ops::Range, sync::Arc};

use super::{
    device::Device,
    driver::{Event, Rows, Stream},
};
use crate::error::{Error, Result};

/// Memory of a device.
#[derive(Debug)]
pub struct Buffer {
    device: Arc<Device>,
    number: u64,
    at: u64,
    bytes: usize,
}

/// A part of a [`Buffer`].
#[derive(Clone, Copy, Debug)]
pub struct View<'b> {
    /// Of the buffer; 0 for none.
    number: u64,
    at: u64,
    bytes: usize,
    buffer: PhantomData<&'b Buffer>,
}

impl Buffer {
    /// `bytes` (at least one) of the device, with anything in them.
    ///
    /// # Errors
    /// [`Error::Memory`] when the device has no room; as [`Device::call`].
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let bytes = bytes.max(1);
        let at = device.call(|c| c.alloc(bytes))?;
        Ok(Self { device: device.clone(), number: device.add_buffer(), at, bytes })
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.bytes
    }

    /// The whole.
    pub fn view(&self) -> View<'_> {
        View { number: self.number, at: self.at, bytes: self.bytes, buffer: PhantomData }
    }

    /// A part.
    ///
    /// # Errors
    /// As [`View::part`].
    pub fn part(&self, range: Range<usize>) -> Result<View<'_>> {
        self.view().part(range)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // First, so that no prepared work that is about it is queued any more.
        self.device.remove_buffer(self.number);
        // What may be in use is left to the system's end: a device that fails here is not asked again.
        if self.device.finish().is_ok() {
            // SAFETY: `at` is from `alloc`, and everything that was queued is done.
            let _ = self.device.call(|c| unsafe { c.free(self.at) });
        }
    }
}

impl View<'_> {
    /// No memory, for a kernel's parameter that may be null.
    pub const NONE: View<'static> = View { number: 0, at: 0, bytes: 0, buffer: PhantomData };

    /// The number of its buffer on the device; 0 for none.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The address.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.bytes
    }

    /// A part of it.
    ///
    /// # Errors
    /// [`Error::Argument`] when it has no such part.
    pub fn part(&self, range: Range<usize>) -> Result<Self> {
        if range.start > range.end || range.end > self.bytes {
            return Err(Error::Argument(format!("{range:?} is no part of {} bytes on the GPU", self.bytes)));
        }
        Ok(Self { at: self.at + range.start as u64, bytes: range.len(), ..*self })
    }
}

/// Host memory that one stream of a device copies from and to.
#[derive(Debug)]
pub struct Pinned {
    device: Arc<Device>,
    at: *mut u8,
    bytes: usize,
    stream: Stream,
    /// Behind the last copy.
    done: Event,
    /// Whether that is what the event was recorded for.
    recorded: bool,
    pending: bool,
}

// SAFETY: the memory is reached through this value only, but for the device's copies, for which `host` waits.
unsafe impl Send for Pinned {}
// SAFETY: as above; a shared reference reaches nothing.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// `bytes` (at least one), zeroed.
    ///
    /// # Errors
    /// As [`Device::call`].
    pub fn new(device: &Arc<Device>, bytes: usize, stream: Stream) -> Result<Self> {
        let bytes = bytes.max(1);
        let done = device.event()?;
        let at = device.call(|c| c.alloc_pinned(bytes))?;
        Ok(Self { device: device.clone(), at, bytes, stream, done, recorded: true, pending: false })
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.bytes
    }

    /// The bytes, when no copy of them is under way any more.
    ///
    /// # Errors
    /// As [`Device::call`].
    pub fn host(&mut self) -> Result<&mut [u8]> {
        if self.pending {
            match self.recorded {
                true => self.device.call(|c| c.finish_event(self.done))?,
                false => self.device.call(|c| c.finish(self.stream))?,
            }
            self.pending = false;
        }
        // SAFETY: the memory has so many initialized bytes, is ours until `drop`, and no copy is under way.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) })
    }

    /// Queues a copy of the bytes `from` to the beginning of `to`.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is no room; as [`Device::call`].
    pub fn upload(&mut self, from: Range<usize>, to: View<'_>) -> Result<()> {
        let rows = Rows { count: 1, width: from.len(), pitch: from.len() };
        self.upload_rows(from.start, to, rows)
    }

    /// Queues a copy of all of `from` to the bytes from `to` on.
    ///
    /// # Errors
    /// As [`Pinned::upload`].
    pub fn download(&mut self, to: usize, from: View<'_>) -> Result<()> {
        let rows = Rows { count: 1, width: from.size(), pitch: from.size() };
        self.download_rows(to, from, rows)
    }

    /// Adds the numbers of `from` to `out`, in pieces that fit here; waits for them.
    ///
    /// # Errors
    /// As [`Pinned::upload`].
    pub fn collect(&mut self, from: View<'_>, out: &mut Vec<f32>) -> Result<()> {
        for at in (0..from.size()).step_by(self.size()) {
            let piece = from.part(at..from.size().min(at + self.size()))?;
            self.download(0, piece)?;
            out.extend_from_slice(bytemuck::cast_slice(&self.host()?[..piece.size()]));
        }
        Ok(())
    }

    /// Queues a copy of rows, which lie side by side from the byte `from` on, to `to`.
    ///
    /// # Errors
    /// As [`Pinned::upload`].
    pub fn upload_rows(&mut self, from: usize, to: View<'_>, rows: Rows) -> Result<()> {
        self.check(from, to, rows)?;
        // SAFETY: checked; the host's bytes are not touched before `host` has waited, the device's are not given back.
        self.device.call(|c| unsafe { c.upload(to.at, self.at.add(from), rows, self.stream) })?;
        self.queued()
    }

    /// Queues a copy of rows of `from`, which will lie side by side from the byte `to` on.
    ///
    /// # Errors
    /// As [`Pinned::upload`].
    pub fn download_rows(&mut self, to: usize, from: View<'_>, rows: Rows) -> Result<()> {
        self.check(to, from, rows)?;
        // SAFETY: as in `upload_rows`.
        self.device.call(|c| unsafe { c.download(self.at.add(to), from.at, rows, self.stream) })?;
        self.queued()
    }

    fn check(&self, place: usize, view: View<'_>, rows: Rows) -> Result<()> {
        let end = rows.count.checked_mul(rows.width).and_then(|n| n.checked_add(place));
        let fits =
            end.is_some_and(|end| end <= self.bytes) && rows.span() <= view.bytes && rows.pitch >= rows.width;
        match fits {
            true => Ok(()),
            false => Err(Error::Argument(format!("{rows:?} do not fit a copy of {} bytes", view.bytes))),
        }
    }

    fn queued(&mut self) -> Result<()> {
        // From the copy on, whether the event can be recorded or not.
        (self.pending, self.recorded) = (true, false);
        self.device.call(|c| c.record(self.done, self.stream))?;
        self.recorded = true;
        Ok(())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.host().is_ok() {
            // SAFETY: `at` is from `alloc_pinned`, and no copy is under way.
            let _ = self.device.call(|c| unsafe { c.free_pinned(self.at) });
        }
    }
}
