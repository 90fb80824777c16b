//! The header of a safetensors file: eight bytes with its length, a JSON table of tensors, then their bytes without a gap.

use std::{fmt, fs::File, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

use super::{
    entry::{ElementType, Entry, elements},
    file::{is_lfs_pointer, lfs_pointer, read_exact_at},
};
use crate::error::{Error, Result};

/// Bytes before the header: its length.
const PREFIX: u64 = 8;
/// The largest header of the format's own definition.
const LARGEST_HEADER: u64 = 100_000_000;

/// Reads and checks the table of an open file of `len` bytes; `path` is for messages.
///
/// # Errors
/// When the file cannot be read or is not a sound safetensors file.
pub(super) fn read_entries(file: &File, len: u64, path: &Path) -> Result<Vec<Entry>> {
    let read = |bytes: &mut [u8], at| read_exact_at(file, bytes, at).map_err(Error::io("read", path));
    let mut start = vec![0; len.min(256) as usize];
    read(&mut start, 0)?;
    if is_lfs_pointer(&start) {
        return Err(lfs_pointer(path));
    }
    let header = header_len(&start, len, path)?;
    let mut bytes = vec![0; header];
    read(&mut bytes, PREFIX)?;
    parse_header(&bytes, len, path)
}

/// Length of the header of a file of `len` bytes that begins with `start`.
///
/// # Errors
/// [`Error::BadFile`] when the header would not fit the file, or would be larger than the format allows.
pub fn header_len(start: &[u8], len: u64, path: &Path) -> Result<usize> {
    let bad = |problem: String| Error::bad_file(path, "the header's length", problem);
    let Some(word) = start.first_chunk() else {
        return Err(bad(format!("the file has only {len} bytes")));
    };
    let header = u64::from_le_bytes(*word);
    if header > LARGEST_HEADER || header > len.saturating_sub(PREFIX) {
        return Err(bad(format!(
            "{header} bytes in a file of {len}: this is not a complete safetensors file"
        )));
    }
    usize::try_from(header).map_err(|_| bad(format!("{header} bytes")))
}

/// Parses the header of a file of `len` bytes (all of it, the header's length included). Offsets of the entries count
/// from the beginning of the file. A name that stands twice gives two entries.
///
/// # Errors
/// [`Error::BadFile`] when the header is no table of tensors, a tensor's shape and type do not make the size of its bytes, or
/// the tensors do not fill the file without gaps and overlaps.
pub fn parse_header(header: &[u8], len: u64, path: &Path) -> Result<Vec<Entry>> {
    let Table(mut table) = serde_json::from_slice(header)
        .map_err(|e| Error::bad_file(path, "the header", format!("it is not a table of tensors: {e}")))?;
    table.sort_by_key(|(_, row)| row.data_offsets);

    let data = PREFIX + header.len() as u64;
    let room = len.saturating_sub(data);
    let mut expected = 0;
    let mut entries = Vec::with_capacity(table.len());
    for (name, row) in table {
        let (begin, end) = row.data_offsets;
        let bad = |problem: String| Error::bad_file(path, format!("tensor {name}"), problem);
        if begin != expected || end < begin || end > room {
            return Err(bad(format!(
                "its bytes are {begin} to {end}; it should begin at {expected}, and the file has {room} bytes of data"
            )));
        }
        let element = ElementType::from_safetensors(&row.dtype);
        let size = elements(&row.shape).and_then(|n| n.checked_mul(element.bytes().unwrap_or(0)));
        if element.bytes().is_some() && size != Some(end - begin) {
            return Err(bad(format!("its {} bytes are not {element} {:?}", end - begin, row.shape)));
        }
        expected = end;
        entries.push(Entry { name, element, shape: row.shape, offset: data + begin });
    }
    if expected != room {
        return Err(Error::bad_file(
            path,
            "the data",
            format!("tensors have {expected} bytes, the file {room}"),
        ));
    }
    Ok(entries)
}

/// A row of the header.
#[derive(Deserialize)]
struct Row {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header: rows by name, duplicates kept, `__metadata__` left out.
struct Table(Vec<(String, Row)>);

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Rows;

        impl<'de> Visitor<'de> for Rows {
            type Value = Table;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a row for every tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
                let mut rows = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        rows.push((name, map.next_value()?));
                    }
                }
                Ok(Table(rows))
            }
        }

        deserializer.deserialize_map(Rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(header: &str, data: u64) -> Result<Vec<Entry>> {
        parse_header(header.as_bytes(), PREFIX + header.len() as u64 + data, Path::new("x.safetensors"))
    }

    const TWO: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]},
        "a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}"#;

    #[test]
    fn entries_have_their_place_in_the_file() {
        let entries = parse(TWO, 20).unwrap();
        let data = PREFIX + TWO.len() as u64;
        let a = Entry { name: "a".into(), element: ElementType::Bf16, shape: vec![2, 3], offset: data };
        let b = Entry { name: "b".into(), element: ElementType::F32, shape: vec![2], offset: data + 12 };
        assert_eq!(entries, [a, b]);
    }

    #[test]
    fn truncated_file_is_an_error() {
        assert!(parse(TWO, 19).is_err());
        assert!(parse(TWO, 21).is_err(), "bytes behind the tensors");
        let path = Path::new("x");
        assert!(header_len(&[1, 0, 0], 3, path).is_err());
        assert!(header_len(&9u64.to_le_bytes(), 16, path).is_err());
        assert_eq!(header_len(&8u64.to_le_bytes(), 16, path).unwrap(), 8);
        assert!(header_len(&u64::MAX.to_le_bytes(), u64::MAX, path).is_err());
    }

    #[test]
    fn gaps_overlaps_and_wrong_sizes_are_errors_that_name_the_tensor() {
        for row in [
            r#"{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#,
            r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#,
            r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#,
            r#"{"dtype":"I8","shape":[2],"data_offsets":[0,8]}"#,
            r#"{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}"#,
        ] {
            let e = parse(&format!(r#"{{"w":{row}}}"#), 8).unwrap_err().to_string();
            assert!(e.contains("tensor w"), "{e}");
        }
        let twice = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        assert!(parse(twice, 8).unwrap_err().to_string().contains("tensor b"));
    }

    #[test]
    fn types_that_weights_cannot_have_keep_their_name() {
        let header = r#"{"w":{"dtype":"I8","shape":[3],"data_offsets":[0,3]},"v":{"dtype":"F4","shape":[2],"data_offsets":[3,4]}}"#;
        let entries = parse(header, 4).unwrap();
        assert_eq!(entries[0].element.to_string(), "I8");
        assert_eq!(entries[1].element.to_string(), "F4");
    }
}
