//! How much memory a model may take: what the machine has free, what the control groups of this process allow, or what the user says.

use std::{fs, path::Path, str::FromStr};

use super::system::field;

/// A budget as people write it: `8G`, `6.5GiB`, `12000000000`, `50%`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// So many bytes.
    Bytes(u64),
    /// A share of what is usable, of 100.
    Percent(f64),
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let number: f64 =
            number.parse().map_err(|_| format!("{text:?} is not a size; give one like 8G or 50%"))?;
        let factor = match unit.to_ascii_lowercase().as_str() {
            "%" if number > 0.0 && number <= 100.0 => return Ok(Self::Percent(number)),
            "%" => return Err(format!("{text} is not between 0 and 100 %")),
            "" | "b" => 1.0,
            "k" | "kb" => 1e3,
            "m" | "mb" => 1e6,
            "g" | "gb" => 1e9,
            "t" | "tb" => 1e12,
            "kib" => 1024.0,
            "mib" => 1_048_576.0,
            "gib" => 1_073_741_824.0,
            "tib" => 1_099_511_627_776.0,
            _ => return Err(format!("{unit:?} is not a unit; use k, M, G, KiB, MiB, GiB or %")),
        };
        let bytes = number * factor;
        if (1.0..1e18).contains(&bytes) {
            Ok(Self::Bytes(bytes as u64))
        } else {
            Err(format!("{text} is not a size of memory"))
        }
    }
}

/// The memory that a model may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// In bytes.
    pub bytes: u64,
    /// What sets it, for people.
    pub set_by: String,
}

impl Budget {
    /// What `limit` asks for, or what is usable less a reserve for everything else: a sixteenth, from 256 MiB to 1 GiB.
    pub fn of(limit: Option<Limit>) -> Self {
        let usable = usable();
        match limit {
            Some(Limit::Bytes(bytes)) => {
                if bytes > usable.bytes {
                    tracing::warn!(
                        "--memory {bytes} is more than the {} bytes that {}",
                        usable.bytes,
                        usable.set_by
                    );
                }
                Self { bytes, set_by: "--memory".into() }
            }
            Some(Limit::Percent(share)) => {
                let bytes = (usable.bytes as f64 * share / 100.0) as u64;
                Self {
                    bytes,
                    set_by: format!("--memory {share}%, where {} bytes {}", usable.bytes, usable.set_by),
                }
            }
            None => {
                let reserve = (usable.bytes / 16).clamp(256 << 20, 1 << 30);
                Self { bytes: usable.bytes.saturating_sub(reserve), ..usable }
            }
        }
    }
}

/// What this process could take now. Where the system does not say, the program goes on with a machine of 8 GiB, and `--memory` says better.
fn usable() -> Budget {
    #[cfg(windows)]
    let said = super::windows::usable();
    #[cfg(target_vendor = "apple")]
    let said = super::apple::usable();
    #[cfg(not(any(windows, target_vendor = "apple")))]
    let said = usable_by(Path::new("/proc"), Path::new("/sys/fs/cgroup"));
    said.unwrap_or_else(|| Budget { bytes: 8 << 30, set_by: "are assumed: this system does not say".into() })
}

/// What Linux says of it. `proc` and `groups` are the roots of the two file systems.
#[cfg_attr(
    all(not(test), any(windows, target_vendor = "apple")),
    expect(dead_code, reason = "Linux alone has such files")
)]
fn usable_by(proc: &Path, groups: &Path) -> Option<Budget> {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let free = match field(&read(&proc.join("meminfo")), "MemAvailable:") {
        0 => return None,
        kib => Budget { bytes: kib * 1024, set_by: "are free (MemAvailable)".into() },
    };
    let membership = read(&proc.join("self/cgroup"));
    let rooms = membership.lines().flat_map(|line| group_rooms(line, groups));
    Some(rooms.fold(free, |least, room| if room.bytes < least.bytes { room } else { least }))
}

/// The room of a control group and of all that it lies in. A line is `number:controllers:path`; version 2 has no controllers.
fn group_rooms(line: &str, groups: &Path) -> Vec<Budget> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
    let (mounts, limits, usage, cache): (&[&str], &[&str], _, _) = match controllers {
        "" => (&["", "unified"], &["memory.max", "memory.high"], "memory.current", "inactive_file"),
        c if c.split(',').any(|c| c == "memory") => {
            (&["memory"], &["memory.limit_in_bytes"], "memory.usage_in_bytes", "total_inactive_file")
        }
        _ => return Vec::new(),
    };
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let mut rooms = Vec::new();
    for mount in mounts.iter().map(|m| groups.join(m)) {
        // Inside a container the path may be that of the host: the files then lie at the root.
        for group in Path::new(path.trim_start_matches('/')).ancestors().map(|p| mount.join(p)) {
            let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
            // Pages of files that nobody has used lately make room when it is wanted.
            let taken = number(&group.join(usage)).unwrap_or(0).saturating_sub(field(&stat, cache));
            for limit in limits.iter().filter_map(|l| number(&group.join(l))) {
                let set_by = format!("are left of the limit of {}", group.display());
                rooms.push(Budget { bytes: limit.saturating_sub(taken), set_by });
            }
        }
    }
    rooms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!("8G".parse(), Ok(Limit::Bytes(8_000_000_000)));
        assert_eq!("1.5GiB".parse(), Ok(Limit::Bytes(3 << 29)));
        assert_eq!("4096".parse(), Ok(Limit::Bytes(4096)));
        assert_eq!("50%".parse(), Ok(Limit::Percent(50.0)));
        for wrong in ["", "G", "-1G", "0", "101%", "0%", "8X", "1e9", "99999999T", "1.2.3M"] {
            assert!(wrong.parse::<Limit>().is_err(), "{wrong}");
        }
    }

    /// Files below a folder.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn usable_of(files: &[(&str, &str)]) -> u64 {
        let folder = tree(files);
        usable_by(&folder.path().join("proc"), &folder.path().join("groups")).unwrap().bytes
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n");

    #[test]
    fn the_free_memory_counts_where_no_group_limits() {
        assert_eq!(usable_of(&[MEMINFO]), 8000 << 10);
        let group = [MEMINFO, ("proc/self/cgroup", "0::/a\n"), ("groups/a/memory.max", "max\n")];
        assert_eq!(usable_of(&group), 8000 << 10);
    }

    #[test]
    fn every_ancestor_of_a_version_2_group_limits() {
        let mut files = vec![
            MEMINFO,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("groups/a/memory.max", "5000000\n"),
            ("groups/a/memory.current", "1000000\n"),
            ("groups/a/memory.stat", "anon 1\ninactive_file 400000\n"),
            ("groups/a/b/memory.max", "max\n"),
        ];
        assert_eq!(usable_of(&files), 4_400_000);
        files.push(("groups/a/b/memory.high", "3000000\n"));
        assert_eq!(usable_of(&files), 3_000_000);
    }

    #[test]
    fn version_1_groups_limit_too() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "5:cpu:/x\n4:memory:/x/y\n0::/\n"),
            ("groups/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("groups/memory/x/y/memory.limit_in_bytes", "6000000\n"),
            ("groups/memory/x/y/memory.usage_in_bytes", "2000000\n"),
            ("groups/memory/x/y/memory.stat", "inactive_file 7\ntotal_inactive_file 500000\n"),
        ];
        assert_eq!(usable_of(&files), 4_500_000);
    }
}
