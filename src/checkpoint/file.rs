//! Files of a checkpoint: read whole up to a limit, or in pieces at a position.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use crate::error::{Error, Result};

/// Reads a whole file that may not be larger than `limit` bytes.
///
/// # Errors
/// When it cannot be read, or is larger.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let len = file.metadata().map_err(Error::io("read", path))?.len();
    if len > limit {
        return Err(Error::bad_file(path, "the file", format!("it has {len} bytes, more than {limit}")));
    }
    let mut bytes = Vec::new();
    // The limit holds for files that grow, and for devices and pipes, too.
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
pub(super) fn stamp(metadata: &fs::Metadata) -> (u64, u128) {
    let since = |time: std::time::SystemTime| time.duration_since(std::time::UNIX_EPOCH).ok();
    let time = metadata.modified().ok().and_then(since).map_or(0, |d| d.as_nanos());
    (metadata.len(), time)
}
