//! A mapped file that fails while it is read, on Windows: its drive or the share that it lies on is gone. The system then raises an exception in the
//! thread that reads it, which ends the process; a handler puts zeros in place of the mapping (`watch.rs`).
//!
//! A view cannot be replaced in part, or in one step. The first thread that fails unmaps it and reserves its addresses, and those who read it in the
//! meantime wait; what is read of it afterwards is committed piece by piece. The addresses are then kept to the end of the process, since the owner of
//! the view will once more unmap what it finds at their start, and must find nobody else's.

use std::{
    ptr,
    sync::{
        Once,
        atomic::{
            AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use windows_sys::Win32::{
    Foundation::{EXCEPTION_ACCESS_VIOLATION, EXCEPTION_IN_PAGE_ERROR},
    System::{
        Diagnostics::Debug::{
            AddVectoredExceptionHandler, EXCEPTION_CONTINUE_EXECUTION, EXCEPTION_CONTINUE_SEARCH,
            EXCEPTION_POINTERS,
        },
        Memory::{
            MEM_COMMIT, MEM_RESERVE, MEMORY_MAPPED_VIEW_ADDRESS, PAGE_READONLY, UnmapViewOfFile, VirtualAlloc,
        },
        Threading::Sleep,
    },
};

use super::watch::place_of;

/// What is committed at once.
const PIECE: usize = 64 << 10;
/// The steps by which a view turns into reserved addresses, kept with its place.
pub(super) const WHOLE: usize = 0;
const GOING: usize = 1;
const GONE: usize = 2;
const LOST: usize = 3;

/// Bytes of a page.
pub(super) const fn page() -> usize {
    4096
}

/// Installs the handler, once.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler keeps to what a handler may do, and is there as long as the process is.
        if unsafe { AddVectoredExceptionHandler(1, Some(on_exception)) }.is_null() {
            tracing::warn!(
                "no handler for files that cannot be read while they are mapped: {}",
                std::io::Error::last_os_error()
            );
        }
    });
}

unsafe extern "system" fn on_exception(exception: *mut EXCEPTION_POINTERS) -> i32 {
    // SAFETY: the system gives a handler the record of its exception; both kinds have two words or more, the second of which is the address.
    let (code, address) = unsafe {
        let record = &*(*exception).ExceptionRecord;
        (record.ExceptionCode, record.ExceptionInformation[1])
    };
    let goes_on = match code {
        EXCEPTION_IN_PAGE_ERROR => replace(address, true),
        EXCEPTION_ACCESS_VIOLATION => replace(address, false),
        _ => false,
    };
    if goes_on { EXCEPTION_CONTINUE_EXECUTION } else { EXCEPTION_CONTINUE_SEARCH }
}

/// Puts zeros where `address` is, if that lies in a watched mapping which has `failed` now or before.
fn replace(address: usize, failed: bool) -> bool {
    let Some((place, range)) = place_of(address) else { return false };
    let steps: &AtomicUsize = &place.steps;
    if failed && steps.compare_exchange(WHOLE, GOING, Acquire, Relaxed).is_ok() {
        place.damage();
        let start = ptr::with_exposed_provenance_mut(range.start);
        // SAFETY: a mapping of ours, which is not unmapped by its owner: the thread that was interrupted is reading it. Nobody has a mutable reference to it,
        // and what was read from it will not be used, since it is marked as damaged. Its addresses are reserved again at once; should another thread
        // have got them, nothing is changed there.
        let reserved = unsafe {
            UnmapViewOfFile(MEMORY_MAPPED_VIEW_ADDRESS { Value: start });
            VirtualAlloc(start, range.len(), MEM_RESERVE, PAGE_READONLY)
        };
        steps.store(if reserved == start { GONE } else { LOST }, Release);
    }
    while steps.load(Acquire) == GOING {
        // SAFETY: gives the rest of this thread's time away.
        unsafe { Sleep(0) };
    }
    if steps.load(Acquire) != GONE {
        return false;
    }
    let piece = address - (address - range.start) % PIECE;
    let length = PIECE.min(range.end - piece);
    // SAFETY: within what is reserved above. Committing what is committed already changes nothing, and new pages hold zeros.
    let committed =
        unsafe { VirtualAlloc(ptr::with_exposed_provenance_mut(piece), length, MEM_COMMIT, PAGE_READONLY) };
    !committed.is_null()
}

#[cfg(test)]
mod tests {
    use windows_sys::Win32::System::Diagnostics::Debug::RaiseException;

    use super::super::map::Bytes;
    use super::*;

    /// The exception is raised by hand, as the system would when the drive fails.
    #[test]
    fn what_cannot_be_read_is_zeros_and_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let (whole, bytes) = (Bytes::map(&path).unwrap(), Bytes::map(&path).unwrap());
        assert_eq!((bytes[0], bytes[(1 << 20) - 1]), (7, 7));
        bytes.check_file(&path).unwrap();
        let words = [0, bytes.as_ptr().addr() + 300_000, 0xC000_009C];
        // SAFETY: an exception that our handler goes on from.
        unsafe { RaiseException(EXCEPTION_IN_PAGE_ERROR as u32, 0, 3, words.as_ptr()) };
        std::thread::scope(|scope| {
            for at in 0..4 {
                let bytes = &bytes;
                scope.spawn(move || assert!(bytes.iter().skip(at * 1000).step_by(4096).all(|&b| b == 0)));
            }
        });
        let problem = bytes.check_file(&path).unwrap_err().to_string();
        assert!(problem.contains("could not be read"), "{problem}");
        assert!(whole.iter().all(|&b| b == 7));
        whole.check_file(&path).unwrap();
    }
}
