//! A file of `torch.save`: a zip archive of uncompressed entries, `NAME/data.pkl` with the table of tensors and
//! `NAME/data/KEY` with the elements of every storage.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use zip::{
    CompressionMethod, ZipArchive,
    read::{ArchiveOffset, Config},
};

use super::{
    entry::Entry,
    file::{is_lfs_pointer, lfs_pointer},
    pickle::{Pickled, parse_pickle},
};
use crate::error::{Error, Result};

/// Larger than any table: a tensor takes about a hundred bytes, and a shard has some thousands.
const LARGEST_PICKLE: u64 = 16 << 20;
/// More entries than any shard has.
const MOST_ENTRIES: u64 = 1 << 18;

/// Reads and checks the table of an open file of `len` bytes; `path` is for messages.
///
/// # Errors
/// Those of [`parse_archive`].
pub(super) fn read_entries(file: &File, len: u64, path: &Path) -> Result<Vec<Entry>> {
    parse_archive(BufReader::with_capacity(4096, file), len, path)
}

/// Finds the tensors of an archive of `len` bytes; `path` is for messages. A name that stands twice gives two entries.
///
/// # Errors
/// [`Error::Io`] when reading fails; [`Error::Unsupported`] for files of PyTorch before 1.6, compressed or big-endian archives, and what
/// [`parse_pickle`] refuses; [`Error::BadFile`] for a damaged archive, and storages that are missing or have another size than
/// the table says.
pub fn parse_archive<R: Read + Seek>(mut reader: R, len: u64, path: &Path) -> Result<Vec<Entry>> {
    check_start(&mut reader, path)?;
    check_claims(&mut reader, len, path)?;
    // Without a known offset the crate would search the whole file for one.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let zip = ZipArchive::with_config(config, reader).map_err(|e| bad(path, "the archive", e.to_string()))?;
    if zip.has_duplicate_names() {
        return Err(bad(path, "the archive", "a name stands twice"));
    }
    let mut archive = Archive { zip, len, path };
    let folder = archive.folder()?;
    if let Some(index) = archive.zip.index_for_name(&format!("{folder}/byteorder")) {
        let order = archive.read(index, "byteorder", 64)?;
        if order != b"little" {
            let what = format!("the byte order {:?}", String::from_utf8_lossy(&order));
            return Err(unsupported(path, what));
        }
    }
    let index = archive.zip.index_for_name(&format!("{folder}/data.pkl"));
    let index = index.ok_or_else(|| bad(path, "the archive", "it has no data.pkl"))?;
    let pickle = archive.read(index, "data.pkl", LARGEST_PICKLE)?;

    let mut storages: HashMap<String, (u64, u64)> = HashMap::new();
    let mut entries = Vec::new();
    for tensor in parse_pickle(&pickle, path)? {
        let (begin, size) = match storages.get(&tensor.storage) {
            Some(place) => *place,
            None => {
                let place = archive.place(&format!("{folder}/data/{}", tensor.storage), &tensor.name)?;
                storages.insert(tensor.storage.clone(), place);
                place
            }
        };
        entries.push(entry(tensor, begin, size, path)?);
    }
    Ok(entries)
}

/// A tensor whose storage has `size` bytes from `begin` on. The pickle's reader has checked that the tensor ends within
/// the storage.
fn entry(tensor: Pickled, begin: u64, size: u64, path: &Path) -> Result<Entry> {
    let width = tensor.element.bytes().unwrap_or(0);
    if tensor.storage_elements.checked_mul(width) != Some(size) {
        let Pickled { name, storage, storage_elements, element, .. } = tensor;
        let problem =
            format!("{storage_elements} elements of {element}, and data/{storage} has {size} bytes");
        return Err(bad(path, format!("tensor {name}"), problem));
    }
    let offset = tensor.offset.checked_mul(width).and_then(|skip| begin.checked_add(skip));
    let offset =
        offset.ok_or_else(|| bad(path, format!("tensor {}", tensor.name), "its place is beyond the file"))?;
    Ok(Entry { name: tensor.name, element: tensor.element, shape: tensor.shape, offset })
}

fn bad(path: &Path, place: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::bad_file(path, place, problem)
}

fn unsupported(path: &Path, what: String) -> Error {
    let remedy = "load the checkpoint in a current PyTorch and save it as safetensors".into();
    Error::Unsupported { path: path.into(), what, remedy }
}

struct Archive<'a, R> {
    zip: ZipArchive<R>,
    len: u64,
    path: &'a Path,
}

impl<R: Read + Seek> Archive<'_, R> {
    /// The folder that all entries stand in.
    fn folder(&self) -> Result<String> {
        let tables = self.zip.file_names_raw().filter_map(|name| name.strip_suffix(b"/data.pkl"));
        let folders: Vec<&[u8]> = tables.take(2).collect();
        match folders[..] {
            [folder] => std::str::from_utf8(folder)
                .map(str::to_owned)
                .map_err(|_| bad(self.path, "the archive", "the name of its folder is not UTF-8")),
            [] => {
                Err(bad(self.path, "the archive", "it has no data.pkl: torch.save did not write this file"))
            }
            _ => Err(bad(self.path, "the archive", "it has more than one data.pkl")),
        }
    }

    /// The bytes of a small entry, checked against their CRC.
    fn read(&mut self, index: usize, name: &str, limit: u64) -> Result<Vec<u8>> {
        let path = self.path;
        let entry = self.zip.by_index(index).map_err(|e| bad(path, name, e.to_string()))?;
        if entry.compression() != CompressionMethod::Stored {
            return Err(unsupported(path, format!("a compressed archive ({name})")));
        }
        if entry.size() > limit.min(self.len) {
            return Err(bad(path, name, format!("it has {} bytes", entry.size())));
        }
        let mut bytes = Vec::new();
        let size = entry.size();
        entry.take(limit).read_to_end(&mut bytes).map_err(|e| bad(path, name, e.to_string()))?;
        if bytes.len() as u64 != size {
            return Err(bad(path, name, format!("it has {} bytes instead of {size}", bytes.len())));
        }
        Ok(bytes)
    }

    /// Where in the file the bytes of an entry begin, and how many there are.
    fn place(&mut self, name: &str, tensor: &str) -> Result<(u64, u64)> {
        let path = self.path;
        let wrong = |problem: String| bad(path, format!("{name} (of tensor {tensor})"), problem);
        let index = self.zip.index_for_name(name).ok_or_else(|| wrong("it is missing".into()))?;
        let entry = self.zip.by_index_raw(index).map_err(|e| wrong(e.to_string()))?;
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(unsupported(path, format!("a compressed archive ({name})")));
        }
        let (size, stored) = (entry.size(), entry.compressed_size());
        let begin = entry.data_start().ok_or_else(|| wrong("it has no data".into()))?;
        let end = begin.checked_add(size).filter(|end| *end <= self.len);
        if size != stored || end.is_none() {
            return Err(wrong(format!("{size} bytes from {begin} on, in a file of {}", self.len)));
        }
        Ok((begin, size))
    }
}

/// Tells what else a file may be that is no archive.
fn check_start<R: Read + Seek>(reader: &mut R, path: &Path) -> Result<()> {
    let mut start = Vec::new();
    reader.rewind().map_err(Error::io("read", path))?;
    reader.take(256).read_to_end(&mut start).map_err(Error::io("read", path))?;
    if start.starts_with(b"PK\x03\x04") {
        return Ok(());
    }
    if is_lfs_pointer(&start) {
        return Err(lfs_pointer(path));
    }
    // A pickle that begins with the number 0x1950A86A20F9469CFC6C.
    if start.len() > 4
        && start[0] == 0x80
        && start[2..].starts_with(b"\x8A\x0A\x6C\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19")
    {
        return Err(unsupported(path, "the file format of PyTorch before 1.6".into()));
    }
    Err(bad(path, "the file", "it is not a zip archive, which torch.save writes"))
}

/// Looks at every end record that the zip crate may find (they stand in the last 64 KiB): the crate reserves memory for the
/// number of entries and the length that a 64-bit record claims before it reads them.
fn check_claims<R: Read + Seek>(reader: &mut R, len: u64, path: &Path) -> Result<()> {
    const TAIL: u64 = (1 << 16) + 128;
    let io = |e| Error::io("read", path)(e);
    let mut tail = Vec::new();
    reader.seek(SeekFrom::Start(len.saturating_sub(TAIL))).map_err(io)?;
    reader.take(TAIL).read_to_end(&mut tail).map_err(io)?;
    // The locator of a 64-bit record stands right before the end record.
    let locators = tail.windows(24).filter(|w| w.starts_with(b"PK\x06\x07") && w.ends_with(b"PK\x05\x06"));
    for locator in locators {
        let at = word(locator, 8);
        let mut record = Vec::new();
        if at.checked_add(56).is_none_or(|end| end > len) {
            continue; // The crate will not find it either.
        }
        reader.seek(SeekFrom::Start(at)).map_err(io)?;
        reader.take(56).read_to_end(&mut record).map_err(io)?;
        if record.len() == 56 && (word(&record, 4) > 1 << 16 || word(&record, 32) > MOST_ENTRIES) {
            let problem = format!("its end record claims {} entries", word(&record, 32));
            return Err(bad(path, "the archive", problem));
        }
    }
    Ok(())
}

/// The little-endian word at `at`, which lies inside of `bytes`.
fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}
