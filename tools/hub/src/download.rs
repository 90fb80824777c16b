//! One file, in blocks side by side: from where a killed run has stopped, and checked before it has its name.

use std::{fs, path::Path};

use crate::{
    coming::Coming,
    hub::{Hub, Remote},
};

/// What is heard while a file comes.
pub trait Watch: Sync {
    /// So many more bytes are there. Those of an earlier run are told of at once.
    fn came(&self, bytes: u64);
    /// So many bytes are there no more: they were not those of the file.
    fn went(&self, bytes: u64);
    /// Whether to go on.
    fn go_on(&self) -> bool;
}

/// Brings a file of `hub` to `path` over so many connections. One that is there is not asked for again.
///
/// # Errors
/// It does not come, is another than the hub says, or there is no room; what has come is kept for the next run. When `watch` says so.
pub fn download(
    hub: &Hub,
    remote: &Remote,
    path: &Path,
    connections: usize,
    watch: &dyn Watch,
) -> anyhow::Result<()> {
    if fs::metadata(path).is_ok_and(|there| there.len() == remote.size) {
        watch.came(remote.size);
        return Ok(());
    }
    let coming = Coming::begin(hub, remote, path)?;
    watch.came(coming.there());
    coming.run(connections, watch)
}
