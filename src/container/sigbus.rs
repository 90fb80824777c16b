//! Surviving a mapped file that shrinks or fails while it is read. The system then sends SIGBUS, which ends the process; a handler
//! puts pages of zeros in place of those that are gone, and notes that the mapping is damaged. Whoever has read it asks afterwards.
//!
//! The handler is installed when the first file is mapped. What is not ours goes to the handler that was there before.

use std::{
    ffi::{c_int, c_void},
    io,
    ops::Range,
    ptr::{null, null_mut},
    sync::{
        Mutex, Once, PoisonError,
        atomic::{
            AtomicBool, AtomicPtr, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
            fence,
        },
    },
};

use rustix::mm::{MapFlags, ProtFlags};

/// Files that can be mapped at the same time.
const MOST: usize = 1024;

/// A mapping that the handler knows. A handler takes no locks: it reads words, and a version that is odd while they are written.
struct Place {
    version: AtomicUsize,
    start: AtomicUsize,
    /// 0 where the place is free.
    end: AtomicUsize,
    damaged: AtomicBool,
}

static PLACES: [Place; MOST] = [const { Place::new() }; MOST];
/// For those who write to [`PLACES`].
static WRITING: Mutex<()> = Mutex::new(());
/// What SIGBUS did before; never freed.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(null_mut());
static PAGE: AtomicUsize = AtomicUsize::new(4096);

impl Place {
    const fn new() -> Self {
        Self {
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            damaged: AtomicBool::new(false),
        }
    }

    /// With [`WRITING`] held.
    fn write(&self, range: Range<usize>) {
        let version = self.version.load(Relaxed);
        self.version.store(version + 1, Relaxed);
        fence(Release);
        self.start.store(range.start, Relaxed);
        self.end.store(range.end, Relaxed);
        self.version.store(version + 2, Release);
    }

    /// The addresses, unless they are being changed: those of a mapping that is in use are not.
    fn range(&self) -> Option<Range<usize>> {
        let version = self.version.load(Acquire);
        let range = self.start.load(Relaxed)..self.end.load(Relaxed);
        fence(Acquire);
        (version.is_multiple_of(2) && self.version.load(Relaxed) == version).then_some(range)
    }
}

/// A mapping that is watched until this is dropped, which must be before it is unmapped.
pub(super) struct Watch(&'static Place);

impl Watch {
    /// Watches the mapping of a file at `range`.
    ///
    /// # Errors
    /// When too many are watched.
    ///
    /// # Safety
    /// `range` is a mapping for reading that is nobody else's, and stays so until the `Watch` is dropped.
    pub unsafe fn new(range: Range<usize>) -> io::Result<Self> {
        install();
        let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        let free = PLACES.iter().find(|place| place.end.load(Relaxed) == 0);
        let place = free.ok_or_else(|| io::Error::other(format!("{MOST} files are mapped already")))?;
        place.damaged.store(false, Relaxed);
        // The last page of a mapping is a whole one.
        place.write(range.start..range.end.next_multiple_of(PAGE.load(Relaxed)));
        Ok(Self(place))
    }

    /// Whether something was read from the mapping that could not be had.
    pub fn is_damaged(&self) -> bool {
        self.0.damaged.load(Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.write(0..0);
    }
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        PAGE.store(usize::try_from(page).unwrap_or(4096), Relaxed);
        // SAFETY: a `sigaction` is plain data, for which zeros are a value; the calls read and write what they are given. The handler keeps to
        // what a handler may do. What was there before is stored first, since the handler may be called at once.
        let done = unsafe {
            let mut previous: libc::sigaction = std::mem::zeroed();
            let asked = libc::sigaction(libc::SIGBUS, null(), &raw mut previous);
            PREVIOUS.store(Box::into_raw(Box::new(previous)), Release);
            let mut ours: libc::sigaction = std::mem::zeroed();
            ours.sa_sigaction = on_sigbus as *const () as usize;
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut ours.sa_mask);
            asked == 0 && libc::sigaction(libc::SIGBUS, &raw const ours, null_mut()) == 0
        };
        if !done {
            tracing::warn!("no handler for SIGBUS: {}", io::Error::last_os_error());
        }
    });
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system gives a handler with SA_SIGINFO the description of its signal. Only one that the system itself sends, with a code above 0,
    // has an address.
    let address = unsafe { ((*info).si_code > 0).then(|| (*info).si_addr().addr()) };
    if !address.is_some_and(replace) {
        // SAFETY: these are the arguments of the handler.
        unsafe { pass_on(signal, info, context) };
    }
}

/// Puts zeros in place of a watched mapping from the page of `address` on, where that lies in one.
fn replace(address: usize) -> bool {
    let of_address = |place: &'static Place| Some(place).zip(place.range().filter(|r| r.contains(&address)));
    let Some((place, Range { end, .. })) = PLACES.iter().find_map(of_address) else { return false };
    let start = address & !(PAGE.load(Relaxed) - 1);
    place.damaged.store(true, Release);
    // SAFETY: the range lies within a mapping of ours, which is not unmapped: the thread that was interrupted is reading it. Nobody has a mutable
    // reference to it, and what was read from it will not be used, since it is marked as damaged. The call is a bare system call, that neither
    // takes locks nor allocates.
    let mapped = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::with_exposed_provenance_mut(start),
            end - start,
            ProtFlags::READ,
            MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
        )
    };
    mapped.is_ok()
}

/// Does what would have been done without us.
///
/// # Safety
/// The arguments are those of the handler.
unsafe fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: stored before the handler was installed, and never changed or freed.
    let previous = unsafe { PREVIOUS.load(Acquire).as_ref() };
    // SAFETY: as in `on_sigbus`.
    let sent = unsafe { (*info).si_code <= 0 };
    match previous.map(|p| (p.sa_sigaction, p.sa_flags)) {
        Some((libc::SIG_IGN, _)) if sent => {}
        None | Some((libc::SIG_DFL | libc::SIG_IGN, _)) => {
            // SAFETY: a `sigaction` of zeros asks for the default, which ends the process: when this handler has returned, since the signal
            // is blocked until then.
            unsafe {
                let default: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &raw const default, null_mut());
                libc::raise(signal);
            }
        }
        Some((handler, flags)) => {
            let handler = std::ptr::with_exposed_provenance::<()>(handler);
            if flags & libc::SA_SIGINFO != 0 {
                // SAFETY: with this flag it is a function of three arguments.
                let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                    unsafe { std::mem::transmute(handler) };
                handler(signal, info, context);
            } else {
                // SAFETY: without the flag it is a function of one.
                let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
                handler(signal);
            }
        }
    }
}
