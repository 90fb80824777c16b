//! Files of a checkpoint: read whole up to a limit, or in pieces at a position.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use crate::error::{Error, Result};

/// Opens a regular file. A pipe, which would wait for a writer, or a folder is an error.
///
/// # Errors
/// When it is not there, not readable, or something else than a file.
pub(super) fn open(path: &Path) -> Result<File> {
    let metadata = fs::metadata(path).map_err(Error::io("open", path))?;
    if !metadata.is_file() {
        return Err(Error::bad_file(path, "the file", "it is not a regular file"));
    }
    File::open(path).map_err(Error::io("open", path))
}

/// Reads a whole file that may not be larger than `limit` bytes.
///
/// # Errors
/// When it cannot be read, or is larger.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let len = file.metadata().map_err(Error::io("read", path))?.len();
    if len > limit {
        return Err(Error::bad_file(path, "the file", format!("it has {len} bytes, more than {limit}")));
    }
    let mut bytes = Vec::new();
    // The limit holds for a file that grows, too.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::bad_file(path, "the file", format!("it has more than {limit} bytes")));
    }
    Ok(bytes)
}

/// Reads a whole text file of at most `limit` bytes.
///
/// # Errors
/// When it cannot be read, is larger, or is not UTF-8.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::bad_file(path, format!("byte {at}"), "the text is not UTF-8")
    })
}

/// Fills `buffer` from the file's byte `offset` on, without a shared position: many threads may read one file.
///
/// # Errors
/// When the file ends before, or the system refuses.
pub(super) fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match read_at(file, buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buffer = &mut buffer[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}

/// Size and modification time (nanoseconds since 1970, 0 where the system knows none) of an open file.
///
/// # Errors
/// When the system refuses.
pub(super) fn stamp(file: &File, path: &Path) -> Result<(u64, u128)> {
    let metadata = file.metadata().map_err(Error::io("read", path))?;
    let since = |time: std::time::SystemTime| time.duration_since(std::time::UNIX_EPOCH).ok();
    let time = metadata.modified().ok().and_then(since).map_or(0, |d| d.as_nanos());
    Ok((metadata.len(), time))
}

/// Whether this is the beginning of the text that Git LFS leaves where a large file was not fetched.
pub(super) fn is_lfs_pointer(start: &[u8]) -> bool {
    start.starts_with(b"version https://git-lfs")
}

/// The error for such a text.
pub(super) fn lfs_pointer(path: &Path) -> Error {
    Error::BadFile {
        path: path.into(),
        place: "the file".into(),
        problem: "this is a Git LFS pointer, not the file that it stands for".into(),
        remedy: "fetch the file itself (git lfs pull)",
    }
}
