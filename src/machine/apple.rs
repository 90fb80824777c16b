//! What macOS says of memory and of this process. It compiles, and has not been run.

use std::mem::{MaybeUninit, zeroed};

use super::budget::Budget;

/// What this process could take now: pages that are free, and those of files and of nobody that are given up at once.
pub fn usable() -> Option<Budget> {
    // SAFETY: plain numbers, for which zeros are a value; the calls write to what they are given, whose size they are told in words.
    let (statistics, page) = unsafe {
        let mut statistics: libc::vm_statistics64 = zeroed();
        let mut words = libc::HOST_VM_INFO64_COUNT;
        let done = libc::host_statistics64(
            host(),
            libc::HOST_VM_INFO64,
            (&raw mut statistics).cast(),
            &raw mut words,
        );
        (done == libc::KERN_SUCCESS).then_some((statistics, libc::sysconf(libc::_SC_PAGESIZE)))
    }?;
    let pages = [statistics.free_count, statistics.inactive_count, statistics.purgeable_count];
    let pages: u64 = pages.into_iter().map(u64::from).sum();
    let bytes = pages * u64::try_from(page).ok()?;
    Some(Budget { bytes, set_by: "are free or can be at once (vm_stat)".into() })
}

/// This machine, for the call that asks it.
fn host() -> libc::mach_port_t {
    // SAFETY: asks for a port; the crate that has a declaration which is not deprecated would be one more.
    #[expect(deprecated, reason = "libc refers to a crate of its own for it")]
    unsafe {
        libc::mach_host_self()
    }
}

/// The most memory that this process had at once, in bytes.
pub fn peak_memory() -> u64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call writes a `rusage` to where it is told to. Should it fail, the zeros are one: it is plain numbers.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    u64::try_from(usage.ru_maxrss).unwrap_or(0)
}
