//! What was measured on this machine before: small files in the cache folder of its user, which anybody may delete.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
};

use etcetera::BaseStrategy;

use crate::files::write_whole;

/// Longer files are not ours.
const LONGEST: u64 = 4096;

/// Where files of the cache are: in the folder `YUAN_CACHE`, or `yuan` in the place that the system has for caches. `None` where `YUAN_CACHE` is empty or
/// there is no home folder.
fn folder() -> Option<PathBuf> {
    match env::var_os("YUAN_CACHE") {
        Some(named) => Some(PathBuf::from(named)).filter(|folder| !folder.as_os_str().is_empty()),
        None => {
            let places = etcetera::base_strategy::choose_native_strategy().ok()?;
            Some(places.cache_dir().join("yuan"))
        }
    }
}

/// What was kept as `name` in the same `circumstances`.
pub fn recall(name: &str, circumstances: &str) -> Option<String> {
    read(&folder()?.join(name), circumstances)
}

/// Keeps a line for [`recall`]. What cannot be written is measured again.
pub fn keep(name: &str, circumstances: &str, line: &str) {
    let Some(folder) = folder() else { return };
    if let Err(error) = write(&folder, name, circumstances, line) {
        tracing::debug!("{name} is not kept for the next run: {error}");
    }
}

fn read(path: &Path, circumstances: &str) -> Option<String> {
    if fs::metadata(path).ok()?.len() > LONGEST {
        return None;
    }
    let text = fs::read_to_string(path).ok()?;
    let (before, line) = text.strip_suffix('\n')?.rsplit_once('\n')?;
    (before == circumstances).then(|| line.to_owned())
}

fn write(folder: &Path, name: &str, circumstances: &str, line: &str) -> crate::error::Result<()> {
    let path = folder.join(name);
    fs::create_dir_all(folder).map_err(crate::error::Error::io("create", folder))?;
    write_whole(&path, LONGEST, |file| writeln!(file, "{circumstances}\n{line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_in_the_same_circumstances_only() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new");
        write(&folder, "speed", "a CPU\n2 threads", "42").unwrap();
        let path = folder.join("speed");
        assert_eq!(read(&path, "a CPU\n2 threads").as_deref(), Some("42"));
        assert_eq!(read(&path, "a CPU\n3 threads"), None);
        write(&folder, "speed", "a CPU\n3 threads", "43").unwrap();
        assert_eq!(read(&path, "a CPU\n3 threads").as_deref(), Some("43"));
        for damaged in ["", "42", "a CPU\n3 threads\n43", "\u{0}\n\n", &"x\n".repeat(5000)] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(read(&path, "a CPU\n3 threads"), None);
        }
    }
}
