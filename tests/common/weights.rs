//! Small weight files, written byte by byte: safetensors, and what `torch.save` writes.
#![allow(dead_code)]

use std::io::{Cursor, Write};

use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// A tensor to write: its elements are `bytes`.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// `F32`, `F16`, `BF16` or `I8`.
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// A tensor of floats 0, 1, 2, … plus `first`, which f32, f16 and bf16 represent exactly while they are small.
    pub fn new(name: &str, dtype: &'static str, shape: &[usize], first: u8) -> Self {
        let n: usize = shape.iter().product();
        let values = (0..n).map(|i| ((i + usize::from(first)) % 128) as f32);
        let bytes = match dtype {
            "F32" => values.flat_map(f32::to_le_bytes).collect(),
            "F16" => values.flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect(),
            "BF16" => values.flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect(),
            _ => values.map(|v| v as u8).collect(),
        };
        Self { name: name.into(), dtype, shape: shape.into(), bytes }
    }

    pub fn values(&self) -> Vec<f32> {
        let words = |bytes: &[u8]| u16::from_le_bytes(bytes.try_into().unwrap());
        match self.dtype {
            "F32" => self.bytes.chunks(4).map(|w| f32::from_le_bytes(w.try_into().unwrap())).collect(),
            "F16" => self.bytes.chunks(2).map(|w| half::f16::from_bits(words(w)).to_f32()).collect(),
            _ => self.bytes.chunks(2).map(|w| half::bf16::from_bits(words(w)).to_f32()).collect(),
        }
    }
}

/// A safetensors file.
pub fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut at = 0;
    let rows = tensors.iter().map(|t| {
        let (begin, end) = (at, at + t.bytes.len());
        at = end;
        format!(
            r#""{}":{{"dtype":"{}","shape":{:?},"data_offsets":[{begin},{end}]}}"#,
            t.name, t.dtype, t.shape
        )
    });
    let rows: Vec<String> = rows.collect();
    let mut header = format!(r#"{{"__metadata__":{{"format":"pt"}},{}}}"#, rows.join(","));
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    tensors.iter().for_each(|t| file.extend(&t.bytes));
    file
}

/// The pieces of a pickle, protocol 2.
pub mod pickle {
    pub fn text(s: &str) -> Vec<u8> {
        [&b"X"[..], &(s.len() as u32).to_le_bytes(), s.as_bytes()].concat()
    }

    pub fn int(n: u64) -> Vec<u8> {
        match n {
            0..256 => vec![b'K', n as u8],
            256..65_536 => [&b"M"[..], &(n as u16).to_le_bytes()].concat(),
            65_536..0x8000_0000 => [&b"J"[..], &(n as u32).to_le_bytes()].concat(),
            _ => [&b"\x8A\x08"[..], &n.to_le_bytes()].concat(),
        }
    }

    pub fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
        let all = items.concat();
        match items.len() {
            0 => b")".to_vec(),
            n @ 1..=3 => [&all[..], &[0x84 + n as u8]].concat(),
            _ => [b"(", &all[..], b"t"].concat(),
        }
    }

    pub fn global(module: &str, name: &str) -> Vec<u8> {
        format!("c{module}\n{name}\n").into_bytes()
    }

    /// `_rebuild_tensor_v2` of a window of the storage `key` with `elements`.
    pub fn tensor(
        class: &str,
        key: &str,
        elements: u64,
        offset: u64,
        shape: &[usize],
        stride: &[usize],
    ) -> Vec<u8> {
        let dims = |dims: &[usize]| tuple(&dims.iter().map(|&d| int(d as u64)).collect::<Vec<_>>());
        let id = tuple(&[text("storage"), global("torch", class), text(key), text("cpu"), int(elements)]);
        let hooks = [&global("collections", "OrderedDict")[..], b")R"].concat();
        let storage = [&id[..], b"Q"].concat();
        let arguments = tuple(&[storage, int(offset), dims(shape), dims(stride), vec![0x89], hooks]);
        [global("torch._utils", "_rebuild_tensor_v2"), arguments, b"R".to_vec()].concat()
    }

    /// A dictionary.
    pub fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let items: Vec<u8> =
            items.iter().flat_map(|(name, value)| [text(name), value.clone()].concat()).collect();
        [&b"\x80\x02}q\0("[..], &items, b"u."].concat()
    }
}

fn row_major(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect()
}

/// The `data.pkl` of these tensors, each with a storage of its own.
pub fn data_pkl(tensors: &[Tensor]) -> Vec<u8> {
    let value = |(i, t): (usize, &Tensor)| {
        let class = match t.dtype {
            "F32" => "FloatStorage",
            "F16" => "HalfStorage",
            "BF16" => "BFloat16Storage",
            _ => "CharStorage",
        };
        let elements = t.shape.iter().product::<usize>() as u64;
        pickle::tensor(class, &i.to_string(), elements, 0, &t.shape, &row_major(&t.shape))
    };
    let values: Vec<_> = tensors.iter().enumerate().map(|pair| (pair.1.name.as_str(), value(pair))).collect();
    pickle::dict(&values)
}

/// A zip archive of these entries.
pub fn archive(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method).large_file(true))
            .unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A file of `torch.save` with these tensors.
pub fn torch(tensors: &[Tensor]) -> Vec<u8> {
    let pkl = data_pkl(tensors);
    let names: Vec<String> = (0..tensors.len()).map(|i| format!("archive/data/{i}")).collect();
    let mut entries: Vec<(&str, &[u8])> = vec![("archive/data.pkl", &pkl), ("archive/byteorder", b"little")];
    entries.extend(names.iter().map(String::as_str).zip(tensors.iter().map(|t| t.bytes.as_slice())));
    entries.push(("archive/version", b"3\n"));
    archive(&entries, CompressionMethod::Stored)
}

/// The same archive with the 64-bit end record that archives of more than 4 GiB have; it claims `entries` entries, or
/// as many as there are.
pub fn zip64(archive: &[u8], entries: Option<u64>) -> Vec<u8> {
    let (body, end) = archive.split_at(archive.len() - 22);
    let word = |at: usize| u64::from(u32::from_le_bytes(end[at..at + 4].try_into().unwrap()));
    let entries = entries.unwrap_or_else(|| u64::from(u16::from_le_bytes([end[10], end[11]])));
    let mut out = body.to_vec();
    out.extend(b"PK\x06\x06");
    out.extend(44u64.to_le_bytes());
    out.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    [entries, entries, word(12), word(16)].iter().for_each(|number| out.extend(number.to_le_bytes()));
    out.extend(b"PK\x06\x07\0\0\0\0");
    out.extend((body.len() as u64).to_le_bytes());
    out.extend(b"\x01\0\0\0PK\x05\x06\0\0\0\0");
    out.extend([0xFF; 12]);
    out.extend([0, 0]);
    out
}
