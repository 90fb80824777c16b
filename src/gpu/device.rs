//! An open device, which is asked nothing more after it has failed.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use super::driver::{Context, Driver, Event, Fault, Info, Stream};
use crate::{
    error::{Error, Result},
    pager::sync::{Mutex, lock},
};

/// An open device.
#[derive(Debug)]
pub struct Device {
    info: Info,
    context: Box<dyn Context>,
    failed: AtomicBool,
    /// The buffers that there are, by number.
    buffers: Mutex<HashSet<u64>>,
    last_buffer: AtomicU64,
}

impl Device {
    /// Opens a device of the driver.
    ///
    /// # Errors
    /// [`Error::Gpu`] with the driver's reason.
    pub fn open(driver: &dyn Driver, info: &Info) -> Result<Arc<Self>> {
        let context = driver.open(info.number).map_err(|fault| gpu_error(&info.name, &fault))?;
        Ok(Arc::new(Self {
            info: info.clone(),
            context,
            failed: AtomicBool::new(false),
            buffers: Mutex::default(),
            last_buffer: AtomicU64::new(0),
        }))
    }

    /// What it is.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Whether a call has failed, for another reason than memory: the device is not used any more.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Relaxed)
    }

    /// One call of the driver.
    ///
    /// # Errors
    /// [`Error::Memory`] when the device has none; [`Error::Gpu`] for other failures, and for every call after such a one.
    pub fn call<T>(&self, call: impl FnOnce(&dyn Context) -> Result<T, Fault>) -> Result<T> {
        if self.has_failed() {
            return Err(Error::Gpu {
                device: self.info.name.clone(),
                problem: "it has failed in an earlier call".into(),
            });
        }
        call(&*self.context).map_err(|fault| {
            if !fault.no_memory {
                self.failed.store(true, Relaxed);
            }
            gpu_error(&self.info.name, &fault)
        })
    }

    /// A number for a new buffer, which no other has or had. It is not 0.
    pub(super) fn add_buffer(&self) -> u64 {
        let number = 1 + self.last_buffer.fetch_add(1, Relaxed);
        lock(&self.buffers).insert(number);
        number
    }

    /// From now on no [`Device::with_buffers`] goes on with this buffer.
    pub(super) fn remove_buffer(&self, number: u64) {
        lock(&self.buffers).remove(&number);
    }

    /// One call of the driver, if all of these buffers are there, which stay until it has returned.
    pub(super) fn with_buffers<T>(
        &self,
        numbers: &[u64],
        call: impl FnOnce(&dyn Context) -> Result<T, Fault>,
    ) -> Result<T> {
        let there = lock(&self.buffers);
        if !numbers.iter().all(|n| there.contains(n)) {
            return Err(Error::Argument("memory of prepared work was given back".into()));
        }
        self.call(call)
    }

    /// A new event.
    ///
    /// # Errors
    /// As [`Device::call`].
    pub fn event(&self) -> Result<Event> {
        self.call(|c| c.event())
    }

    /// `later` goes on when everything that is in `first` now is done; `event` is used for it.
    ///
    /// # Errors
    /// As [`Device::call`].
    pub fn order(&self, first: Stream, later: Stream, event: Event) -> Result<()> {
        self.call(|c| c.record(event, first))?;
        self.call(|c| c.wait(later, event))
    }

    /// Waits for everything that was queued.
    ///
    /// # Errors
    /// As [`Device::call`].
    pub fn finish(&self) -> Result<()> {
        self.call(|c| c.finish(Stream::Copy))?;
        self.call(|c| c.finish(Stream::Compute))
    }
}

fn gpu_error(device: &str, fault: &Fault) -> Error {
    if fault.no_memory {
        return Error::Memory(format!(
            "the GPU {device} has no memory ({}); give it less with --gpu-memory, a shorter --context or --kv q8_0, or use --gpu off",
            fault.reason
        ));
    }
    Error::Gpu { device: device.into(), problem: format!("{}: {}", fault.call, fault.reason) }
}
