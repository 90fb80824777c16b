//! Headers of safetensors files: every entry that is read lies within the file.

use std::path::Path;

use yuan::checkpoint::{
    entry::Entry,
    safetensors::{header_len, parse_header},
};

use crate::{
    Seed,
    weights::{Tensor, safetensors},
};

/// A whole file of these bytes, one that claims to be longer, and the bytes as the table alone, since lengths are seldom repaired by chance.
pub fn run(data: &[u8]) {
    let path = Path::new("f.safetensors");
    for len in [data.len() as u64, 1 << 40] {
        if let Ok(header) = header_len(data, len, path)
            && let Some(header) = data[8..].get(..header)
            && let Ok(entries) = parse_header(header, len, path)
        {
            inside(&entries, len);
        }
    }
    for room in [0, 20, 4096] {
        let len = 8 + data.len() as u64 + room;
        if let Ok(entries) = parse_header(data, len, path) {
            inside(&entries, len);
        }
    }
}

/// Entries whose elements have a size end within a file of `len` bytes.
pub fn inside(entries: &[Entry], len: u64) {
    for entry in entries {
        let elements = entry.shape.iter().try_fold(1_u64, |n, dim| n.checked_mul(*dim));
        let bytes = entry.element.bytes().map(|size| elements.and_then(|n| n.checked_mul(size)));
        let Some(bytes) = bytes else { continue };
        let end = bytes.and_then(|bytes| entry.offset.checked_add(bytes));
        assert!(end.is_some_and(|end| end <= len), "{entry:?} ends beyond {len}");
    }
}

/// A small file, and its table.
pub fn seeds() -> Vec<Seed> {
    let file = safetensors(&[Tensor::new("a", "BF16", &[2, 3], 1), Tensor::new("b", "F32", &[2], 0)]);
    let table = file[8..file.len() - 20].to_vec();
    vec![file, table]
}
