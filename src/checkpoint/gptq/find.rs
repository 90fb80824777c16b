//! The quantized matrices among a checkpoint's tensors.

use std::{
    collections::{BTreeMap, HashMap},
    sync::OnceLock,
};

use super::{
    super::{
        entry::{ElementType, Entry},
        folder::Shard,
        names::TensorSpec,
    },
    Format, Module, Settings,
    module::{Place, groups},
};
use crate::error::{Error, Result, TensorProblems};

/// Tensors by name, with the number of their file.
pub(in crate::checkpoint) type Found = BTreeMap<String, (usize, Entry)>;

/// Multiple to which some tools fill up outputs.
const PADDING: usize = 32;
/// Bytes of a bias that are read at a time.
const PIECE: usize = 1 << 16;

/// Takes the parts of quantized matrices out of `found`. Where they are not as `settings` ask for there is `None`, and `problems` says why.
///
/// # Errors
/// [`Error::Io`]; [`Error::Unsupported`] for a bias that is not zero; [`Error::BadFile`] for quantized matrices without settings.
pub(in crate::checkpoint) fn take_modules(
    settings: Option<&Settings>,
    specs: &[TensorSpec],
    found: &mut Found,
    files: &[Shard],
    problems: &mut TensorProblems,
) -> Result<HashMap<String, Option<Module>>> {
    let Some(settings) = settings else {
        return match found.iter().find(|(name, _)| name.ends_with(".qweight")) {
            None => Ok(HashMap::new()),
            Some((name, (file, _))) => Err(Error::BadFile {
                path: files[*file].path.clone(),
                place: format!("tensor {name}"),
                problem: "it is quantized, and the folder has no quantize_config.json that says how".into(),
                remedy: "fetch quantize_config.json or quant_config.json too, or a config.json with quantization_config",
            }),
        };
    };
    let mut modules = HashMap::new();
    for spec in specs {
        let (Some(name), &[outputs, inputs]) = (spec.hf.strip_suffix(".weight"), &spec.shape[..]) else {
            continue;
        };
        if !found.contains_key(&format!("{name}.qweight")) {
            continue;
        }
        check_bias(name, found, files)?;
        let mut parts = Parts { found, problems, name };
        modules.insert(spec.hf.clone(), parts.module(settings, inputs, outputs));
    }
    Ok(modules)
}

/// The parts of one matrix.
struct Parts<'a> {
    found: &'a mut Found,
    problems: &'a mut TensorProblems,
    name: &'a str,
}

impl Parts<'_> {
    fn module(&mut self, settings: &Settings, inputs: usize, outputs: usize) -> Option<Module> {
        let bits = settings.bits as usize;
        let per_word = 32 / bits;
        let (groups, group_size) = groups(settings, inputs);
        let (qweight, qzeros) = (self.take("qweight"), self.take("qzeros"));
        let (scales, g_idx) = (self.take("scales"), self.found.remove(&format!("{}.g_idx", self.name)));
        // The scales tell whether outputs were filled up.
        let padded = outputs.next_multiple_of(PADDING);
        let is_padded = matches!(&scales, Some((_, entry)) if entry.shape.last() == Some(&(padded as u64)));
        let stored = if is_padded { padded } else { outputs };
        let words = |n: usize| n.is_multiple_of(per_word).then_some(n / per_word);

        let qweight = self.place("qweight", qweight?, &is_word, "I32", &[words(inputs), Some(stored)]);
        let qzeros = self.place("qzeros", qzeros?, &is_word, "I32", &[Some(groups), words(stored)]);
        let is_float = |element: &ElementType| element.weight_bytes().is_some();
        let scale_type = scales.as_ref().map(|(_, entry)| entry.element.clone());
        let scales = self.place("scales", scales?, &is_float, "F16", &[Some(groups), Some(stored)]);
        let g_idx = match g_idx {
            None => None,
            Some(entry) => {
                let wide = is_wide(&entry.1.element);
                let is_index = |element: &ElementType| is_word(element) || is_wide(element);
                Some((self.place("g_idx", entry, &is_index, "I32", &[Some(inputs)])?, wide))
            }
        };
        Some(Module {
            name: self.name.into(),
            bits: settings.bits,
            format: settings.format,
            inputs,
            outputs,
            stored,
            groups,
            group_size,
            qweight: qweight?,
            qzeros: qzeros?,
            scales: scales?,
            scale_type: scale_type?,
            g_idx,
            facts: OnceLock::new(),
        })
    }

    fn take(&mut self, part: &str) -> Option<(usize, Entry)> {
        let name = format!("{}.{part}", self.name);
        let entry = self.found.remove(&name);
        if entry.is_none() {
            self.problems.missing.push(name);
        }
        entry
    }

    /// The place of a part, if it is of a type that `fits` and of this shape; a dim that no number of words makes is `None`.
    fn place(
        &mut self,
        part: &str,
        (file, entry): (usize, Entry),
        fits: &dyn Fn(&ElementType) -> bool,
        expected: &str,
        shape: &[Option<usize>],
    ) -> Option<Place> {
        let shape: Option<Vec<u64>> = shape.iter().map(|dim| dim.map(|dim| dim as u64)).collect();
        let bytes = entry.bytes().and_then(|bytes| usize::try_from(bytes).ok());
        if let (true, Some(bytes)) = (fits(&entry.element) && shape.as_ref() == Some(&entry.shape), bytes) {
            return Some(Place { file, offset: entry.offset, bytes });
        }
        let (name, element) = (&entry.name, &entry.element);
        let wanted = match shape {
            Some(shape) => format!("{expected} {shape:?}"),
            None => format!("{part} of whole words"),
        };
        self.problems.misshapen.push(format!("{name}: found {element} {:?}, expected {wanted}", entry.shape));
        None
    }
}

fn is_word(element: &ElementType) -> bool {
    matches!(element, ElementType::Other(name) if ["I32", "U32", "IntStorage"].contains(&name.as_str()))
}

fn is_wide(element: &ElementType) -> bool {
    matches!(element, ElementType::Other(name) if ["I64", "LongStorage"].contains(&name.as_str()))
}

/// Takes the bias that some tools add to a matrix; the models have none, so that all of it must be zero.
fn check_bias(name: &str, found: &mut Found, files: &[Shard]) -> Result<()> {
    let Some((file, entry)) = found.remove(&format!("{name}.bias")) else { return Ok(()) };
    let (shard, mut left) = (&files[file], entry.bytes().unwrap_or(0));
    let mut zero = entry.element.weight_bytes().is_some();
    let mut piece = vec![0; PIECE];
    while zero && left > 0 {
        let piece = &mut piece[..left.min(PIECE as u64) as usize];
        left -= piece.len() as u64;
        shard.read(piece, entry.offset + left)?;
        let mut values = Vec::new();
        entry.element.widen(piece, &mut values);
        zero = values.iter().all(|value| *value == 0.0);
    }
    if zero {
        return Ok(());
    }
    Err(Error::Unsupported {
        path: shard.path.clone(),
        what: format!("tensor {} of values that are not zero", entry.name),
        remedy: "Yuan's matrices have no biases: give a checkpoint of a published Yuan model".into(),
    })
}

/// Checks that zeros can be of the format that the settings name: those of a symmetric checkpoint are all the same, and the same by
/// one step where the label is wrong. The first matrix whose zeros are right ends the search.
///
/// # Errors
/// [`Error::BadFile`] for the wrong label; [`Error::Io`].
pub(in crate::checkpoint) fn check_label(
    settings: &Settings,
    modules: &HashMap<String, Module>,
    files: &[Shard],
) -> Result<()> {
    let (wrong, other) = match settings.format {
        Format::One if settings.symmetric => (settings.middle() + 1, Format::Two),
        Format::One => return Ok(()),
        Format::Two => (settings.middle() - 1, Format::One),
    };
    for module in modules.values() {
        if module.zeros(files)?.iter().any(|zero| u32::from(*zero) != wrong) {
            return Ok(());
        }
    }
    if modules.is_empty() {
        return Ok(());
    }
    Err(Error::BadFile {
        path: settings.path.clone(),
        place: "checkpoint_format".into(),
        problem: format!(
            "it is {}, but every zero is stored as {} has it, so that all weights would be off by one step",
            settings.format.name(),
            other.name()
        ),
        remedy: "the label is wrong: correct checkpoint_format",
    })
}
