//! The header of a GGUF file: metadata and the list of tensors (specification: ggml `docs/gguf.md`, version 3).

use std::{collections::HashSet, path::Path};

use yuan_kernels::{DType, panel::panel_bytes};

use super::value::{Metadata, Reach, Reader, Value, damaged};
use crate::error::{Error, Result};

/// ggml's number of the type that panels and tiles are stored in: signed bytes, whose size every reader knows.
pub const TYPE_I8: u32 = 24;
/// Key of what the tensors hold, in the order of the tensors ([`Stored::name`]).
pub const TYPES: &str = "yuan.types";
/// Alignment where a file does not say.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// Bytes of the smallest tensor entry: an empty name, no dims, a type and an offset.
const LEAST_TENSOR: usize = 8 + 4 + 4 + 8;
/// Bytes of the smallest key with its value.
const LEAST_KEY: usize = 8 + 4 + 1;

/// How a tensor's weights lie in its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Row after row of standard blocks.
    Rows(DType),
    /// A matrix as panels of sixteen rows.
    Panels(DType),
    /// An expert as neuron tiles.
    Tiles(DType),
}

impl Stored {
    /// The spelling of [`TYPES`]: `f32`, `q8_0 panels`, `q4_k tiles`.
    pub fn name(self) -> String {
        match self {
            Self::Rows(dtype) => dtype.name().into(),
            Self::Panels(dtype) => format!("{} panels", dtype.name()),
            Self::Tiles(dtype) => format!("{} tiles", dtype.name()),
        }
    }

    /// Type of the weights.
    pub const fn dtype(self) -> DType {
        match self {
            Self::Rows(dtype) | Self::Panels(dtype) | Self::Tiles(dtype) => dtype,
        }
    }

    /// ggml's number of the type that the tensor has in the file.
    pub const fn ggml_type(self) -> u32 {
        match self {
            Self::Rows(dtype) => dtype as u32,
            Self::Panels(_) | Self::Tiles(_) => TYPE_I8,
        }
    }

    /// The inverse of [`Stored::name`], but for what has no such panels or tiles.
    fn from_name(name: &str) -> Option<Self> {
        if let Some(name) = name.strip_suffix(" panels") {
            return DType::from_name(name).filter(|t| panel_bytes(*t).is_some()).map(Self::Panels);
        }
        if let Some(name) = name.strip_suffix(" tiles") {
            return DType::from_name(name).filter(|t| panel_bytes(*t).is_some()).map(Self::Tiles);
        }
        DType::from_name(name).map(Self::Rows)
    }
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDesc {
    /// Its name.
    pub name: String,
    /// Its dims, innermost first, as GGUF has them.
    pub dims: Vec<u64>,
    /// How its weights lie in its bytes.
    pub stored: Stored,
    /// Offset of its data from the beginning of the file.
    pub offset: u64,
    /// Bytes of its data.
    pub bytes: u64,
}

/// A parsed header.
#[derive(Clone, Debug)]
pub struct Header {
    /// Keys and values.
    pub metadata: Metadata,
    /// Tensors in the order of the file.
    pub tensors: Vec<TensorDesc>,
    /// Bytes of the header, without the padding behind it.
    pub bytes: u64,
    /// `general.alignment`.
    pub alignment: u64,
}

impl Header {
    /// Parses the header at the beginning of `file`, and checks that every tensor lies within it, aligned, and apart
    /// from the others.
    ///
    /// # Errors
    /// [`Error::BadFile`] with the offset or the name of what is wrong; [`Error::Unsupported`] for other versions.
    pub fn parse(file: &[u8], path: &Path) -> Result<Self> {
        Self::parse_coming(file, path, &|_| Ok(()))
    }

    /// [`Header::parse`] of a file that is still coming: `reach` waits for as many bytes as the header has.
    pub(super) fn parse_coming(file: &[u8], path: &Path, reach: Reach<'_>) -> Result<Self> {
        let mut r = Reader::new(file, reach);
        let start = damaged(path, "byte 0");
        if r.take(4).map_err(start)? != b"GGUF" {
            return Err(Error::BadFile {
                path: path.into(),
                place: "byte 0".into(),
                problem: "it does not begin with GGUF".into(),
                remedy: "give a .gguf file, or convert a checkpoint with yuan-quant",
            });
        }
        let version = r.u32().map_err(damaged(path, "byte 4"))?;
        if !(2..=3).contains(&version) {
            return Err(Error::Unsupported {
                path: path.into(),
                what: format!("GGUF version {version}"),
                remedy: "versions 2 and 3, little-endian, are read: convert the file again".into(),
            });
        }
        let tensor_count = r.u64().map_err(damaged(path, "byte 8"))?;
        let key_count = r.count(LEAST_KEY).map_err(damaged(path, "byte 16: the number of keys"))?;
        if tensor_count > (r.left() / LEAST_TENSOR) as u64 {
            return Err(damaged(path, "byte 8")(format!("{tensor_count} tensors do not fit the file")));
        }

        let metadata = read_metadata(&mut r, key_count, path)?;
        let alignment = metadata
            .number("general.alignment")
            .map_err(damaged(path, "metadata"))?
            .unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() || !(8..=1 << 30).contains(&alignment) {
            return Err(damaged(path, "general.alignment")(format!("it is {alignment}")));
        }

        let types = metadata.texts(TYPES).map_err(damaged(path, "metadata"))?.unwrap_or_default();
        let mut tensors = Vec::with_capacity(tensor_count as usize);
        for i in 0..tensor_count as usize {
            let place = format!("tensor {i} at byte {}", r.at());
            let stored = types.get(i).map(String::as_str);
            tensors.push(read_tensor(&mut r, stored).map_err(damaged(path, place))?);
        }
        let bytes = r.at() as u64;
        let data = bytes.next_multiple_of(alignment);
        for tensor in &mut tensors {
            let place = format!("tensor {}", tensor.name);
            locate(tensor, data, alignment, file.len() as u64).map_err(damaged(path, place))?;
        }
        apart(&tensors).map_err(damaged(path, "the list of tensors"))?;
        Ok(Self { metadata, tensors, bytes, alignment })
    }
}

fn read_metadata(r: &mut Reader<'_>, count: usize, path: &Path) -> Result<Metadata> {
    let (mut metadata, mut seen) = (Metadata::default(), HashSet::new());
    for i in 0..count {
        let place = format!("key {i} at byte {}", r.at());
        let key = r.string().map_err(damaged(path, place))?;
        let value = r.u32().and_then(|kind| Value::read(kind, r)).map_err(damaged(path, key.as_str()))?;
        if !seen.insert(key.clone()) {
            return Err(damaged(path, key)("the key occurs twice".into()));
        }
        metadata.push(key, value);
    }
    Ok(metadata)
}

/// A tensor entry; its offset is still relative to the data, and its size unknown.
fn read_tensor(r: &mut Reader<'_>, stored: Option<&str>) -> Result<TensorDesc, String> {
    let name = r.string()?;
    let count = r.u32()?;
    if count > 4 {
        return Err(format!("{name} has {count} dims, more than 4"));
    }
    let dims = (0..count).map(|_| r.u64()).collect::<Result<Vec<_>, _>>()?;
    let ggml_type = r.u32()?;
    let stored = match (DType::from_ggml(ggml_type), stored) {
        (Some(dtype), _) => Stored::Rows(dtype),
        (None, Some(kind)) if ggml_type == TYPE_I8 => Stored::from_name(kind)
            .filter(|stored| stored.ggml_type() == TYPE_I8)
            .ok_or_else(|| format!("{name} holds {kind}, which is not read"))?,
        _ => return Err(format!("{name} has the ggml type {ggml_type}, which is not read")),
    };
    Ok(TensorDesc { name, dims, stored, offset: r.u64()?, bytes: 0 })
}

/// Computes where the tensor's data is, and checks that it is in the file.
fn locate(tensor: &mut TensorDesc, data: u64, alignment: u64, file: u64) -> Result<(), String> {
    tensor.bytes = data_bytes(&tensor.dims, tensor.stored)?;
    if !tensor.offset.is_multiple_of(alignment) {
        return Err(format!("its offset {} is not a multiple of {alignment}", tensor.offset));
    }
    let start = data.checked_add(tensor.offset);
    let end = start.and_then(|s| s.checked_add(tensor.bytes));
    match (start, end) {
        (Some(start), Some(end)) if end <= file => {
            tensor.offset = start;
            Ok(())
        }
        _ => Err(format!(
            "its {} bytes from {} of the data on end beyond the file's {file} bytes",
            tensor.bytes, tensor.offset
        )),
    }
}

/// Bytes of a tensor of these dims and type.
fn data_bytes(dims: &[u64], stored: Stored) -> Result<u64, String> {
    let (block, bytes) = match stored {
        Stored::Rows(dtype) => (dtype.block_len() as u64, dtype.block_bytes() as u64),
        Stored::Panels(_) | Stored::Tiles(_) => (1, 1),
    };
    let row = *dims.first().ok_or("it has no dims")?;
    if dims.contains(&0) {
        return Err(format!("its dims {dims:?} are empty"));
    }
    if !row.is_multiple_of(block) {
        return Err(format!("rows of {row} are not a whole number of blocks of {block}"));
    }
    let blocks = dims[1..].iter().try_fold(row / block, |n, d| n.checked_mul(*d));
    blocks.and_then(|n| n.checked_mul(bytes)).ok_or_else(|| format!("its dims {dims:?} are too large"))
}

/// Names are unique, and no two tensors share bytes.
fn apart(tensors: &[TensorDesc]) -> Result<(), String> {
    let mut names = HashSet::new();
    if let Some(twice) = tensors.iter().find(|t| !names.insert(&t.name)) {
        return Err(format!("{} occurs twice", twice.name));
    }
    let mut order: Vec<&TensorDesc> = tensors.iter().collect();
    order.sort_by_key(|t| t.offset);
    match order.windows(2).find(|pair| pair[0].offset + pair[0].bytes > pair[1].offset) {
        Some(pair) => Err(format!("{} and {} overlap", pair[0].name, pair[1].name)),
        None => Ok(()),
    }
}
