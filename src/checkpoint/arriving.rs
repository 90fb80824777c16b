//! A checkpoint whose shards come one after another: known by its config and its index before any of them is there.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    config::{Parsed, parse_config_of},
    entry::{ElementType, Entry},
    family::{self, describe},
    file::read_text,
    folder::{Found, LARGEST_CONFIG, LeftOut, Shard, Weights, check, wrong_type_of},
    gptq,
    layout::{Format, LARGEST_INDEX, Layout, parse_index},
    names::{self, TensorSpec},
};
use crate::{
    config::ModelConfig,
    error::{Error, Result, TensorProblems},
};

/// A folder with the config and the index of a Hugging Face checkpoint of floats, whose tensors are exactly those that the config asks for. Its shards
/// are looked at when weights of theirs are asked for, and have to be there then, whole.
#[derive(Debug)]
pub struct Arriving {
    folder: PathBuf,
    config: ModelConfig,
    names_rope_base: bool,
    format: Format,
    files: Vec<String>,
    /// By the names of the runtime.
    tensors: HashMap<String, Part>,
    left_out: Vec<LeftOut>,
    open: Vec<Mutex<Option<Arc<Open>>>>,
}

/// What is known of a tensor before its file is there.
#[derive(Debug)]
struct Part {
    spec: TensorSpec,
    /// None for zeros that no file has.
    file: Option<usize>,
    elements: u64,
}

/// A shard that is there.
#[derive(Debug)]
struct Open {
    shard: Shard,
    /// By their names in the text model.
    entries: HashMap<String, Entry>,
}

impl Arriving {
    /// Reads config and index of a folder. `None` where there is no index, or matrices are quantized: then all of it must be there, for a
    /// [`Checkpoint`](super::Checkpoint).
    ///
    /// # Errors
    /// As [`Checkpoint::open`](super::Checkpoint::open), as far as config and index say it.
    pub fn open(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("config.json");
        let text = read_text(&path, LARGEST_CONFIG)?;
        let indexes = [
            ("model.safetensors.index.json", Format::Safetensors),
            ("pytorch_model.bin.index.json", Format::Torch),
        ];
        let Some((index, format)) = indexes.into_iter().find(|(name, _)| folder.join(name).exists()) else {
            return Ok(None);
        };
        let map = parse_index(&read_text(&folder.join(index), LARGEST_INDEX)?, &folder.join(index))?;
        let is_quantized = map.keys().any(|name| name.ends_with(".qweight"));
        if is_quantized || gptq::Settings::find(folder, &text)?.is_some() {
            return Ok(None);
        }
        let family = family::of_names(map.keys().map(String::as_str));
        let Parsed { config, names_rope_base, has_bias, .. } = parse_config_of(&text, &path, family)?;
        let about = describe(config.family);
        let files: Vec<String> = map.values().collect::<BTreeSet<_>>().into_iter().cloned().collect();
        let specs = names::tensors(&config);
        let shapes: HashMap<&str, &[usize]> =
            specs.iter().map(|spec| (spec.source.tensor.as_str(), &spec.source.shape[..])).collect();
        // Their shapes are taken to be right until the files say what they are.
        let entry = |name: &String| {
            let shape = shapes.get(about.text_name(name));
            let element = match shape {
                Some(_) => ElementType::F32,
                // Of what is left out no size is known.
                None => ElementType::Other("unknown".into()),
            };
            let shape = shape.into_iter().copied().flatten().map(|dim| *dim as u64).collect();
            Entry { name: name.clone(), element, shape, offset: 0 }
        };
        let table = |file: &String| -> Vec<Entry> {
            map.iter().filter(|(_, of)| *of == file).map(|(name, _)| entry(name)).collect()
        };
        let tables = files.iter().map(table).collect();
        let layout = Layout { format, files, index: None };
        let Found { tensors, left_out, .. } = check(&config, has_bias, folder, &layout, tables, None, &[])?;
        let part = |spec: TensorSpec| {
            let Weights { file, elements, .. } = *tensors.get(&spec.hf)?;
            Some((spec.hf.clone(), Part { spec, file, elements }))
        };
        let tensors = specs.clone().into_iter().filter_map(part).collect();
        let open = layout.files.iter().map(|_| Mutex::default()).collect();
        Ok(Some(Self {
            folder: folder.into(),
            config,
            names_rope_base,
            format,
            files: layout.files,
            tensors,
            left_out,
            open,
        }))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The shape of the model.
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Whether its config names the base of the rotary frequencies.
    pub const fn names_rope_base(&self) -> bool {
        self.names_rope_base
    }

    /// Tensors that are no part of the text model, by name. Their sizes are not known.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// The names of the shards.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// The number of the shard that has this tensor; none for zeros that no file has.
    pub fn file_of(&self, name: &str) -> Option<usize> {
        self.tensors.get(name)?.file
    }

    /// Lets go of a shard, which may then be removed.
    pub fn release(&self, file: usize) {
        *self.open[file].lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Appends the elements `range` (row-major) of a tensor to `out`, widened to f32. Its shard is there.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`](super::Checkpoint::read_f32); and where the shard is damaged, or has other tensors than the index says.
    pub fn read_f32(&self, name: &str, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let argument = |problem: String| Error::Argument(format!("tensor {name}: {problem}"));
        let part = self.tensors.get(name);
        let Part { spec, file, elements } =
            part.ok_or_else(|| argument("the model has none of this name".into()))?;
        if range.start > range.end || range.end as u64 > *elements {
            return Err(argument(format!("elements {range:?} of {elements}")));
        }
        let Some(file) = *file else {
            out.resize(out.len() + range.len(), 0.0);
            return Ok(());
        };
        let open = self.shard(file)?;
        let (tensor, shape) = (&spec.source.tensor, &spec.source.shape);
        let entry = open.entries.get(tensor).ok_or_else(|| {
            Error::bad_file(
                &open.shard.path,
                format!("tensor {tensor}"),
                "the index names it, and it is not there",
            )
        })?;
        if !entry.shape.iter().copied().eq(shape.iter().map(|&dim| dim as u64)) {
            let misshapen = vec![format!("{tensor}: found {:?}, expected {shape:?}", entry.shape)];
            let problems = TensorProblems { misshapen, ..TensorProblems::default() };
            return Err(Error::Tensors { path: open.shard.path.clone(), problems });
        }
        let weights = Weights::of(spec, file, entry);
        let weights = weights.ok_or_else(|| wrong_type_of(entry, open.shard.path.clone()))?;
        open.shard.widen(&weights, range, out)
    }

    fn shard(&self, file: usize) -> Result<Arc<Open>> {
        let mut place = self.open[file].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &*place {
            return Ok(Arc::clone(open));
        }
        let shard = Shard::open(&self.folder, &self.files[file])?;
        let about = describe(self.config.family);
        let named = |entry: Entry| (about.text_name(&entry.name).to_owned(), entry);
        let entries = shard.entries(self.format)?.into_iter().map(named).collect();
        Ok(Arc::clone(place.insert(Arc::new(Open { shard, entries }))))
    }
}
