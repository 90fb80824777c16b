//! The plan of a conversion: every tensor of the container with its type and size. A dry run prints it.

use std::path::Path;

use yuan_kernels::{
    DType,
    blocks::QK,
    panel::{PANEL_ROWS, panel_bytes},
    tile::TILE_NEURONS,
};

use super::{Options, Wishes, choose};
use crate::{
    checkpoint::{
        Arriving, Checkpoint,
        names::{self, Role, TensorSpec},
    },
    config::{Architecture, Family, ModelConfig},
    error::{Error, Result},
};

/// Base with which the authors fine-tuned and evaluated Yuan2.0-M32, whose published config names none.
const M32_ROPE_BASE: u32 = 40_890;

/// Base with which the authors' script trains Yuan3.0 Flash; the template of their config has another, which their converter replaces.
const FLASH_ROPE_BASE: u32 = 1_000_000;

/// Weights that one worker reads and encodes at a time.
pub(super) const CHUNK_WEIGHTS: usize = 1 << 20;

/// One tensor of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Name in the container.
    pub name: String,
    /// Where its weights come from.
    pub source: SourceOf,
    /// Type of the weights; of a tiled expert, the type of the rows that the tiles permute.
    pub dtype: DType,
    /// Rows of the stored matrix; 1 for a vector.
    pub rows: usize,
    /// Columns of the stored matrix.
    pub cols: usize,
    /// Whether its rows are stored as panels of sixteen.
    pub panels: bool,
}

/// The tensors of the checkpoint that an item is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceOf {
    /// One tensor, as it is.
    Matrix(String),
    /// A convolution [out, in, 2, 1], stored with its taps split: [out, 2 in].
    Conv(String),
    /// An expert's `w1` [2F, H] and `w2` [H, F], stored as neuron tiles.
    Tiles {
        /// Gate over up.
        w1: String,
        /// Down.
        w2: String,
    },
}

/// Every tensor of a container, in the order in which they lie in it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The model.
    pub config: ModelConfig,
    /// The tensors.
    pub items: Vec<Item>,
    /// The type of tiled experts, or none where experts are row-major matrices.
    pub tiles: Option<DType>,
    /// By item, why its weights are not those of the checkpoint, if they are not. Empty where nobody has looked: for checkpoints of floats, whose
    /// matrices are rounded to the types of the plan.
    pub losses: Vec<Option<String>>,
    /// Bytes of the largest quantized matrix of the checkpoint.
    pub(super) packed: u64,
}

impl Plan {
    /// The plan of a checkpoint's model, and what the user should know about it. Types that `wishes` leave open are those of [`Options::default`], or,
    /// for quantized matrices, those that hold their weights exactly.
    ///
    /// # Errors
    /// As [`Plan::new`]; [`Error::Argument`] for tensors that would lose something although `wishes` say that nothing may; [`Error::BadFile`] for a checkpoint of the published shape whose rotary base neither the config nor `wishes` name.
    pub fn of_checkpoint(checkpoint: &Checkpoint, wishes: &Wishes) -> Result<(Self, Vec<String>)> {
        let config = checkpoint.config();
        let warning = about_rope_base(config, checkpoint.names_rope_base(), checkpoint.folder(), wishes)?;
        let plan = match checkpoint.quantized().is_some() || wishes.lossless {
            true => choose::plan(checkpoint, wishes)?,
            false => Self::new(config.clone(), &wishes.options())?,
        };
        Ok((plan, warning.into_iter().collect()))
    }

    /// [`Plan::of_checkpoint`] of one whose shards are still to come. What may not be lost is not known of it.
    ///
    /// # Errors
    /// As [`Plan::of_checkpoint`].
    pub fn of_arriving(arriving: &Arriving, wishes: &Wishes) -> Result<(Self, Vec<String>)> {
        let config = arriving.config();
        let warning = about_rope_base(config, arriving.names_rope_base(), arriving.folder(), wishes)?;
        Ok((Self::new(config.clone(), &wishes.options())?, warning.into_iter().collect()))
    }

    /// Plans a container of `config`'s model. A row that a type's blocks do not divide takes the next type that fits
    /// ([`super::fit`]); norms, biases and the router are f32.
    ///
    /// # Errors
    /// [`Error::Argument`] for 4-bit experts of a model whose hidden size is no multiple of 256.
    pub fn new(config: ModelConfig, options: &Options) -> Result<Self> {
        options.validate()?;
        let of = config.clone();
        Self::of_types(config, options, &|spec, cols| Ok(super::fit(options.of(spec.role, &of), cols)))
    }

    /// [`Plan::new`] where `type_of` says the types of matrices, of which it is given the columns, too; `options` have that of experts in tiles, and the
    /// overrides of the config.
    pub(super) fn of_types(
        mut config: ModelConfig,
        options: &Options,
        type_of: &dyn Fn(&TensorSpec, usize) -> Result<DType>,
    ) -> Result<Self> {
        options.set_rope(&mut config)?;
        let mut tiles = Some(options.experts).filter(|t| panel_bytes(*t).is_some() && config.experts > 0);
        if tiles.is_some() && !config.hidden.is_multiple_of(TILE_NEURONS) {
            if options.experts != DType::Q8_0 {
                return Err(Error::Argument(format!(
                    "neuron tiles need a hidden size that is a multiple of 256, this model's is {}; give --experts q8_0 or f16",
                    config.hidden
                )));
            }
            // Its small blocks fit, as two matrices.
            tiles = None;
        }
        let specs = names::tensors(&config);
        let mut items = Vec::with_capacity(specs.len());
        for (i, spec) in specs.iter().enumerate() {
            let cols = spec.shape.get(1..).map_or(1, |inner| inner.iter().product::<usize>());
            let (rows, cols) = if spec.shape.len() == 1 { (1, spec.shape[0]) } else { (spec.shape[0], cols) };
            let (source, dtype) = match spec.role {
                Role::Norm | Role::ConvBias | Role::Router => (SourceOf::Matrix(spec.hf.clone()), DType::F32),
                Role::Embedding | Role::Head | Role::Attention | Role::Mlp => {
                    (SourceOf::Matrix(spec.hf.clone()), type_of(spec, cols)?)
                }
                Role::Conv => (SourceOf::Conv(spec.hf.clone()), type_of(spec, cols)?),
                Role::ExpertIn { layer, expert } if let Some(dtype) = tiles => {
                    let w2 = specs[i + 1].hf.clone();
                    items.push(Item {
                        name: names::tiled_expert(layer, expert),
                        source: SourceOf::Tiles { w1: spec.hf.clone(), w2 },
                        dtype,
                        rows: 3 * config.ffn.next_multiple_of(TILE_NEURONS),
                        cols: config.hidden,
                        panels: false,
                    });
                    continue;
                }
                Role::ExpertOut { .. } if tiles.is_some() => continue,
                Role::ExpertIn { .. } | Role::ExpertOut { .. } => {
                    (SourceOf::Matrix(spec.hf.clone()), type_of(spec, cols)?)
                }
            };
            // Rows of the embedding are read one by one.
            let panels = spec.role != Role::Embedding && panels_fit(dtype, rows, cols);
            items.push(Item { name: spec.gguf.clone(), source, dtype, rows, cols, panels });
        }
        Ok(Self { config, items, tiles, losses: Vec::new(), packed: 0 })
    }

    /// Bytes of all tensors, without header and alignment.
    pub fn data_bytes(&self) -> u64 {
        self.items.iter().map(Item::bytes).sum()
    }

    /// Bytes that `threads` workers hold of the sources of a tensor beside its finished form: pieces of rows, and the rows of
    /// an expert that becomes tiles.
    pub fn scratch_bytes(&self, threads: usize) -> u64 {
        let tiles =
            self.items.iter().filter(|i| matches!(i.source, SourceOf::Tiles { .. })).map(Item::bytes).max();
        // In memory its scales are wider than in the file.
        tiles.unwrap_or(0) + self.packed / 4 * 5 + (threads * CHUNK_WEIGHTS * 12) as u64
    }
}

/// Whether panels cut a matrix of this type and shape.
pub fn panels_fit(dtype: DType, rows: usize, cols: usize) -> bool {
    panel_bytes(dtype).is_some() && rows.is_multiple_of(PANEL_ROWS) && cols.is_multiple_of(QK)
}

impl Item {
    /// Bytes of the stored tensor.
    pub fn bytes(&self) -> u64 {
        self.rows as u64 * (self.cols / self.dtype.block_len() * self.dtype.block_bytes()) as u64
    }
}

/// What is to be said of the rotary base of a checkpoint.
///
/// # Errors
/// As [`without_rope_base`].
fn about_rope_base(
    config: &ModelConfig,
    is_named: bool,
    folder: &Path,
    wishes: &Wishes,
) -> Result<Option<String>> {
    let path = folder.join("config.json");
    match (wishes.rope_base, config.yarn) {
        (Some(_), _) => Ok(None),
        (None, Some(_)) => Ok(Some(format!(
            "{} turns YaRN on: its frequencies are computed from the base {}, as by the authors' code, whatever rotary_base says; \
             --rope-base gives another",
            path.display(),
            config.rope_base
        ))),
        (None, None) if is_named => Ok(None),
        (None, None) => without_rope_base(config, &path),
    }
}

/// What is to be said of a config that leaves the rotary base to the authors' model file. The dense model was trained with that one.
///
/// # Errors
/// [`Error::BadFile`] for the shape of Yuan2.0-M32 and Yuan3.0 Flash, for which there are several: a wrong one costs quality and looks like none.
fn without_rope_base(config: &ModelConfig, path: &Path) -> Result<Option<String>> {
    let default = config.rope_base;
    let missing = |problem: String, remedy| {
        Err(Error::BadFile { path: path.into(), place: "rotary_base".into(), problem, remedy })
    };
    match config.architecture {
        Architecture::Dense => Ok(None),
        Architecture::Moe if (config.hidden, config.experts, config.projection) == (2048, 32, 4096) => {
            match config.family {
                Family::Yuan2 => missing(
                    format!(
                        "it is missing, and Yuan2.0-M32 has two values: {default} is the default of the authors' model file, {M32_ROPE_BASE} is \
                         what they fine-tuned and evaluated with"
                    ),
                    "choose with --rope-base; for the published Yuan2-M32-hf it is --rope-base 40890",
                ),
                Family::Yuan3 => missing(
                    format!(
                        "it is missing, and Yuan3.0 Flash has two values: {default} is the default of the authors' serving code, \
                         {FLASH_ROPE_BASE} is what their training script has"
                    ),
                    "fetch the config again, or choose with --rope-base",
                ),
            }
        }
        Architecture::Moe => Ok(Some(format!(
            "{} says nothing of rotary_base: {default} is used, the default of the authors' code; --rope-base gives another",
            path.display()
        ))),
    }
}
