//! A mapped file that shrinks or fails while it is read, on Unix. The system then sends SIGBUS, which ends the process; a handler puts pages of
//! zeros in place of those that are gone (`watch.rs`).
//!
//! The handler is installed when the first file is mapped. What is not ours goes to the handler that was there before.

use std::{
    ffi::{c_int, c_void},
    io,
    ptr::{null, null_mut},
    sync::{
        Once,
        atomic::{
            AtomicPtr, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use rustix::mm::{MapFlags, ProtFlags};

use super::watch::place_of;

/// Code of a Linux signal for broken memory that nobody is reading (`BUS_MCEERR_AO`): no fault of the thread that hears of it.
const MEMORY_FOUND_BROKEN: c_int = 5;

/// What SIGBUS did before; never freed.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(null_mut());
static PAGE: AtomicUsize = AtomicUsize::new(4096);

/// Bytes of a page, once the handler is installed.
pub(super) fn page() -> usize {
    PAGE.load(Relaxed)
}

/// Installs the handler, once.
pub(super) fn install() {
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
    let address = unsafe {
        let is_fault = (*info).si_code > 0 && (*info).si_code != MEMORY_FOUND_BROKEN;
        is_fault.then(|| (*info).si_addr().addr())
    };
    if !address.is_some_and(replace) {
        // SAFETY: these are the arguments of the handler.
        unsafe { pass_on(signal, info, context) };
    }
}

/// Puts zeros in place of a watched mapping from the page of `address` on, where that lies in one.
fn replace(address: usize) -> bool {
    let Some((place, range)) = place_of(address) else { return false };
    let start = address & !(page() - 1);
    place.damage();
    // SAFETY: the range lies within a mapping of ours, which is not unmapped: the thread that was interrupted is reading it. Nobody has a mutable
    // reference to it, and what was read from it will not be used, since it is marked as damaged. The call is a bare system call, that neither
    // takes locks nor allocates.
    let mapped = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::with_exposed_provenance_mut(start),
            range.end - start,
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
