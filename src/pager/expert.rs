//! One expert of a request.

use std::{io, path::Path};

use super::{slot::Slot, sync::Arc};
use crate::error::{Error, Result};

/// One expert whose tiles are there or on their way.
pub struct Expert<'r> {
    pub(super) slot: Arc<Slot>,
    pub(super) path: &'r Path,
}

impl Expert<'_> {
    /// Tile `t`, as soon as it has arrived.
    ///
    /// # Errors
    /// [`Error::Io`] when it could not be read; [`Error::Argument`] when there is no such tile.
    pub fn tile(&self, t: usize) -> Result<&[u8]> {
        if t >= self.slot.tiles() {
            return Err(Error::Argument(format!("there is no tile {t} of {}", self.slot.tiles())));
        }
        self.slot.tile(t).map_err(|e| unread(self.path, &e))
    }
}

/// A tile could not be read; others may be told the same.
pub(super) fn unread(path: &Path, problem: &io::Error) -> Error {
    if let Some(ours) = problem.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
        return ours.again();
    }
    let copy = match problem.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(problem.kind(), problem.to_string()),
    };
    Error::io("read", path)(copy)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_failing_drive_is_named_with_the_file_and_a_remedy() {
        let said = unread(Path::new("drive"), &io::Error::from_raw_os_error(libc::EIO)).to_string();
        assert!(said.starts_with("cannot read drive: Input/output error"), "{said}");
        assert!(said.contains("the drive may be failing"), "{said}");
    }
}
