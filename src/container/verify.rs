//! Checking a container against the digests that were recorded when it was written.

use std::path::Path;

use blake3::Hash;

use super::{
    gguf::Header,
    value::damaged,
    write::{DIGESTS, HEADER_DIGEST},
};
use crate::{
    error::{Error, Result},
    workers,
};

/// Bytes that are hashed between two reports of progress.
const PIECE: usize = 16 << 20;

/// The header against its own digest, where it has one.
pub(super) fn header(header: &Header, file: &[u8], path: &Path) -> Result<()> {
    let Some(expected) = header.metadata.text(HEADER_DIGEST).map_err(damaged(path, "metadata"))? else {
        return Ok(());
    };
    let bytes = &file[..header.bytes as usize];
    if expected.len() != 64 {
        return Err(damaged(path, HEADER_DIGEST)("it is not a BLAKE3 digest".into()));
    }
    let at = bytes.windows(expected.len()).position(|w| w == expected.as_bytes()).unwrap_or(0);
    let zeros = vec![b'0'; expected.len()];
    let (before, behind) = (&bytes[..at], &bytes[at + expected.len()..]);
    let found = blake3::Hasher::new().update(before).update(&zeros).update(behind).finalize();
    compare(path, "(the header)", expected, &found)
}

/// Every tensor against its digest, and the padding between tensors against zero.
pub(super) fn tensors(
    header: &Header,
    file: &[u8],
    path: &Path,
    progress: &dyn Fn(u64) -> bool,
) -> Result<()> {
    let digests = digests(header, path)?;
    let mut end = header.bytes as usize;
    let mut previous = "the header";
    for (tensor, expected) in header.tensors.iter().zip(digests) {
        let start = tensor.offset as usize;
        if let Some(at) = file.get(end..start).and_then(|padding| padding.iter().position(|&b| b != 0)) {
            let problem = "the padding is not zero".into();
            return Err(damaged(path, format!("byte {}, behind {previous}", end + at))(problem));
        }
        end = start + tensor.bytes as usize;
        previous = &tensor.name;
        self::tensor(path, &tensor.name, expected, &file[start..end], progress)?;
    }
    Ok(())
}

/// Some tensors of all parts of the file, of `most` bytes together but for the first, against their digests. Returns how many they are, and their bytes.
pub(super) fn sample(
    header: &Header,
    file: &[u8],
    path: &Path,
    most: u64,
    progress: &dyn Fn(u64) -> bool,
) -> Result<(usize, u64)> {
    let all: u64 = header.tensors.iter().map(|tensor| tensor.bytes).sum();
    let step = usize::try_from(all.div_ceil(most.max(1))).unwrap_or(usize::MAX).max(1);
    let described: Vec<_> = header.tensors.iter().zip(digests(header, path)?).collect();
    let (mut count, mut bytes) = (0, 0);
    for (tensor, expected) in
        described.iter().skip((step - 1).min(described.len().saturating_sub(1)) / 2).step_by(step)
    {
        if count > 0 && bytes + tensor.bytes > most {
            continue;
        }
        let start = tensor.offset as usize;
        self::tensor(path, &tensor.name, expected, &file[start..start + tensor.bytes as usize], progress)?;
        (count, bytes) = (count + 1, bytes + tensor.bytes);
    }
    Ok((count, bytes))
}

/// The digests of all tensors, in their order.
pub(super) fn digests<'h>(header: &'h Header, path: &Path) -> Result<&'h [String]> {
    let Some(digests) = header.metadata.texts(DIGESTS).map_err(damaged(path, "metadata"))? else {
        return Err(Error::Unsupported {
            path: path.into(),
            what: "verifying a file without recorded digests".into(),
            remedy: "convert it with yuan-quant, whose containers record the BLAKE3 of every tensor".into(),
        });
    };
    if digests.len() != header.tensors.len() {
        let problem = format!("{} digests are recorded for {} tensors", digests.len(), header.tensors.len());
        return Err(damaged(path, DIGESTS)(problem));
    }
    Ok(digests)
}

/// One tensor against its digest.
pub(super) fn tensor(
    path: &Path,
    name: &str,
    expected: &str,
    bytes: &[u8],
    progress: &dyn Fn(u64) -> bool,
) -> Result<()> {
    workers::start()?;
    let mut hasher = blake3::Hasher::new();
    for piece in bytes.chunks(PIECE) {
        hasher.update_rayon(piece);
        if !progress(piece.len() as u64) {
            return Err(Error::Cancelled);
        }
    }
    compare(path, name, expected, &hasher.finalize())
}

fn compare(path: &Path, tensor: &str, expected: &str, found: &Hash) -> Result<()> {
    if Hash::from_hex(expected).is_ok_and(|expected| expected == *found) {
        return Ok(());
    }
    Err(Error::Checksum {
        path: path.into(),
        tensor: tensor.into(),
        expected: expected.into(),
        found: found.to_hex().to_string(),
    })
}
