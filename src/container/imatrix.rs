//! Importance matrices: GGUF files in the form of llama.cpp's `llama-imatrix` (its pull request 9400).
//!
//! Of every matrix NAME that a product reads there is `NAME.in_sum2` [columns, n], the sums of the squares of its inputs, and `NAME.counts` [1, n], of how many
//! tokens; n is 1, or the number of experts. Beside them ours may have `NAME.in_gram` [w, w, columns / w, n], the sums of products of inputs, in blocks of `w` columns:
//! row by row a symmetric matrix. All are f32.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Write},
    path::{Path, PathBuf},
};

use yuan_kernels::DType;

use super::{
    NewTensor,
    gguf::{DEFAULT_ALIGNMENT, Header, Stored, TensorDesc},
    map::Bytes,
    value::{Metadata, Value},
    write::Writer,
};
use crate::{
    error::{Error, Result},
    files::write_whole,
};

const TYPE: &str = "general.type";
const DATASETS: &str = "imatrix.datasets";
const CHUNKS: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
const GRAM: &str = ".in_gram";

/// Bytes that are written at a time.
const PIECE: usize = 1 << 16;

/// What was found out about the inputs of a model's matrices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    /// Names of the texts.
    pub datasets: Vec<String>,
    /// Pieces of text that went through the model together.
    pub chunks: u32,
    /// Tokens of a piece.
    pub chunk_size: u32,
    /// What else its maker wants to know later: keys of its own.
    pub notes: Metadata,
    /// By the name of a matrix, or of a layer's experts.
    pub entries: BTreeMap<String, Entry>,
}

/// Of one matrix, or of the experts of a layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    /// Columns of each.
    pub cols: usize,
    /// Sums of squares of the inputs by column, [n, cols].
    pub sums: Vec<f32>,
    /// Tokens, \[n\].
    pub counts: Vec<f32>,
    /// Sums of products of the inputs.
    pub gram: Option<Gram>,
}

/// Sums of products of inputs, of each of a number of matrices in blocks of columns: [matrices, blocks, width, width].
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    /// Columns of a block.
    pub width: usize,
    /// Blocks of a matrix; the last may be filled up with zeros.
    pub blocks: usize,
    /// 1 where the matrices share their inputs.
    pub matrices: usize,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    Ours(Vec<f32>),
    File(Bytes),
}

impl PartialEq for Data {
    fn eq(&self, other: &Self) -> bool {
        self.floats() == other.floats()
    }
}

impl Data {
    fn floats(&self) -> &[f32] {
        match self {
            Self::Ours(floats) => floats,
            Self::File(bytes) => bytemuck::cast_slice(bytes),
        }
    }
}

impl Gram {
    /// Zeros.
    pub fn zeros(width: usize, blocks: usize, matrices: usize) -> Self {
        let data = Data::Ours(vec![0.0; width * width * blocks * matrices]);
        Self { width, blocks, matrices, data }
    }

    /// The sums of a block of columns of a matrix, [width, width].
    pub fn block(&self, matrix: usize, block: usize) -> &[f32] {
        let square = self.width * self.width;
        &self.data.floats()[(matrix * self.blocks + block) * square..][..square]
    }

    /// All sums.
    pub fn floats(&self) -> &[f32] {
        self.data.floats()
    }

    /// [`Gram::block`], to be added to. What lies in a file is copied first.
    pub fn block_mut(&mut self, matrix: usize, block: usize) -> &mut [f32] {
        if let Data::File(_) = self.data {
            self.data = Data::Ours(self.data.floats().to_vec());
        }
        let Data::Ours(floats) = &mut self.data else { return &mut [] };
        let square = self.width * self.width;
        &mut floats[(matrix * self.blocks + block) * square..][..square]
    }
}

impl Imatrix {
    /// Reads a file. What a Gram matrix holds is not looked at: it stays in the file, which must not be changed while it is in use.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] for a file that is none of these, or damaged; [`Error::Unsupported`] for other versions of GGUF.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = Bytes::map(path)?;
        let parsed = Self::parse(&bytes, path);
        bytes.check_file(path)?;
        parsed
    }

    /// [`Imatrix::open`] on the bytes of a file; `path` names it in errors.
    ///
    /// # Errors
    /// As [`Imatrix::open`].
    pub fn parse(bytes: &Bytes, path: &Path) -> Result<Self> {
        let Header { metadata, tensors, .. } = Header::parse(bytes, path)?;
        let bad = |place: &str, problem: String| Error::BadFile {
            path: path.into(),
            place: place.into(),
            problem,
            remedy: "give a file that `yuan-quant calibrate` or llama.cpp's `llama-imatrix` (as GGUF) has made",
        };
        match metadata.text(TYPE) {
            Ok(Some("imatrix")) => {}
            Ok(Some(other)) => return Err(bad(TYPE, format!("it is {other}, and not imatrix"))),
            Ok(None) => return Err(bad(TYPE, "it is missing: this is no importance matrix".into())),
            Err(problem) => return Err(bad(TYPE, problem)),
        }
        let number = |key: &str| -> Result<u32> {
            let number = metadata.number(key).map_err(|problem| bad(key, problem))?.unwrap_or(0);
            u32::try_from(number).map_err(|_| bad(key, format!("{number} is too large")))
        };
        let (chunks, chunk_size) = (number(CHUNKS)?, number(CHUNK_SIZE)?);
        let datasets = metadata.texts(DATASETS).map_err(|problem| bad(DATASETS, problem))?;
        let datasets = datasets.unwrap_or_default().to_vec();
        let floats = |tensor: &TensorDesc| -> Result<Bytes> {
            if tensor.stored != Stored::Rows(DType::F32) {
                return Err(bad(&tensor.name, format!("it is {}, and not f32", tensor.stored.name())));
            }
            let range = tensor.offset as usize..(tensor.offset + tensor.bytes) as usize;
            let aligned = |bytes: &Bytes| bytes.as_ptr().align_offset(align_of::<f32>()) == 0;
            let bytes = bytes.slice(range).filter(aligned);
            bytes.ok_or_else(|| bad(&tensor.name, "it is not aligned".into()))
        };
        let numbers = |tensor: &TensorDesc| -> Result<Vec<f32>> {
            let numbers: Vec<f32> = bytemuck::cast_slice(&floats(tensor)?).to_vec();
            match numbers.iter().find(|n| !(n.is_finite() && **n >= 0.0)) {
                Some(n) => Err(bad(&tensor.name, format!("it has {n} in it: sums and counts are 0 or more"))),
                None => Ok(numbers),
            }
        };
        let by_name: HashMap<&str, &TensorDesc> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        let mut entries = BTreeMap::<String, Entry>::new();
        for tensor in &tensors {
            let Some(name) = tensor.name.strip_suffix(SUMS) else { continue };
            let counts = format!("{name}{COUNTS}");
            let missing = || bad(&tensor.name, format!("there is no {counts} beside it"));
            let counts = by_name.get(counts.as_str()).ok_or_else(missing)?;
            let (sums, counts) = (numbers(tensor)?, numbers(counts)?);
            let cols = tensor.dims[0] as usize;
            if cols * counts.len() != sums.len() {
                let found = counts.len();
                return Err(bad(
                    &tensor.name,
                    format!("it has {} sums, and there are {found} counts", sums.len()),
                ));
            }
            entries.insert(name.into(), Entry { cols, sums, counts, gram: None });
        }
        for tensor in &tensors {
            if let Some(name) = tensor.name.strip_suffix(COUNTS)
                && !entries.contains_key(name)
            {
                return Err(bad(&tensor.name, format!("there is no {name}{SUMS} beside it")));
            }
            let Some(name) = tensor.name.strip_suffix(GRAM) else { continue };
            let entry = entries.get_mut(name);
            let entry =
                entry.ok_or_else(|| bad(&tensor.name, format!("there is no {name}{SUMS} beside it")))?;
            let dim = |i: usize| tensor.dims.get(i).map_or(1, |&d| d as usize);
            let (width, blocks, matrices) = (dim(0), dim(2), dim(3));
            let fits = dim(1) == width
                && entry.cols.div_ceil(width) == blocks
                && (matrices == 1 || matrices == entry.counts.len());
            if !fits {
                let found = format!(
                    "its dims {:?} do not fit {} columns of {} matrices",
                    tensor.dims,
                    entry.cols,
                    entry.counts.len()
                );
                return Err(bad(&tensor.name, found));
            }
            entry.gram = Some(Gram { width, blocks, matrices, data: Data::File(floats(tensor)?) });
        }
        if entries.is_empty() {
            return Err(bad("the list of tensors", format!("there is no NAME{SUMS} in it")));
        }
        let mut notes = metadata;
        notes.remove(|key| [TYPE, DATASETS, CHUNKS, CHUNK_SIZE, "general.alignment"].contains(&key));
        Ok(Self { datasets, chunks, chunk_size, notes, entries })
    }

    /// Writes the file, in the order of the names. One that is there is replaced when the new one is whole.
    ///
    /// # Errors
    /// As [`write_whole`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut metadata = Metadata::default();
        metadata.set(TYPE, Value::String("imatrix".into()));
        metadata.set(DATASETS, Value::Strings(self.datasets.clone()));
        metadata.set(CHUNKS, Value::U32(self.chunks));
        metadata.set(CHUNK_SIZE, Value::U32(self.chunk_size));
        self.notes.entries().iter().for_each(|(key, value)| metadata.set(key, value.clone()));
        let mut tensors = Vec::new();
        for (name, entry) in &self.entries {
            let n = entry.counts.len() as u64;
            tensors.push((tensor(name, SUMS, vec![entry.cols as u64, n]), &entry.sums[..]));
            tensors.push((tensor(name, COUNTS, vec![1, n]), &entry.counts[..]));
            if let Some(gram) = &entry.gram {
                let [width, blocks, matrices] = [gram.width, gram.blocks, gram.matrices].map(|n| n as u64);
                tensors.push((tensor(name, GRAM, vec![width, width, blocks, matrices]), gram.floats()));
            }
        }
        let (descs, data): (Vec<NewTensor>, Vec<&[f32]>) = tensors.into_iter().unzip();
        let writer = Writer::new(metadata, &descs, DEFAULT_ALIGNMENT, false);
        write_whole(path, writer.file_bytes(), |out| {
            let header = writer.header(None);
            out.write_all(&header)?;
            let first = writer.offset(0) as usize;
            pad(out, first.saturating_sub(header.len()))?;
            for (i, floats) in data.iter().enumerate() {
                let bytes: &[u8] = bytemuck::cast_slice(floats);
                bytes.chunks(PIECE).try_for_each(|piece| out.write_all(piece))?;
                pad(out, writer.behind(i))?;
            }
            Ok(())
        })
    }
}

fn pad(out: &mut impl Write, n: usize) -> io::Result<()> {
    out.write_all(&vec![0; n])
}

fn tensor(name: &str, suffix: &str, dims: Vec<u64>) -> NewTensor {
    let bytes = dims.iter().product::<u64>() * size_of::<f32>() as u64;
    NewTensor { name: format!("{name}{suffix}"), dims, stored: Stored::Rows(DType::F32), bytes }
}

/// Files that hold partial sums lie beside their target.
pub fn partial(path: &Path) -> PathBuf {
    path.with_added_extension("partial")
}
