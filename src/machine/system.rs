//! What differs between operating systems: files that are read past the page cache, and what the system counts for this process.
//! The code for Linux alone has been run and measured; that for Windows was run under Wine.

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
};

/// Opens a file whose reads go past the page cache. Offsets, lengths and memory of reads are then whole pages.
///
/// # Errors
/// The system's, where the file system has no such reads.
pub fn open_direct(path: &Path) -> io::Result<File> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        OpenOptions::new().read(true).custom_flags(direct).open(path)
    }
    #[cfg(target_vendor = "apple")]
    {
        let file = OpenOptions::new().read(true).open(path)?;
        rustix::fs::fcntl_nocache(&file, true)?;
        Ok(file)
    }
    #[cfg(windows)]
    {
        use std::os::windows::fs::OpenOptionsExt;
        const FILE_FLAG_NO_BUFFERING: u32 = 0x2000_0000;
        OpenOptions::new().read(true).custom_flags(FILE_FLAG_NO_BUFFERING).open(path)
    }
    #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple", windows)))]
    {
        let _ = (path, OpenOptions::new());
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Reads at an offset without moving anything that threads share.
///
/// # Errors
/// The system's.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_at(file, buffer, offset);
    #[cfg(windows)]
    return std::os::windows::fs::FileExt::seek_read(file, buffer, offset);
}

/// What the system has counted for this process since it started. Zero where the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessUse {
    /// The most memory that it had at once, in bytes.
    pub peak_memory: u64,
    /// Page faults that waited for a disk.
    pub major_faults: u64,
    /// Bytes that it had storage deliver, by reads and by page faults.
    pub storage_read: u64,
}

impl ProcessUse {
    /// The counters now.
    pub fn now() -> Self {
        #[cfg(windows)]
        let (peak_memory, storage_read) = (super::windows::peak_memory(), 0);
        #[cfg(target_vendor = "apple")]
        let (peak_memory, storage_read) = (super::apple::peak_memory(), 0);
        #[cfg(not(any(windows, target_vendor = "apple")))]
        let (peak_memory, storage_read) = (listed("status", "VmHWM:") * 1024, listed("io", "read_bytes:"));
        Self { peak_memory, major_faults: major_faults(), storage_read }
    }
}

/// A number of this process that Linux lists.
#[cfg(not(any(windows, target_vendor = "apple")))]
fn listed(file: &str, name: &str) -> u64 {
    field(&std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default(), name)
}

/// Page faults of this process that waited for a disk; 0 where the system does not say. Every call of a mapped model asks.
pub fn major_faults() -> u64 {
    #[cfg(unix)]
    {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the call writes a `rusage` to where it is told to. Should it fail, the zeros are one: it is plain numbers.
        let usage = unsafe {
            libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
            usage.assume_init()
        };
        u64::try_from(usage.ru_majflt).unwrap_or(0)
    }
    #[cfg(not(unix))]
    0
}

/// The number behind `name` in a list of `name number` lines.
pub(super) fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_counts_this_process() {
        assert!(ProcessUse::now().peak_memory > 1 << 20);
    }

    /// The twelfth field; the second, in brackets, may hold blanks.
    #[test]
    #[cfg(target_os = "linux")]
    fn major_faults_are_those_that_the_system_lists() {
        let listed = || {
            let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
            let (_, behind) = stat.rsplit_once(')').unwrap();
            behind.split_whitespace().nth(9).unwrap().parse::<u64>().unwrap()
        };
        // Other tests may fault in between.
        let (before, found, after) = (listed(), major_faults(), listed());
        assert!((before..=after).contains(&found), "{before} {found} {after}");
    }

    #[test]
    fn fields_are_found_by_name() {
        let text = "VmPeak:\t  12 kB\nVmHWM:\t  34 kB\n";
        assert_eq!((field(text, "VmHWM:"), field(text, "VmSwap:")), (34, 0));
    }
}
