//! Whether the disk has room, before anything is fetched.

use std::{fs, path::Path};

use yuan::files::check_output;

/// Asks the disk of `output` for so many bytes, of which those count that are in `folder` or in the unfinished container already.
///
/// # Errors
/// There is less, or the container cannot be written there.
pub fn check_room(output: &Path, folder: &Path, bytes: u64) -> anyhow::Result<()> {
    let within = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let here: u64 = within.chain([output.with_added_extension("partial")]).map(|path| allocated(&path)).sum();
    Ok(check_output(output, bytes.saturating_sub(here), &[], "model.gguf")?)
}

/// Bytes of the disk that a file has: less than its length, where it has not come whole.
#[cfg(unix)]
fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map_or(0, |file| file.blocks() * 512)
}

#[cfg(not(unix))]
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}
