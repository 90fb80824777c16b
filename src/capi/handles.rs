//! Handles: numbers that look like pointers. A table says what they stand for, and no number is given twice, so a handle that was
//! freed, or never was one, is found out and not followed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::{
    args::Out,
    status::{Failure, yuan_status::*},
};

/// The objects of one kind.
pub(super) struct Table<T> {
    kind: &'static str,
    objects: Mutex<BTreeMap<usize, Arc<T>>>,
}

/// Where the numbers come from; one source for all kinds, so that no handle fits two tables.
static NEXT: AtomicUsize = AtomicUsize::new(1);
static LIVE: AtomicUsize = AtomicUsize::new(0);
/// Handles are multiples of this, as pointers to something would be.
const STEP: usize = 16;

impl<T> Table<T> {
    pub const fn new(kind: &'static str) -> Self {
        Self { kind, objects: Mutex::new(BTreeMap::new()) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Arc<T>>> {
        // Nothing panics while the map is changed.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in an object and writes its handle to `out`.
    pub fn add<H>(&self, object: T, out: Out<*mut H>) -> Result<(), Failure> {
        let number = NEXT
            .fetch_update(Relaxed, Relaxed, |n| (n < usize::MAX / STEP).then_some(n + 1))
            .map_err(|_| Failure::new(YUAN_ERROR_MEMORY, "there are no handles left; restart the program"))?;
        let id = number * STEP;
        self.lock().insert(id, Arc::new(object));
        LIVE.fetch_add(1, Relaxed);
        out.write(std::ptr::without_provenance_mut(id));
        Ok(())
    }

    /// The object behind a handle. It lives until this call is over, also when another thread frees the handle.
    pub fn get<H>(&self, handle: *const H) -> Result<Arc<T>, Failure> {
        let found = self.lock().get(&handle.addr()).cloned();
        found.ok_or_else(|| self.no_such(handle.addr()))
    }

    /// Takes the object out; a null handle has none, as with free().
    pub fn remove<H>(&self, handle: *mut H) -> Result<Option<Arc<T>>, Failure> {
        if handle.is_null() {
            return Ok(None);
        }
        let found = self.lock().remove(&handle.addr()).ok_or_else(|| self.no_such(handle.addr()))?;
        LIVE.fetch_sub(1, Relaxed);
        Ok(Some(found))
    }

    fn no_such(&self, id: usize) -> Failure {
        let kind = self.kind;
        Failure::new(
            YUAN_ERROR_HANDLE,
            match id {
                0 => format!("the handle of the {kind} is null; make one with yuan_{kind}_new or _open"),
                _ => format!("{id:#x} is no live {kind}: it was freed, or is a handle of something else"),
            },
        )
    }
}

/// Locks what one call at a time may use.
pub(super) fn exclusive<'a, T>(what: &str, lock: &'a Mutex<T>) -> Result<MutexGuard<'a, T>, Failure> {
    lock.try_lock().map_err(|e| match e {
        TryLockError::WouldBlock => Failure::new(
            YUAN_ERROR_BUSY,
            format!("the {what} is in use by another call; wait until it returns"),
        ),
        TryLockError::Poisoned(_) => {
            Failure::new(YUAN_ERROR_INTERNAL, format!("an earlier call broke the {what}; free it"))
        }
    })
}

/// How many handles are open, of all kinds together: 0 when everything was freed. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_live_handles() -> usize {
    LIVE.load(Relaxed)
}
