//! Laying out a GGUF file: where every tensor goes, and the bytes of the header.

use std::io::{self, Write};

use blake3::Hash;
use byteorder::{LE, WriteBytesExt};

use super::{
    gguf::{Stored, TYPES, TensorDesc},
    value::{Metadata, Value, write_string},
};

/// Key of the digests of the tensors, in hex, in the order of the tensors.
pub const DIGESTS: &str = "yuan.blake3";
/// Key of the digest of the header; computed with 64 zeros in its own place.
pub const HEADER_DIGEST: &str = "yuan.blake3.header";
/// Alignment of our containers: a tile can be read by itself with direct I/O on any page size up to 64 KiB.
pub const ALIGNMENT: u64 = 65_536;

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTensor {
    /// Its name.
    pub name: String,
    /// Its dims, innermost first.
    pub dims: Vec<u64>,
    /// How its weights lie in its bytes.
    pub stored: Stored,
    /// Bytes of its data.
    pub bytes: u64,
}

/// The layout of a file that is to be written. Everything but the digests is fixed before the first byte of data.
#[derive(Clone, Debug)]
pub struct Writer {
    metadata: Metadata,
    tensors: Vec<TensorDesc>,
    header_bytes: u64,
    file_bytes: u64,
    ours: bool,
}

impl Writer {
    /// Lays out `tensors` one after another, each at a multiple of `alignment`. A file of our own layout also
    /// records what every tensor holds, and the BLAKE3 of every tensor and of its header.
    pub fn new(mut metadata: Metadata, tensors: &[NewTensor], alignment: u64, ours: bool) -> Self {
        metadata.set("general.alignment", Value::U32(alignment as u32));
        if ours {
            metadata.set(TYPES, Value::Strings(tensors.iter().map(|t| t.stored.name()).collect()));
            let zeros = "0".repeat(64);
            metadata.set(HEADER_DIGEST, Value::String(zeros.clone()));
            metadata.set(DIGESTS, Value::Strings(vec![zeros; tensors.len()]));
        }
        let mut at = 0;
        let place = |t: &NewTensor| {
            let offset = at;
            at = (at + t.bytes).next_multiple_of(alignment);
            let (name, dims) = (t.name.clone(), t.dims.clone());
            TensorDesc { name, dims, stored: t.stored, offset, bytes: t.bytes }
        };
        let mut tensors: Vec<TensorDesc> = tensors.iter().map(place).collect();
        let header_bytes = header(&metadata, &tensors, 0).len() as u64;
        let data = header_bytes.next_multiple_of(alignment);
        tensors.iter_mut().for_each(|t| t.offset += data);
        Self { metadata, tensors, header_bytes, file_bytes: data + at, ours }
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Where tensor `i` begins in the file.
    pub fn offset(&self, i: usize) -> u64 {
        self.tensors[i].offset
    }

    /// Bytes of tensor `i`.
    pub fn size(&self, i: usize) -> u64 {
        self.tensors[i].bytes
    }

    /// Bytes from the end of tensor `i` to the next one, or to the end of the file.
    pub fn behind(&self, i: usize) -> usize {
        let next = self.tensors.get(i + 1).map_or(self.file_bytes, |next| next.offset);
        (next - self.offset(i) - self.size(i)) as usize
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Bytes of all tensors.
    pub fn data_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes).sum()
    }

    /// The header, with zeros for the digests while they are not known.
    pub fn header(&self, digests: Option<&[Hash]>) -> Vec<u8> {
        let data = self.header_bytes.next_multiple_of(self.alignment());
        let mut metadata = self.metadata.clone();
        if let Some(digests) = digests.filter(|_| self.ours) {
            metadata.set(DIGESTS, Value::Strings(digests.iter().map(|h| h.to_hex().to_string()).collect()));
            let digest = blake3::hash(&header(&metadata, &self.tensors, data)).to_hex().to_string();
            metadata.set(HEADER_DIGEST, Value::String(digest));
        }
        header(&metadata, &self.tensors, data)
    }

    fn alignment(&self) -> u64 {
        match self.metadata.get("general.alignment") {
            Some(Value::U32(a)) => u64::from(*a),
            _ => super::gguf::DEFAULT_ALIGNMENT,
        }
    }
}

/// The bytes of a version 3 header, without the padding behind it. Offsets of `tensors` count from the beginning of the
/// file, and the data begins at `data`.
fn header(metadata: &Metadata, tensors: &[TensorDesc], data: u64) -> Vec<u8> {
    let mut out = Vec::new();
    write_header(metadata, tensors, data, &mut out).expect("memory takes what is written to it");
    out
}

fn write_header(
    metadata: &Metadata,
    tensors: &[TensorDesc],
    data: u64,
    out: &mut impl Write,
) -> io::Result<()> {
    out.write_all(b"GGUF")?;
    out.write_u32::<LE>(3)?;
    out.write_u64::<LE>(tensors.len() as u64)?;
    out.write_u64::<LE>(metadata.entries().len() as u64)?;
    for (key, value) in metadata.entries() {
        write_string(key, out)?;
        value.write(out)?;
    }
    for tensor in tensors {
        write_string(&tensor.name, out)?;
        out.write_u32::<LE>(tensor.dims.len() as u32)?;
        tensor.dims.iter().try_for_each(|d| out.write_u64::<LE>(*d))?;
        out.write_u32::<LE>(tensor.stored.ggml_type())?;
        out.write_u64::<LE>(tensor.offset - data)?;
    }
    Ok(())
}
