//! What Windows says of memory and of this process. It has been run under Wine only.

use std::{mem::zeroed, ptr::null_mut};

use windows_sys::Win32::System::{
    JobObjects::{
        JOB_OBJECT_LIMIT_JOB_MEMORY, JOB_OBJECT_LIMIT_PROCESS_MEMORY, JOBOBJECT_EXTENDED_LIMIT_INFORMATION,
        JobObjectExtendedLimitInformation, QueryInformationJobObject,
    },
    ProcessStatus::{K32GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS},
    SystemInformation::{GlobalMemoryStatusEx, MEMORYSTATUSEX},
    Threading::GetCurrentProcess,
};

use super::budget::Budget;

/// What this process could take now: what is free, what may still be committed, and what is left of the limits of its job.
pub fn usable() -> Option<Budget> {
    // SAFETY: plain numbers, for which zeros are a value; the call writes to what it is given, whose size it is told.
    let memory = unsafe {
        let mut memory: MEMORYSTATUSEX = zeroed();
        memory.dwLength = size_of::<MEMORYSTATUSEX>() as u32;
        (GlobalMemoryStatusEx(&raw mut memory) != 0).then_some(memory)
    }?;
    let free = Budget { bytes: memory.ullAvailPhys, set_by: "are free".into() };
    let commit = Budget {
        bytes: memory.ullAvailPageFile,
        set_by: "may still be committed (memory and page file)".into(),
    };
    [commit].into_iter().chain(job()).fold(Some(free), |least, room| {
        least.map(|least| if room.bytes < least.bytes { room } else { least })
    })
}

/// What is left of the limits of the job that this process is in, as a container or a terminal may have made one.
fn job() -> Option<Budget> {
    // SAFETY: plain numbers, for which zeros are a value; the call writes to what it is given, whose size it is told. No handle means the job of this process.
    let limits = unsafe {
        let mut limits: JOBOBJECT_EXTENDED_LIMIT_INFORMATION = zeroed();
        let found = QueryInformationJobObject(
            null_mut(),
            JobObjectExtendedLimitInformation,
            (&raw mut limits).cast(),
            size_of::<JOBOBJECT_EXTENDED_LIMIT_INFORMATION>() as u32,
            null_mut(),
        );
        (found != 0).then_some(limits)
    }?;
    let flags = limits.BasicLimitInformation.LimitFlags;
    let of = |flag: u32, bytes: usize| (flags & flag != 0).then_some(bytes as u64);
    let bytes = [
        of(JOB_OBJECT_LIMIT_PROCESS_MEMORY, limits.ProcessMemoryLimit),
        of(JOB_OBJECT_LIMIT_JOB_MEMORY, limits.JobMemoryLimit),
    ];
    let limit = bytes.into_iter().flatten().min()?;
    let taken = counters().map_or(0, |counters| counters.PagefileUsage as u64);
    Some(Budget { bytes: limit.saturating_sub(taken), set_by: "are left of the limit of its job".into() })
}

/// The most memory that this process had at once, in bytes.
pub fn peak_memory() -> u64 {
    counters().map_or(0, |counters| counters.PeakWorkingSetSize as u64)
}

fn counters() -> Option<PROCESS_MEMORY_COUNTERS> {
    let size = size_of::<PROCESS_MEMORY_COUNTERS>() as u32;
    // SAFETY: plain numbers, for which zeros are a value; the call writes to what it is given, whose size it is told.
    unsafe {
        let mut counters: PROCESS_MEMORY_COUNTERS = zeroed();
        counters.cb = size;
        (K32GetProcessMemoryInfo(GetCurrentProcess(), &raw mut counters, size) != 0).then_some(counters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_what_is_free_and_what_was_taken() {
        let usable = usable().unwrap();
        assert!((1 << 20..1 << 50).contains(&usable.bytes), "{usable:?}");
        assert!(peak_memory() > 1 << 20);
    }
}
