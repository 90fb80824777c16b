//! Conversions: what goes into a file that is to be written, and how the bytes of each tensor are made.

mod importance;
mod output;
mod piece;
mod size;
mod source;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

pub use importance::ImportanceFile;
pub use output::Written;
use piece::{Piece, panel_tensor, row_tensor, tileable, tiled_tensor};
pub use size::within_size;
use source::WeightsOf;

use crate::{
    checkpoint::names,
    config::ModelConfig,
    container::{
        Container, NewTensor, TileLayout,
        gguf::DEFAULT_ALIGNMENT,
        metadata::{Layout, write_config, write_vocab},
        panels,
        write::{ALIGNMENT, Writer},
    },
    error::{Error, Result},
    quantize::{Encoded, Importance, Item, Loss, Options, Plan, SourceOf, Weights, encode_item, synth},
    vocab::Vocab,
    workers,
};

/// A file that is ready to be written.
pub struct Conversion<'a> {
    writer: Writer,
    tensors: Vec<NewTensor>,
    identity: Vec<u8>,
    /// Files that are read.
    inputs: Vec<PathBuf>,
    /// In which order the tensors are made.
    order: Vec<usize>,
    make: Make<'a>,
    /// What it cost to quantize quantized matrices once more, as far as it is known.
    losses: Arc<Mutex<Vec<Loss>>>,
    /// Bytes that the workers hold beside the finished tensors.
    scratch: u64,
}

/// Makes the bytes of one tensor.
type Make<'a> = Box<dyn Fn(usize) -> Result<Vec<u8>> + Sync + 'a>;

impl<'a> Conversion<'a> {
    /// A container of `plan`'s tensors, encoded from `source`, by importance where that is given. `identity` tells the source from others: a run that was
    /// killed is only resumed with the same.
    ///
    /// # Errors
    /// [`Error::Argument`] when the model has no neuron tiles and the plan asks for them.
    pub fn of_checkpoint(
        plan: Plan,
        source: impl Weights + 'a,
        vocab: &Vocab,
        identity: &[u8],
        importance: Option<&'a ImportanceFile>,
    ) -> Result<Conversion<'a>> {
        let mut identity = identity.to_vec();
        if let Some(importance) = importance {
            identity.extend(importance.digest());
        }
        let losses = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&losses);
        let conversion = Self::of_plan(plan, vocab, &identity, move |item, config, tiles| {
            let lost = |loss| heard.lock().unwrap_or_else(PoisonError::into_inner).push(loss);
            let importance = importance.map(|file| file as &dyn Importance);
            match encode_item(item, config.ffn, &source, importance, &lost)? {
                Encoded::Matrix(rows) if item.panels => Ok(panels::pack(item.dtype, item.cols, &rows)),
                Encoded::Matrix(rows) => Ok(rows),
                Encoded::Expert { w1, w2 } => {
                    Ok(tiles.expect("only tiled experts are encoded so").pack(&w1, &w2))
                }
            }
        })?;
        let inputs = importance.map(|file| file.path().to_owned());
        let scratch =
            conversion.scratch + importance.map_or(0, |file| file.memory(rayon::current_num_threads()));
        Ok(Conversion { losses, scratch, ..conversion }.reading(inputs))
    }

    /// A container of `plan`'s tensors with random weights, made in their final form.
    ///
    /// # Errors
    /// As [`Conversion::of_checkpoint`].
    pub fn synth(plan: Plan, seed: u64, vocab: &Vocab) -> Result<Conversion<'static>> {
        let identity = format!("synth {seed}");
        Conversion::of_plan(plan, vocab, identity.as_bytes(), move |item, _, _| {
            Ok(synth::random_tensor(item, seed))
        })
    }

    /// A container with other types, encoded from the float weights of a GGUF file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the file's weights are quantized already; those of [`Plan::new`].
    pub fn requantize(
        container: &'a Container,
        options: &Options,
        importance: Option<&'a ImportanceFile>,
    ) -> Result<Conversion<'a>> {
        let plan = Plan::new(container.config().clone(), options)?;
        let source = WeightsOf::new(container)?;
        let conversion =
            Self::of_checkpoint(plan, source, &container.vocab()?, container.identity(), importance)?;
        Ok(conversion.reading([container.path().into()]))
    }

    /// A container with the same weights in the same types, its experts as neuron tiles where their type allows it.
    /// Only the overrides of the config in `options` count.
    ///
    /// # Errors
    /// Those of the container.
    pub fn repack(container: &'a Container, options: &Options) -> Result<Conversion<'a>> {
        let mut config = container.config().clone();
        options.set_rope(&mut config)?;
        let tiles = match container.tile_layout() {
            Some(tiles) => Some(tiles),
            None => tileable(container)?,
        };
        let pieces = names::tensors(&config)
            .iter()
            .filter_map(|spec| Piece::in_tiles(container, spec, tiles).transpose())
            .collect::<Result<Vec<_>>>()?;
        Self::of_pieces(container, &config, Layout::Tiles, ALIGNMENT, pieces)
    }

    /// A standard GGUF file with the weights of a container: experts as rows, convolutions as the authors' converter
    /// writes them. Blocks are the same byte for byte; quantized convolutions, which no standard type holds in that shape,
    /// become f32, which holds their weights exactly; where no whole blocks make up the neurons of an expert, the zero
    /// neurons that fill up its last tile are exported as well.
    ///
    /// # Errors
    /// Those of the container.
    pub fn export(container: &'a Container) -> Result<Conversion<'a>> {
        let mut config = container.config().clone();
        if let Some(tiles) = container.tile_layout()
            && tiles.dtype.row_bytes(config.ffn).is_none()
        {
            config.ffn = tiles.padded_ffn();
        }
        let pieces = names::tensors(&config)
            .iter()
            .map(|spec| Piece::standard(container, &config, spec))
            .collect::<Result<Vec<_>>>()?;
        Self::of_pieces(container, &config, Layout::Standard, DEFAULT_ALIGNMENT, pieces)
    }

    fn of_plan(
        plan: Plan,
        vocab: &Vocab,
        identity: &[u8],
        make: impl Fn(&Item, &ModelConfig, Option<TileLayout>) -> Result<Vec<u8>> + Sync + 'a,
    ) -> Result<Conversion<'a>> {
        let config = plan.config.clone();
        let tiles = plan.tiles.and_then(|dtype| TileLayout::new(config.hidden, config.ffn, dtype));
        workers::start()?;
        if plan.tiles.is_some() && tiles.is_none() {
            return Err(Error::Argument(format!("a hidden size of {} has no neuron tiles", config.hidden)));
        }
        let tensor = |item: &Item| match (&item.source, tiles) {
            (SourceOf::Tiles { .. }, Some(tiles)) => tiled_tensor(item.name.clone(), tiles),
            _ if item.panels => panel_tensor(item.name.clone(), item.dtype, item.rows, item.cols),
            _ if item.rows == 1 => row_tensor(item.name.clone(), item.dtype, vec![item.cols as u64]),
            _ => row_tensor(item.name.clone(), item.dtype, vec![item.cols as u64, item.rows as u64]),
        };
        let tensors: Vec<NewTensor> = plan.items.iter().map(tensor).collect();
        let mut metadata = write_config(&config, Layout::Tiles);
        write_vocab(vocab, &mut metadata);
        let writer = Writer::new(metadata, &tensors, ALIGNMENT, true);
        Ok(Conversion {
            writer,
            tensors,
            identity: identity.to_vec(),
            inputs: Vec::new(),
            order: (0..plan.items.len()).collect(),
            losses: Arc::default(),
            scratch: plan.scratch_bytes(rayon::current_num_threads()),
            make: Box::new(move |i| make(&plan.items[i], &config, tiles)),
        })
    }

    fn of_pieces(
        container: &'a Container,
        config: &ModelConfig,
        layout: Layout,
        alignment: u64,
        pieces: Vec<Piece>,
    ) -> Result<Conversion<'a>> {
        workers::start()?;
        let tensors: Vec<NewTensor> = pieces.iter().map(|p| p.tensor.clone()).collect();
        let mut metadata = write_config(config, layout);
        write_vocab(&container.vocab()?, &mut metadata);
        let writer = Writer::new(metadata, &tensors, alignment, layout != Layout::Standard);
        Ok(Conversion {
            writer,
            tensors,
            identity: container.identity().to_vec(),
            inputs: vec![container.path().into()],
            order: (0..pieces.len()).collect(),
            losses: Arc::default(),
            scratch: pieces.iter().map(|p| p.tensor.bytes).max().unwrap_or(0),
            make: Box::new(move |i| {
                let bytes = pieces[i].bytes();
                container.check_file()?;
                Ok(bytes)
            }),
        })
    }

    /// The conversion reads these files, too: none of them is written over.
    pub fn reading(mut self, files: impl IntoIterator<Item = PathBuf>) -> Self {
        self.inputs.extend(files);
        self
    }

    /// The tensors are made in this order, which names each of them once, and not as they lie in the file: that in which their sources come. The
    /// file is the same.
    ///
    /// # Panics
    /// It is no such order.
    pub fn in_order(mut self, order: Vec<usize>) -> Self {
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..self.tensors.len()), "each tensor once");
        self.order = order;
        self
    }

    /// What it has cost so far to quantize quantized matrices once more, in the order of the file. Those that an earlier run has written are not
    /// among them.
    pub fn losses(&self) -> Vec<Loss> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The tensors of the file, in order.
    pub fn tensors(&self) -> &[NewTensor] {
        &self.tensors
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.writer.file_bytes()
    }

    /// Bytes of its tensors, which is what the progress of [`Conversion::write`] counts.
    pub fn data_bytes(&self) -> u64 {
        self.writer.data_bytes()
    }

    /// Bytes of memory that a run takes at most, about: two finished tensors (one is written while the next is made),
    /// and what the workers hold.
    pub fn peak_bytes(&self) -> u64 {
        let pair = |pair: &[NewTensor]| pair.iter().map(|t| t.bytes).sum::<u64>();
        self.tensors.windows(2).map(pair).max().unwrap_or(0) + self.scratch
    }

    /// Writes the file: beside `path`, renamed when whole, resumed where a killed run of the same conversion
    /// stopped. `progress` hears the bytes of every finished tensor and says whether to go on.
    ///
    /// # Errors
    /// Those of the source; [`Error::Argument`] for a `path` that is read or a folder, [`Error::DiskFull`] before anything is written; [`Error::Io`]; [`Error::Cancelled`].
    pub fn write(&self, path: &Path, progress: &dyn Fn(u64) -> bool) -> Result<Written> {
        output::write(path, &self.writer, &self.identity, &self.inputs, &self.order, &*self.make, progress)
    }
}
