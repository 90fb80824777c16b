//! Experts of a container that is still coming: a read waits until its expert is there, and is what was written.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use crate::{container::Arriving, error::Error, machine::source::Source};

/// A file, and who knows what of it has come.
pub(crate) struct ArrivingExperts {
    file: Box<dyn Source>,
    arriving: Arc<Arriving>,
    /// Experts that did not come, by their offset, and why. They are not waited for again, tile after tile, before they are asked for anew.
    failed: Mutex<HashMap<u64, Error>>,
    closed: AtomicBool,
}

impl ArrivingExperts {
    pub(crate) fn new(file: Box<dyn Source>, arriving: Arc<Arriving>) -> Self {
        Self { file, arriving, failed: Mutex::default(), closed: AtomicBool::new(false) }
    }

    fn failed(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Error>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the expert that has the byte at `offset`.
    fn wait(&self, offset: u64) -> Result<(), Error> {
        let Some(expert) = self.arriving.start_of(offset) else { return Ok(()) };
        let known = || self.failed().get(&expert).map_or(Ok(()), |problem| Err(problem.again()));
        known()?;
        // Another thread may have waited for it meanwhile, and in vain.
        let go_on = |_| !self.closed.load(Relaxed) && !self.failed().contains_key(&expert);
        let brought = self.arriving.bring(expert, &go_on);
        if let Err(problem) = &brought {
            known()?;
            self.failed().insert(expert, problem.again());
        }
        brought
    }
}

impl Source for ArrivingExperts {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.wait(offset).map_err(io::Error::other)?;
        self.file.read_at(buffer, offset)
    }

    fn expect(&self, offset: u64, _: u64) {
        self.failed().remove(&offset);
        self.arriving.expect(offset);
    }

    fn close(&self) {
        self.closed.store(true, Relaxed);
    }
}
