//! Conversions: what goes into a file that is to be written, and how the bytes of each tensor are made.

use std::path::Path;

use yuan_kernels::DType;

use super::{
    Container, ConvLayout, ExpertView, TensorView, TileLayout,
    gguf::{DEFAULT_ALIGNMENT, TYPE_I8},
    map::Bytes,
    metadata::{Layout, write_config, write_vocab},
    output::{self, Written},
    source::{WeightsOf, interleave, split_taps},
    write::{ALIGNMENT, NewTensor, Writer},
};
use crate::{
    checkpoint::names::{self, Role, TensorSpec},
    config::ModelConfig,
    error::{Error, Result},
    quantize::{Encoded, Item, Options, Plan, Source, SourceOf, encode_item, synth},
    vocab::Vocab,
};

/// A file that is ready to be written.
pub struct Conversion<'a> {
    writer: Writer,
    tensors: Vec<NewTensor>,
    identity: Vec<u8>,
    make: Make<'a>,
    /// Bytes that the workers hold beside the finished tensors.
    scratch: u64,
}

/// Makes the bytes of one tensor.
type Make<'a> = Box<dyn Fn(usize) -> Result<Vec<u8>> + Sync + 'a>;

impl<'a> Conversion<'a> {
    /// A container of `plan`'s tensors, encoded from `source`. `identity` tells the source from others: a run that was
    /// killed is only resumed with the same.
    ///
    /// # Errors
    /// [`Error::Argument`] when the model has no neuron tiles and the plan asks for them.
    pub fn of_checkpoint(
        plan: Plan,
        source: impl Source + 'a,
        vocab: &Vocab,
        identity: &[u8],
    ) -> Result<Conversion<'a>> {
        Self::of_plan(plan, vocab, identity, move |item, config, tiles| {
            match encode_item(item, config.ffn, &source)? {
                Encoded::Matrix(bytes) => Ok(bytes),
                Encoded::Expert { w1, w2 } => {
                    Ok(tiles.expect("only tiled experts are encoded so").pack(&w1, &w2))
                }
            }
        })
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
    pub fn requantize(container: &'a Container, options: &Options) -> Result<Conversion<'a>> {
        let plan = Plan::new(container.config().clone(), options)?;
        let source = WeightsOf::new(container)?;
        Self::of_checkpoint(plan, source, &container.vocab()?, &container.identity())
    }

    /// A container with the same weights in the same types, its experts as neuron tiles where their type allows it.
    /// Only the overrides of the config in `options` count.
    ///
    /// # Errors
    /// Those of the container.
    pub fn repack(container: &'a Container, options: &Options) -> Result<Conversion<'a>> {
        let mut config = container.config().clone();
        config.rope_precision = options.rope.unwrap_or(config.rope_precision);
        config.rope_base = options.rope_base.unwrap_or(config.rope_base);
        let tiles = match container.tile_layout() {
            Some(tiles) => Some(tiles),
            None => tileable(container)?,
        };
        let pieces = names::tensors(&config)
            .iter()
            .filter_map(|spec| Piece::in_tiles(container, spec, tiles).transpose())
            .collect::<Result<Vec<_>>>()?;
        let layout = Layout::Tiles(tiles.map(|t| t.dtype));
        Self::of_pieces(container, &config, layout, ALIGNMENT, pieces)
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
        if plan.tiles.is_some() && tiles.is_none() {
            return Err(Error::Argument(format!("a hidden size of {} has no neuron tiles", config.hidden)));
        }
        let tensor = |item: &Item| match (&item.source, tiles) {
            (SourceOf::Tiles { .. }, Some(tiles)) => tiled_tensor(item.name.clone(), tiles),
            _ if item.rows == 1 => row_tensor(item.name.clone(), item.dtype, vec![item.cols as u64]),
            _ => row_tensor(item.name.clone(), item.dtype, vec![item.cols as u64, item.rows as u64]),
        };
        let tensors: Vec<NewTensor> = plan.items.iter().map(tensor).collect();
        let mut metadata = write_config(&config, Layout::Tiles(plan.tiles));
        write_vocab(vocab, &mut metadata);
        let writer = Writer::new(metadata, &tensors, ALIGNMENT, true);
        Ok(Conversion {
            writer,
            tensors,
            identity: identity.to_vec(),
            scratch: plan.scratch_bytes(rayon::current_num_threads()),
            make: Box::new(move |i| make(&plan.items[i], &config, tiles)),
        })
    }

    fn of_pieces(
        container: &Container,
        config: &ModelConfig,
        layout: Layout,
        alignment: u64,
        pieces: Vec<Piece>,
    ) -> Result<Conversion<'a>> {
        let tensors: Vec<NewTensor> = pieces.iter().map(|p| p.tensor.clone()).collect();
        let mut metadata = write_config(config, layout);
        write_vocab(&container.vocab()?, &mut metadata);
        let writer = Writer::new(metadata, &tensors, alignment, layout != Layout::Standard);
        Ok(Conversion {
            writer,
            tensors,
            identity: container.identity(),
            scratch: pieces.iter().map(|p| p.tensor.bytes).max().unwrap_or(0),
            make: Box::new(move |i| Ok(pieces[i].bytes())),
        })
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
    /// Those of the source; [`Error::DiskFull`] before anything is written; [`Error::Io`]; [`Error::Cancelled`].
    pub fn write(&self, path: &Path, progress: &dyn Fn(u64) -> bool) -> Result<Written> {
        output::write(path, &self.writer, &self.identity, &*self.make, progress)
    }
}

/// A tensor that is made of tensors of another container without changing a weight.
struct Piece {
    tensor: NewTensor,
    origin: Origin,
}

/// How the bytes of a piece come about.
enum Origin {
    Copy(Bytes),
    Pack {
        tiles: TileLayout,
        w1: TensorView,
        w2: TensorView,
    },
    /// One of an expert's matrices: the gate over the up rows, or the down rows.
    Unpack {
        tiles: TileLayout,
        blob: Bytes,
        down: bool,
    },
    /// Rows of a convolution with their taps moved.
    Taps {
        view: TensorView,
        to: ConvLayout,
    },
    /// The same, widened to f32.
    WideTaps {
        view: TensorView,
        to: ConvLayout,
    },
}

impl Piece {
    /// `spec` as a tensor of our own layout; none for the second matrix of a tiled expert.
    fn in_tiles(container: &Container, spec: &TensorSpec, tiles: Option<TileLayout>) -> Result<Option<Self>> {
        let piece = match (spec.role, tiles) {
            (Role::ExpertOut { .. }, Some(_)) => return Ok(None),
            (Role::ExpertIn { layer, expert }, Some(tiles)) => {
                let origin = match container.expert(layer, expert)? {
                    ExpertView::Tiles { bytes, .. } => Origin::Copy(bytes),
                    ExpertView::Rows { w1, w2 } => Origin::Pack { tiles, w1, w2 },
                };
                Self { tensor: tiled_tensor(names::tiled_expert(layer, expert), tiles), origin }
            }
            (Role::Conv, _) => Self::conv(container, spec, ConvLayout::Split)?,
            _ => Self::copy(container, spec)?,
        };
        Ok(Some(piece))
    }

    /// `spec` as the authors' converter lays it out.
    fn standard(container: &Container, config: &ModelConfig, spec: &TensorSpec) -> Result<Self> {
        let (layer, expert, down) = match spec.role {
            Role::Conv => return Self::conv(container, spec, ConvLayout::Interleaved),
            Role::ExpertIn { layer, expert } => (layer, expert, false),
            Role::ExpertOut { layer, expert } => (layer, expert, true),
            _ => return Self::copy(container, spec),
        };
        match container.expert(layer, expert)? {
            ExpertView::Rows { .. } => Self::copy(container, spec),
            ExpertView::Tiles { layout, bytes: blob } => {
                let tiles = TileLayout { ffn: config.ffn, ..layout };
                let tensor = row_tensor(spec.gguf.clone(), tiles.dtype, dims(spec));
                Ok(Self { tensor, origin: Origin::Unpack { tiles, blob, down } })
            }
        }
    }

    fn copy(container: &Container, spec: &TensorSpec) -> Result<Self> {
        let view = view(container, &spec.gguf)?;
        Ok(Self {
            tensor: row_tensor(spec.gguf.clone(), view.dtype, dims(spec)),
            origin: Origin::Copy(view.bytes),
        })
    }

    fn conv(container: &Container, spec: &TensorSpec, to: ConvLayout) -> Result<Self> {
        let (view, layout) = container.conv(spec.gguf.trim_end_matches(".weight"))?;
        let dims = match to {
            ConvLayout::Split => vec![view.cols as u64, view.rows as u64],
            ConvLayout::Interleaved => dims(spec),
        };
        let (dtype, origin) = match (layout == to, view.dtype) {
            (true, dtype) if !dtype.is_quantized() || to == ConvLayout::Split => {
                (dtype, Origin::Copy(view.bytes))
            }
            (false, dtype) if !dtype.is_quantized() => (dtype, Origin::Taps { view, to }),
            _ => (DType::F32, Origin::WideTaps { view, to }),
        };
        Ok(Self { tensor: row_tensor(spec.gguf.clone(), dtype, dims), origin })
    }

    fn bytes(&self) -> Vec<u8> {
        match &self.origin {
            Origin::Copy(bytes) => bytes.to_vec(),
            Origin::Pack { tiles, w1, w2 } => tiles.pack(&w1.bytes, &pad_rows(tiles, w2)),
            Origin::Unpack { tiles, blob, down: false } => tiles.unpack(blob).0,
            Origin::Unpack { tiles, blob, down: true } => {
                let row = self.tensor.bytes as usize / tiles.hidden;
                let padded = tiles.unpack(blob).1;
                padded.chunks_exact(padded.len() / tiles.hidden).flat_map(|r| &r[..row]).copied().collect()
            }
            Origin::Taps { view, to } if view.dtype == DType::F32 => move_taps::<4>(view, *to),
            Origin::Taps { view, to } => move_taps::<2>(view, *to),
            Origin::WideTaps { view, to } => {
                let mut weights = vec![0.0; view.rows * view.cols];
                yuan_kernels::dequantize(view.dtype, &view.bytes, &mut weights);
                let wide = bytemuck::cast_slice(&weights);
                let view = TensorView { bytes: Bytes::copy(wide), dtype: DType::F32, ..view.clone() };
                move_taps::<4>(&view, *to)
            }
        }
    }
}

/// Dims as GGUF has them, innermost first.
fn dims(spec: &TensorSpec) -> Vec<u64> {
    spec.shape.iter().rev().map(|&d| d as u64).collect()
}

/// The rows of a convolution whose weights take `N` bytes, with their taps in the order `to`.
fn move_taps<const N: usize>(view: &TensorView, to: ConvLayout) -> Vec<u8> {
    let (weights, _) = view.bytes.as_chunks::<N>();
    let order = match to {
        ConvLayout::Split => split_taps::<[u8; N]>,
        ConvLayout::Interleaved => interleave::<[u8; N]>,
    };
    weights.chunks_exact(view.cols).flat_map(order).flatten().collect()
}

/// The rows of `w2` [H, F], filled up with zero blocks to whole tiles.
fn pad_rows(tiles: &TileLayout, w2: &TensorView) -> Vec<u8> {
    let row = w2.bytes.len() / w2.rows;
    let padded = tiles.dtype.row_bytes(tiles.padded_ffn()).expect("whole tiles are whole blocks");
    let mut out = vec![0; w2.rows * padded];
    for (from, to) in w2.bytes.chunks_exact(row).zip(out.chunks_exact_mut(padded)) {
        to[..row].copy_from_slice(from);
    }
    out
}

/// The tiles that the experts of a standard file can become: all of one 4-bit type, in a shape that has tiles.
fn tileable(container: &Container) -> Result<Option<TileLayout>> {
    let config = container.config();
    let mut only = None;
    for layer in 0..config.layers {
        for expert in 0..config.experts {
            let ExpertView::Rows { w1, w2 } = container.expert(layer, expert)? else { return Ok(None) };
            if w1.dtype != w2.dtype || only.is_some_and(|dtype| dtype != w1.dtype) {
                return Ok(None);
            }
            only = Some(w1.dtype);
        }
    }
    Ok(only.and_then(|dtype| TileLayout::new(config.hidden, config.ffn, dtype)))
}

fn view(container: &Container, name: &str) -> Result<TensorView> {
    let missing = || Error::bad_file(container.path(), format!("tensor {name}"), "it is missing");
    container.tensor(name).ok_or_else(missing)
}

fn row_tensor(name: String, dtype: DType, dims: Vec<u64>) -> NewTensor {
    let weights: u64 = dims.iter().product();
    let bytes = weights / dtype.block_len() as u64 * dtype.block_bytes() as u64;
    NewTensor { name, dims, ggml_type: dtype as u32, kind: dtype.name().into(), bytes }
}

fn tiled_tensor(name: String, tiles: TileLayout) -> NewTensor {
    let dims = vec![tiles.tile_bytes() as u64, tiles.tiles() as u64];
    let kind = format!("{} tiles", tiles.dtype.name());
    NewTensor { name, dims, ggml_type: TYPE_I8, kind, bytes: tiles.expert_bytes() as u64 }
}
