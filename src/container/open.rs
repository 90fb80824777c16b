//! An open container: every name, shape, size and type checked before anything is used.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use yuan_kernels::{
    blocks::QK,
    panel::{PANEL_ROWS, panel_bytes},
};

use super::{
    arriving::{Arrival, Arriving, come},
    gguf::{Header, Stored, TensorDesc},
    map::Bytes,
    metadata::{Layout, read_architecture, read_config, read_layout, read_vocab},
    panels::panel_dims,
    tiles::TileLayout,
    value::damaged,
    verify,
    view::{ConvLayout, ExpertView, TensorView},
};
use crate::{
    checkpoint::names::{self, Role, TensorSpec},
    config::ModelConfig,
    error::{Error, Result, TensorProblems},
    vocab::Vocab,
};

/// A container of ours, or a GGUF file as the authors' llama.cpp fork writes them, mapped into memory.
#[derive(Debug)]
pub struct Container {
    path: PathBuf,
    bytes: Bytes,
    header: Header,
    config: ModelConfig,
    layout: Layout,
    /// By name, the place in `header.tensors`.
    index: HashMap<String, usize>,
    /// [`Container::identity`].
    identity: blake3::Hash,
    /// Of a file that is still coming.
    arriving: Option<Arc<Arriving>>,
}

impl Container {
    /// Maps a file and checks its header, its config and its list of tensors against each other. No tensor is read:
    /// `yuan-quant verify` does that.
    ///
    /// The file must not be changed while it is open; our own tools write another file and rename it. If the file is cut off or can no longer be
    /// read, the calls that read it fail. On Unix they get no signal: a handler of SIGBUS is installed, which passes on signals about other memory.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] with what is wrong and where; [`Error::Unsupported`] for other architectures, types
    /// and versions; [`Error::Tensors`] with every tensor that is missing, unexpected or misshapen.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = Bytes::map(path)?;
        let parsed = Self::parse(bytes.clone(), path);
        bytes.check_file(path)?;
        parsed
    }

    /// [`Container::open`] on the bytes of a file; `path` names it in errors.
    ///
    /// # Errors
    /// As [`Container::open`].
    pub fn parse(bytes: Bytes, path: &Path) -> Result<Self> {
        Self::of_header(Header::parse(&bytes, path)?, bytes, path)
    }

    /// Opens a container that is still coming: a file of its full length, whose bytes `arrival` brings. The header is waited for; loading a model
    /// ([`Model::load`](crate::model::Model::load)) waits for everything but the experts, and a pass of the model for the experts that it needs. Each
    /// tensor is compared with its digest before it is used, and one that is wrong is an error of the call that needs it, and is fetched again for the
    /// next.
    ///
    /// # Errors
    /// As [`Container::open`]; [`Error::Unsupported`] for a container without experts in tiles, or without digests; [`Error::Cancelled`] where `arrival`
    /// says so.
    pub fn open_arriving(path: &Path, arrival: Arc<dyn Arrival>) -> Result<Self> {
        let bytes = Bytes::map(path)?;
        let (failure, reached) = (RefCell::new(None), Cell::new(0));
        let reach = |end: usize| {
            reached.set(end as u64);
            come(&*arrival, 0..end as u64, &|| true, path).map_err(|problem| {
                let said = problem.to_string();
                *failure.borrow_mut() = Some(problem);
                said
            })
        };
        let header = Header::parse_coming(&bytes, path, &reach);
        if let Some(problem) = failure.into_inner() {
            return Err(problem);
        }
        let opened = header.and_then(|header| Self::of_header(header, bytes.clone(), path));
        bytes.check_file(path)?;
        let mut container = opened.inspect_err(|_| {
            // What has come may be at fault: the next run asks for it again.
            arrival.reject(0..reached.get());
        })?;
        if container.tile_layout().is_none() {
            return Err(Error::Unsupported {
                path: path.into(),
                what: "running a file without experts in tiles before it is whole".into(),
                remedy: "fetch all of it first (`yuan pull`)".into(),
            });
        }
        container.arriving = Some(Arc::new(Arriving::new(arrival, &container.header, &bytes, path)?));
        Ok(container)
    }

    fn of_header(header: Header, bytes: Bytes, path: &Path) -> Result<Self> {
        verify::header(&header, &bytes, path)?;
        let unsupported = |what: String| Error::Unsupported {
            path: path.into(),
            what,
            remedy: "convert the checkpoint again with this version of yuan-quant".into(),
        };
        read_architecture(&header.metadata).map_err(unsupported)?;
        let layout = read_layout(&header.metadata).map_err(unsupported)?;
        let config = read_config(&header.metadata, &header.tensors)
            .map_err(damaged(path, "the config in the metadata"))?;
        let index = header.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes[..header.bytes as usize]).update(&(bytes.len() as u64).to_le_bytes());
        let identity = hasher.finalize();
        let path = path.into();
        let container = Self { path, bytes, header, config, layout, index, identity, arriving: None };
        container.check_tensors()?;
        Ok(container)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Version of the integer arithmetic of the program that wrote the file: 1 where it says none.
    pub fn arithmetic(&self) -> u64 {
        self.header.metadata.number("yuan.arithmetic").ok().flatten().unwrap_or(1)
    }

    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> &[TensorDesc] {
        &self.header.tensors
    }

    /// Bytes of all tensors.
    pub fn data_bytes(&self) -> u64 {
        self.header.tensors.iter().map(|t| t.bytes).sum()
    }

    /// The layout, for people.
    pub fn layout_name(&self) -> String {
        match (self.layout, self.tile_layout()) {
            (Layout::Standard, _) => "standard GGUF, rows".into(),
            (Layout::Tiles, None) => "rows and panels".into(),
            (Layout::Tiles, Some(tiles)) => format!("neuron tiles of {}", tiles.dtype.name()),
        }
    }

    /// The vocabulary.
    ///
    /// # Errors
    /// [`Error::BadFile`] when the metadata holds none, or one that is broken or larger than the model's.
    pub fn vocab(&self) -> Result<Vocab> {
        let vocab = read_vocab(&self.header.metadata)
            .map_err(damaged(&self.path, "the tokenizer in the metadata"))?;
        let (pieces, rows) = (vocab.pieces.len(), self.config.vocab);
        if pieces > rows {
            let problem = format!("{pieces} tokens are more than the {rows} rows of the embedding");
            return Err(damaged(&self.path, "tokenizer.ggml.tokens")(problem));
        }
        Ok(vocab)
    }

    /// A matrix or a vector by its name; `None` where there is none, or it holds tiles.
    pub fn tensor(&self, name: &str) -> Option<TensorView> {
        let desc = self.desc(name)?;
        let dims = || desc.dims.iter().map(|&d| usize::try_from(d).ok());
        let outer = dims().skip(1).try_fold(1usize, |n, d| n.checked_mul(d?))?;
        let inner = dims().next()??;
        let (dtype, panels, rows, cols) = match desc.stored {
            Stored::Rows(dtype) => (dtype, false, outer, inner),
            Stored::Panels(dtype) => {
                (dtype, true, outer.checked_mul(PANEL_ROWS)?, inner / panel_bytes(dtype)? * QK)
            }
            Stored::Tiles(_) => return None,
        };
        Some(TensorView { name: name.into(), dtype, rows, cols, panels, bytes: self.data(desc) })
    }

    /// The weight of the convolution `name` (`blk.0.conv1`) as [out, 2 in], and how its rows lie.
    ///
    /// # Errors
    /// [`Error::BadFile`] when it is not there.
    pub fn conv(&self, name: &str) -> Result<(TensorView, ConvLayout)> {
        let weight = format!("{name}.weight");
        let view = self.tensor(&weight).ok_or_else(|| self.missing(&weight))?;
        if self.layout != Layout::Standard {
            return Ok((view, ConvLayout::Split));
        }
        // A standard file has the dims [1, 2, in, out].
        let rows = self.desc(&weight).and_then(|d| d.dims.get(3)).copied().unwrap_or(1) as usize;
        let cols = view.rows * view.cols / rows;
        Ok((TensorView { rows, cols, ..view }, ConvLayout::Interleaved))
    }

    /// An expert.
    ///
    /// # Errors
    /// [`Error::BadFile`] when it is not there.
    pub fn expert(&self, layer: usize, expert: usize) -> Result<ExpertView> {
        if let Some(layout) = self.tile_layout() {
            let name = names::tiled_expert(layer, expert);
            let desc = self.desc(&name).ok_or_else(|| self.missing(&name))?;
            return Ok(ExpertView::Tiles { layout, bytes: self.data(desc) });
        }
        let rows = |which: &str| {
            let name = format!("blk.{layer}.{which}.{expert}.weight");
            self.tensor(&name).ok_or_else(|| self.missing(&name))
        };
        Ok(ExpertView::Rows { w1: rows("ffn_gate")?, w2: rows("ffn_down")? })
    }

    /// The shape of tiled experts, where the file has such.
    pub fn tile_layout(&self) -> Option<TileLayout> {
        match self.desc(&names::tiled_expert(0, 0))?.stored {
            Stored::Tiles(dtype) => TileLayout::new(self.config.hidden, self.config.ffn, dtype),
            Stored::Rows(_) | Stored::Panels(_) => None,
        }
    }

    /// Reads every tensor and compares it with the BLAKE3 digest that was recorded when it was written. `progress` hears
    /// the bytes that are done and says whether to go on.
    ///
    /// # Errors
    /// [`Error::Checksum`] that names the first damaged tensor; [`Error::Unsupported`] for files without digests;
    /// [`Error::Cancelled`].
    pub fn verify(&self, progress: &dyn Fn(u64) -> bool) -> Result<()> {
        if let Some(arriving) = &self.arriving {
            arriving.bring_all(&|| progress(0))?;
        }
        let verified = verify::tensors(&self.header, &self.bytes, &self.path, progress);
        self.check_file()?;
        verified
    }

    /// Compares some tensors of all parts of the file with their digests: of `most` bytes together, or the first of them where that is larger. Returns how many they
    /// are, and their bytes. `progress` is as for [`Container::verify`].
    ///
    /// # Errors
    /// As [`Container::verify`].
    pub fn verify_sample(&self, most: u64, progress: &dyn Fn(u64) -> bool) -> Result<(usize, u64)> {
        if let Some(arriving) = &self.arriving {
            arriving.bring_all(&|| progress(0))?;
        }
        let verified = verify::sample(&self.header, &self.bytes, &self.path, most, progress);
        self.check_file()?;
        verified
    }

    /// Checks that the file is as long as it was, and that everything read so far was really there.
    ///
    /// # Errors
    /// [`Error::BadFile`] that says what has happened.
    pub fn check_file(&self) -> Result<()> {
        self.bytes.check_file(&self.path)
    }

    /// The tensors of a file that is still coming.
    pub(crate) fn arriving(&self) -> Option<&Arc<Arriving>> {
        self.arriving.as_ref()
    }

    /// All bytes of the file.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// A digest of the header and the length of the file, which tell it from another file without reading its tensors.
    pub fn identity(&self) -> &[u8] {
        self.identity.as_bytes()
    }

    /// The digest by which a saved session knows its model: of the header, which holds the digests of all tensors, and of the length
    /// of the file. For a file without digests, the beginnings of sixteen tensors are added.
    ///
    /// # Errors
    /// As [`Container::check_file`], of a file without digests.
    pub fn fingerprint(&self) -> Result<[u8; 32]> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.identity());
        if !self.has_digests() {
            let tensors = &self.header.tensors;
            for desc in tensors.iter().step_by(tensors.len().div_ceil(16).max(1)) {
                let data = self.data(desc);
                hasher.update(&data[..data.len().min(4096)]);
            }
            self.check_file()?;
        }
        Ok(hasher.finalize().into())
    }

    fn has_digests(&self) -> bool {
        matches!(self.header.metadata.texts(super::write::DIGESTS), Ok(Some(_)))
    }

    fn desc(&self, name: &str) -> Option<&TensorDesc> {
        self.index.get(name).map(|&i| &self.header.tensors[i])
    }

    fn data(&self, desc: &TensorDesc) -> Bytes {
        let range = desc.offset as usize..(desc.offset + desc.bytes) as usize;
        self.bytes.slice(range).expect("the header was checked against the file")
    }

    fn missing(&self, name: &str) -> Error {
        Error::bad_file(&self.path, format!("tensor {name}"), "it is missing")
    }

    /// The tensors are those that the config asks for, in the shapes that it asks for.
    fn check_tensors(&self) -> Result<()> {
        let mut problems = TensorProblems::default();
        let expected = self.expected();
        let known: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let unexpected = self.header.tensors.iter().filter(|t| !known.contains(t.name.as_str()));
        problems.unexpected.extend(unexpected.map(|t| t.name.clone()));
        for (name, wanted) in &expected {
            let Some(desc) = self.desc(name) else {
                problems.missing.push(name.clone());
                continue;
            };
            let dims = wanted.dims(desc.stored);
            if dims.as_deref().map(significant) != Some(significant(&desc.dims)) {
                let (kind, found) = (desc.stored.name(), &desc.dims);
                problems.misshapen.push(match dims {
                    Some(dims) => format!("{name}: found {found:?}, expected {dims:?}"),
                    None => format!("{name}: it cannot be {kind}"),
                });
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Tensors { path: self.path.clone(), problems }) }
    }

    /// Names and shapes of all tensors that the config asks for.
    fn expected(&self) -> Vec<(String, Wanted)> {
        let tiles = self.tile_layout();
        let one = |spec: TensorSpec| -> Option<(String, Wanted)> {
            match (spec.role, tiles) {
                (Role::ExpertIn { layer, expert }, Some(tiles)) => {
                    Some((names::tiled_expert(layer, expert), Wanted::Expert(tiles)))
                }
                (Role::ExpertOut { .. }, Some(_)) => None,
                (Role::Conv, _) if self.layout != Layout::Standard => {
                    Some((spec.gguf, Wanted::Matrix(vec![spec.shape[0], 2 * spec.shape[1]])))
                }
                (Role::Embedding, _) => Some((spec.gguf, Wanted::Rows(spec.shape))),
                _ => Some((spec.gguf, Wanted::Matrix(spec.shape))),
            }
        };
        names::tensors(&self.config).into_iter().filter_map(one).collect()
    }
}

/// What the config asks of a tensor. Shapes have their outermost dim first.
enum Wanted {
    /// Any form of this shape.
    Matrix(Vec<usize>),
    /// Rows of this shape, which are read one by one.
    Rows(Vec<usize>),
    Expert(TileLayout),
}

impl Wanted {
    /// The dims (innermost first) that a tensor stored so must have, or `None` where it cannot be stored so.
    fn dims(&self, stored: Stored) -> Option<Vec<u64>> {
        match (self, stored) {
            (Self::Matrix(shape) | Self::Rows(shape), Stored::Rows(_)) => {
                Some(shape.iter().rev().map(|&d| d as u64).collect())
            }
            (Self::Matrix(shape), Stored::Panels(dtype)) => match shape[..] {
                [rows, cols] => panel_dims(dtype, rows, cols),
                _ => None,
            },
            (Self::Expert(tiles), Stored::Tiles(dtype)) if dtype == tiles.dtype => {
                Some(vec![tiles.tile_bytes() as u64, tiles.tiles() as u64])
            }
            _ => None,
        }
    }
}

/// Dims without the ones behind the last that counts: GGUF leaves them out at will.
fn significant(dims: &[u64]) -> &[u64] {
    let last = dims.iter().rposition(|&d| d != 1).map_or(0, |i| i + 1);
    &dims[..last]
}
