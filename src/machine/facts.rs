//! What the system says of this machine and of what this process may take, for people who look for a cause. What it does not say is `None`.

use std::fs;

use super::system::field;

/// The name of the CPU.
pub fn cpu_name() -> Option<String> {
    let text = read("/proc/cpuinfo");
    let known = cpu_field(&text, "model name");
    // Arm's kernel has numbers only.
    let [maker, part] = ["CPU implementer", "CPU part"].map(|name| cpu_field(&text, name));
    if !known.is_empty() {
        Some(known)
    } else if !part.is_empty() {
        Some(format!("Arm CPU of maker {maker}, part {part}"))
    } else {
        std::env::var("PROCESSOR_IDENTIFIER").ok().filter(|_| cfg!(windows))
    }
}

/// The first value of that name in the text of `/proc/cpuinfo`; empty where there is none.
pub(crate) fn cpu_field(text: &str, name: &str) -> String {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.trim() == name).map_or("", |(_, value)| value.trim()).to_owned()
}

/// Memory of the whole machine, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All that there is.
    pub total: u64,
    /// What programs could take without swapping.
    pub available: u64,
    /// Swap that is in use.
    pub swapped: u64,
}

/// The memory.
pub fn memory() -> Option<Memory> {
    let text = read("/proc/meminfo");
    let bytes = |name| field(&text, name) * 1024;
    let swapped = bytes("SwapTotal:").saturating_sub(bytes("SwapFree:"));
    let memory = Memory { total: bytes("MemTotal:"), available: bytes("MemAvailable:"), swapped };
    (memory.total > 0).then_some(memory)
}

/// When the system gives pages of 2 MiB to programs: `always`, `madvise` or `never`.
pub fn huge_pages() -> Option<String> {
    let text = read("/sys/kernel/mm/transparent_hugepage/enabled");
    let (_, chosen) = text.split_once('[')?;
    chosen.split_once(']').map(|(chosen, _)| chosen.to_owned())
}

/// What this process may take; `None`: as much as there is, or the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of addresses, of files that are mapped too.
    pub address_space: Option<u64>,
    /// Those of them that are in use.
    pub addresses_used: Option<u64>,
    /// Files and connections that are open.
    pub open_files: Option<u64>,
    /// Threads and processes of this user.
    pub processes: Option<u64>,
}

impl Limits {
    /// Those of this process now.
    pub fn now() -> Self {
        let used = field(&read("/proc/self/status"), "VmSize:") * 1024;
        let addresses_used = (used > 0).then_some(used);
        #[cfg(unix)]
        {
            use rustix::process::{Resource, getrlimit};
            let limit = |resource| getrlimit(resource).current;
            Self {
                address_space: limit(Resource::As),
                addresses_used,
                open_files: limit(Resource::Nofile),
                processes: limit(Resource::Nproc),
            }
        }
        #[cfg(not(unix))]
        Self { addresses_used, ..Self::default() }
    }

    /// Bytes of addresses that are left, where they are limited.
    pub fn addresses_left(&self) -> Option<u64> {
        Some(self.address_space?.saturating_sub(self.addresses_used.unwrap_or(0)))
    }
}

/// The version of NVIDIA's driver in the kernel, such as `550.54.14`.
pub fn nvidia_driver() -> Option<String> {
    version_in(&read("/proc/driver/nvidia/version"))
}

/// The first word of a text that is numbers with points between them.
fn version_in(text: &str) -> Option<String> {
    let is_version = |word: &&str| {
        let mut parts = word.split('.');
        word.contains('.') && parts.all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    text.split_whitespace().find(is_version).map(str::to_owned)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_says_its_version_in_either_form() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version:  gcc version 12.2.0";
        assert_eq!(version_in(closed).as_deref(), Some("535.104.05"));
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build";
        assert_eq!(version_in(open).as_deref(), Some("550.54.14"));
        for none in ["", "NVRM version: unknown", "a.b 1. .2 3"] {
            assert_eq!(version_in(none), None, "{none}");
        }
    }

    #[test]
    fn the_first_of_several_cpus_is_named() {
        let text = "processor\t: 0\nmodel name\t: A CPU: fast\nprocessor\t: 1\nmodel name\t: B\n";
        assert_eq!(cpu_field(text, "model name"), "A CPU: fast");
        assert_eq!(cpu_field(text, "CPU part"), "");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn linux_says_what_there_is() {
        let memory = memory().unwrap();
        assert!(memory.available <= memory.total && memory.total > 1 << 20, "{memory:?}");
        let limits = Limits::now();
        assert!(limits.addresses_used > Some(1 << 20), "{limits:?}");
        let limited = Limits { address_space: Some(10), addresses_used: Some(3), ..limits };
        assert_eq!(limited.addresses_left(), Some(7));
        assert_eq!(Limits { address_space: None, ..limits }.addresses_left(), None);
    }
}
