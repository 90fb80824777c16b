//! A checkpoint folder: its config, and its weights by name.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet, btree_map},
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
};

use super::{
    archive,
    config::{Parsed, parse_config_of},
    entry::{ElementType, Entry, elements},
    family::{self, Description, describe},
    file::{open, read_exact_at, read_text, stamp},
    gptq::{self, Facts, Packed},
    layout::{self, Format, Layout},
    names::{self, Role, Source},
    safetensors,
};
use crate::{
    config::ModelConfig,
    error::{Error, Result, TensorProblems},
};

pub(super) const LARGEST_CONFIG: u64 = 16 << 20;
/// Bytes that are read at a time.
const PIECE: usize = 1 << 18;

/// An open Hugging Face checkpoint whose tensors are exactly those that its config asks for. Its methods may be called from many
/// threads; weights are read when asked for, in pieces, and nothing of them stays in memory.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    config: ModelConfig,
    names_rope_base: bool,
    files: Vec<Shard>,
    tensors: HashMap<String, Weights>,
    /// How matrices are quantized, and those that are, by the names of their weights.
    quantized: Option<gptq::Settings>,
    modules: HashMap<String, gptq::Module>,
    left_out: Vec<LeftOut>,
    /// Size and modification time of the config's file.
    config_stamp: (u64, u128),
}

/// A tensor of the folder that is no part of the text model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Its name.
    pub name: String,
    /// Bytes of its elements; none where their type is not known.
    pub bytes: Option<u64>,
}

/// An open file of weights.
#[derive(Debug)]
pub(super) struct Shard {
    name: String,
    pub path: PathBuf,
    file: File,
    len: u64,
    modified: u128,
}

/// Where the elements of a tensor are.
#[derive(Debug)]
pub(super) struct Weights {
    /// Number of the file; none for zeros that no file has.
    pub file: Option<usize>,
    offset: u64,
    element: ElementType,
    /// Bytes of an element.
    width: u64,
    pub elements: u64,
}

impl Checkpoint {
    /// Opens a folder with `config.json` and weights: `model.safetensors`, its shards, `pytorch_model.bin`, or its shards; or a folder of GPTQ
    /// ([`gptq`]). Reads the tables of all files, and no weights.
    ///
    /// # Errors
    /// When a file is missing, damaged or not supported; [`Error::Tensors`] lists all tensors that are not as the config has them.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let config_stamp = stamp(&open(&path)?, &path)?;
        let text = read_text(&path, LARGEST_CONFIG)?;
        let quantized = gptq::Settings::find(folder, &text)?;
        let layout = layout::find(folder)?;
        let mut files = Vec::new();
        let mut tables = Vec::new();
        for name in &layout.files {
            let shard = Shard::open(folder, name)?;
            tables.push(shard.entries(layout.format)?);
            files.push(shard);
        }
        let family = family::of_names(tables.iter().flatten().map(|entry| entry.name.as_str()));
        let Parsed { config, names_rope_base, has_bias, .. } = parse_config_of(&text, &path, family)?;
        let Found { tensors, modules, left_out } =
            check(&config, has_bias, folder, &layout, tables, quantized.as_ref(), &files)?;
        if let Some(settings) = &quantized {
            gptq::check_label(settings, &modules, &files)?;
        }
        let folder = folder.into();
        Ok(Self {
            folder,
            config,
            names_rope_base,
            files,
            tensors,
            quantized,
            modules,
            left_out,
            config_stamp,
        })
    }

    /// The shape of the model.
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The files of the checkpoint, those of its tokenizer included.
    pub fn files(&self) -> Vec<PathBuf> {
        const BESIDE: [&str; 5] = [
            "config.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "model.safetensors.index.json",
            "pytorch_model.bin.index.json",
        ];
        let beside =
            BESIDE.iter().chain(&gptq::FILES).map(|name| self.folder.join(name)).filter(|path| path.exists());
        self.files.iter().map(|shard| shard.path.clone()).chain(beside).collect()
    }

    /// Whether its config names the base of the rotary frequencies ([`Parsed::names_rope_base`]).
    pub const fn names_rope_base(&self) -> bool {
        self.names_rope_base
    }

    /// Tensors of the folder that are no part of the text model, by name.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Bytes of all tensors that the config asks for.
    pub fn data_bytes(&self) -> u64 {
        let there = self.tensors.values().filter(|weights| weights.file.is_some());
        let plain = there.map(|weights| weights.elements * weights.width).sum::<u64>();
        plain + self.modules.values().map(gptq::Module::bytes).sum::<u64>()
    }

    /// Bytes that are the same as long as the folder, the config, and the names, sizes and modification times of the files are.
    pub fn identity(&self) -> Vec<u8> {
        let folder = self.folder.canonicalize().unwrap_or_else(|_| self.folder.clone());
        let files = self.files.iter().map(|f| (f.name.as_str(), f.len, f.modified));
        let config = ("config.json", self.config_stamp.0, self.config_stamp.1);
        // Debug texts quote names, so that no two lists look the same.
        let list: Vec<_> = std::iter::once(config).chain(files).collect();
        let quantized = self.quantized.as_ref().map(|settings| format!(" {settings:?}"));
        format!("{folder:?} {:?} {list:?}{}", self.config, quantized.unwrap_or_default()).into_bytes()
    }

    /// How its matrices are quantized, where some are.
    pub fn quantized(&self) -> Option<&gptq::Settings> {
        self.quantized.as_ref().filter(|_| !self.modules.is_empty())
    }

    /// What decides which forms hold the quantized matrix of this name exactly; `None` where the tensor is not quantized.
    ///
    /// # Errors
    /// When its parts cannot be read, or are damaged.
    pub fn facts(&self, name: &str) -> Result<Option<Facts>> {
        self.modules.get(name).map(|module| module.facts(&self.files)).transpose()
    }

    /// The quantized matrix of this name, whole; `None` where the tensor is not quantized.
    ///
    /// # Errors
    /// As [`Checkpoint::facts`].
    pub fn packed(&self, name: &str) -> Result<Option<Packed>> {
        self.modules.get(name).map(|module| module.load(&self.files)).transpose()
    }

    /// Bytes of the largest quantized matrix as the files have it.
    pub fn largest_packed(&self) -> u64 {
        self.modules.values().map(gptq::Module::bytes).max().unwrap_or(0)
    }

    /// The type of a tensor's elements; `None` for one that is quantized or not there.
    pub fn element(&self, name: &str) -> Option<&ElementType> {
        self.tensors.get(name).map(|weights| &weights.element)
    }

    /// Appends the elements `range` (row-major) of a tensor to `out`, widened to f32. Of a quantized matrix all is read, for any range:
    /// [`Checkpoint::packed`] is for those who want several.
    ///
    /// # Errors
    /// [`Error::Argument`] for a tensor that the model does not have, and a range beyond its end; [`Error::Io`].
    pub fn read_f32(&self, name: &str, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let argument = |problem: String| Error::Argument(format!("tensor {name}: {problem}"));
        if let Some(module) = self.modules.get(name) {
            if range.start > range.end || range.end > module.elements() {
                return Err(argument(format!("elements {range:?} of {}", module.elements())));
            }
            module.load(&self.files)?.read_f32(range, out);
            return Ok(());
        }
        let weights =
            self.tensors.get(name).ok_or_else(|| argument("the model has none of this name".into()))?;
        if range.start > range.end || range.end as u64 > weights.elements {
            return Err(argument(format!("elements {range:?} of {}", weights.elements)));
        }
        let Some(file) = weights.file else {
            out.resize(out.len() + range.len(), 0.0);
            return Ok(());
        };
        self.files[file].widen(weights, range, out)
    }
}

impl Shard {
    pub(super) fn open(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        let file = open(&path)?;
        let (len, modified) = stamp(&file, &path)?;
        Ok(Self { name: name.into(), path, file, len, modified })
    }

    /// Fills `buffer` from the file's byte `offset` on.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        read_exact_at(&self.file, buffer, offset).map_err(Error::io("read", &self.path))
    }

    /// The table of its tensors.
    pub(super) fn entries(&self, format: Format) -> Result<Vec<Entry>> {
        match format {
            Format::Safetensors => safetensors::read_entries(&self.file, self.len, &self.path),
            Format::Torch => archive::read_entries(&self.file, self.len, &self.path),
        }
    }

    /// Appends elements of weights that this file has, widened to f32.
    pub(super) fn widen(&self, weights: &Weights, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let width = weights.width as usize;
        out.reserve(range.len());
        BUFFER.with_borrow_mut(|buffer| {
            for start in range.clone().step_by(PIECE / width) {
                let count = (range.end - start).min(PIECE / width);
                buffer.resize(count * width, 0);
                self.read(buffer, weights.offset + start as u64 * weights.width)?;
                weights.element.widen(buffer, out);
            }
            Ok(())
        })
    }
}

impl Weights {
    /// What `spec` wants of the tensor `entry` in a file; none where that has a type that weights cannot have.
    pub(super) fn of(spec: &names::TensorSpec, file: usize, entry: &Entry) -> Option<Self> {
        let width = entry.element.weight_bytes()?;
        elements(&entry.shape)?;
        // The whole tensor has a size, and the weights are some of its rows.
        let row: u64 = entry.shape[1..].iter().product();
        let offset = entry.offset + spec.source.first_row as u64 * row * width;
        let elements = spec.shape[0] as u64 * row;
        Some(Self { file: Some(file), offset, element: entry.element.clone(), width, elements })
    }
}

/// Whether a tensor that the table of names does not have may be there all the same.
fn is_ignored(name: &str, config: &ModelConfig, about: &Description) -> bool {
    about.is_computed(name) || (config.tied_embeddings && name == "lm_head.weight")
}

/// What is in a folder.
pub(super) struct Found {
    /// By the names of the runtime.
    pub tensors: HashMap<String, Weights>,
    modules: HashMap<String, gptq::Module>,
    pub left_out: Vec<LeftOut>,
}

/// Compares the tables of the files (in the order of the layout) with the config and with the index.
pub(super) fn check(
    config: &ModelConfig,
    has_bias: Option<bool>,
    folder: &Path,
    layout: &Layout,
    tables: Vec<Vec<Entry>>,
    quantized: Option<&gptq::Settings>,
    files: &[Shard],
) -> Result<Found> {
    let about = describe(config.family);
    let mut left_out = Vec::new();
    let mut problems = TensorProblems::default();
    let mut found = gptq::Found::new();
    let mut twice = HashSet::new();
    for (file, table) in tables.into_iter().enumerate() {
        for entry in table {
            let name = about.text_name(&entry.name).to_owned();
            if about.is_beside(&name) {
                left_out.push(LeftOut { bytes: entry.bytes(), name: entry.name });
                continue;
            }
            match found.entry(name) {
                btree_map::Entry::Occupied(first) => {
                    twice.insert(first.key().clone());
                }
                btree_map::Entry::Vacant(place) => {
                    place.insert((file, entry));
                }
            }
        }
    }
    problems.duplicate.extend(twice);
    problems.duplicate.sort_unstable();
    let places: BTreeMap<String, usize> =
        found.values().map(|(file, entry)| (entry.name.clone(), *file)).collect();
    let specs = names::tensors(config);
    let bias = bias(about, &specs, has_bias, &found)
        .map_err(|problem| Error::bad_file(folder.join("config.json"), "key use_lfa_bias", problem))?;

    let mut tensors = HashMap::new();
    let modules = gptq::take_modules(quantized, &specs, &mut found, files, &mut problems)?;
    let is_plain = |spec: &names::TensorSpec| !modules.contains_key(&spec.hf);
    let mut wrong_type = None;
    let mut used = HashSet::new();
    for spec in specs.into_iter().filter(is_plain) {
        let Source { tensor, shape, .. } = spec.source.clone();
        if spec.role == Role::ConvBias && !bias {
            let elements = spec.shape[0] as u64;
            let zeros = Weights { file: None, offset: 0, element: ElementType::F32, width: 4, elements };
            tensors.insert(spec.hf, zeros);
            continue;
        }
        let Some((file, entry)) = found.get(&tensor) else {
            push_new(&mut problems.missing, tensor);
            continue;
        };
        used.insert(tensor.clone());
        if !entry.shape.iter().copied().eq(shape.iter().map(|&dim| dim as u64)) {
            push_new(
                &mut problems.misshapen,
                format!("{tensor}: found {:?}, expected {shape:?}", entry.shape),
            );
            continue;
        }
        match Weights::of(&spec, *file, entry) {
            Some(weights) => drop(tensors.insert(spec.hf, weights)),
            None => drop(wrong_type.get_or_insert((*file, entry.clone()))),
        }
    }
    found.retain(|name, _| !used.contains(name));
    problems.unexpected.extend(found.into_keys().filter(|name| !is_ignored(name, config, about)));
    if !problems.is_empty() {
        return Err(Error::Tensors { path: folder.into(), problems });
    }
    if let Some((index, map)) = &layout.index {
        let map = map.iter().filter(|(name, _)| !about.is_beside(about.text_name(name)));
        check_index(&folder.join(index), &map.collect(), &places, &layout.files)?;
    }
    match wrong_type {
        Some((file, entry)) => Err(wrong_type_of(&entry, folder.join(&layout.files[file]))),
        None => {
            left_out.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            let modules = modules.into_iter().filter_map(|(name, module)| Some((name, module?)));
            Ok(Found { tensors, modules: modules.collect(), left_out })
        }
    }
}

/// The error for a tensor of a type that weights cannot have.
pub(super) fn wrong_type_of(entry: &Entry, path: PathBuf) -> Error {
    Error::Unsupported {
        path,
        what: format!("tensor {} of type {}", entry.name, entry.element),
        remedy: "give the bf16, f16 or f32 checkpoint".into(),
    }
}

/// Whether the filter's convolutions have biases. Where the family leaves it open, the tensors say it, and the config must not say otherwise.
fn bias(
    about: &Description,
    specs: &[names::TensorSpec],
    said: Option<bool>,
    found: &gptq::Found,
) -> Result<bool, String> {
    if !about.may_lack_bias {
        return Ok(true);
    }
    let mut wanted = specs.iter().filter(|spec| spec.role == Role::ConvBias);
    let there = wanted.find(|spec| found.contains_key(&spec.source.tensor));
    match (said, there) {
        (Some(false), Some(spec)) => {
            Err(format!("it is false, but there is a tensor {}", spec.source.tensor))
        }
        (said, there) => Ok(there.is_some() || said == Some(true)),
    }
}

/// Adds what is not the last already: the parts of one tensor stand side by side.
fn push_new(list: &mut Vec<String>, text: String) {
    if list.last() != Some(&text) {
        list.push(text);
    }
}

/// The index must say of every tensor the file that it is in, and of no others.
fn check_index(
    path: &Path,
    index: &BTreeMap<&String, &String>,
    places: &BTreeMap<String, usize>,
    files: &[String],
) -> Result<()> {
    let disagree = |name: &str, problem: String| {
        Err(Error::bad_file(path, format!("weight_map, tensor {name}"), problem))
    };
    for (name, listed) in index {
        match places.get(*name).map(|file| &files[*file]) {
            Some(file) if file == *listed => {}
            Some(file) => return disagree(name, format!("it is in {file}, not in {listed}")),
            None => return disagree(name, format!("it is not in {listed}")),
        }
    }
    match places.iter().find(|(name, _)| !index.contains_key(*name)) {
        Some((name, file)) => disagree(name, format!("it is not listed, and is in {}", files[*file])),
        None => Ok(()),
    }
}
