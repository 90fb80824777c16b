//! From a container to a model: every weight found, checked and named. No weight is copied but norms, biases, the router, and
//! matrices in rows that could be panels.

use std::{cell::RefCell, ops::ControlFlow};

use yuan_kernels::DType;

mod gpu_placement;
mod placement;

pub use gpu_placement::{GpuPlacement, GpuUse};
pub use placement::{BATCH, LOGIT_ROWS, Placement, Sizes};

use super::{
    KvType, Layer, Model, Pool,
    compute::{Arithmetic, Compute},
    embedding::Embedding,
    feed_forward::{ExpertRows, Experts, FeedForward, Mlp},
    filter::{Conv, Filter, Taps},
    matrix::Matrix,
    rope::Rope,
    router::{Projections, Router},
    threads::Threads,
    work::Log,
};
use crate::{
    config::{Architecture, RopePrecision, RouterKind},
    container::{Bytes, Container, ConvLayout, ExpertView, TensorView, panels_in_memory},
    error::{Error, Result},
    gpu,
    machine::source::{DirectIo, FileSource, PAGE, Source, Throttle, in_pages},
    pager::{ArrivingExperts, Mode, Pager, Policy, Settings, Shape},
};

/// How to run a model.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Threads; 0 means one for each physical core that the process may use.
    pub threads: usize,
    /// Threads for several tokens at a time; 0 means as many.
    pub threads_batch: usize,
    /// Integer or float products.
    pub arithmetic: Arithmetic,
    /// Kernels by their name ([`kernel_names`](crate::kernel_names)); by default those of `YUAN_KERNELS`, or the best.
    pub kernels: Option<String>,
    /// Another rotary convention than the container's.
    pub rope: Option<RopePrecision>,
    /// How experts are brought into memory.
    pub paging: Settings,
    /// Tokens that sessions will have room for; the memory's budget counts them.
    pub context: usize,
    /// The type of their keys and values.
    pub kv: KvType,
    /// Which GPU takes part, and with how much.
    pub gpu: gpu::Settings,
    /// Tokens that go through the model together at most; 0 means the usual number: [`BATCH`](super::BATCH), or as many as memory has room for where experts
    /// are streamed, so that each is read once. Fewer keep an answer waiting for a shorter time while a prompt is read; the bits are the same.
    pub batch: usize,
}

/// Hears how many bytes are there of how many that are brought in while a model is opened, and says whether to go on.
pub type Progress<'p> = &'p mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// Bytes that are brought in between two reports.
const PIECE: usize = 16 << 20;

/// Puts something between the reading threads and the file.
pub type Wrap<'w> = &'w dyn Fn(Box<dyn Source>) -> Box<dyn Source>;

impl Model {
    /// Makes the container's weights ready to run.
    ///
    /// # Errors
    /// [`Error::Argument`] when kernels or threads are not to be had, or a tensor is not as its description says.
    pub fn load(container: &Container, options: &Options) -> Result<Self> {
        Self::load_watched(container, options, &mut |_, _| ControlFlow::Continue(()))
    }

    /// [`Model::load`] that tells of what it brings in: everything but the experts.
    ///
    /// # Errors
    /// As [`Model::load`]; [`Error::Cancelled`] when `progress` breaks off.
    pub fn load_watched(container: &Container, options: &Options, progress: Progress<'_>) -> Result<Self> {
        Self::load_checked(container, options, &|source| source, progress)
    }

    /// [`Model::load`] with something between the reading threads and the file, for tests.
    ///
    /// # Errors
    /// As [`Model::load`].
    #[doc(hidden)]
    pub fn load_with(container: &Container, options: &Options, wrap: Wrap<'_>) -> Result<Self> {
        Self::load_checked(container, options, wrap, &mut |_, _| ControlFlow::Continue(()))
    }

    fn load_checked(
        container: &Container,
        options: &Options,
        wrap: Wrap<'_>,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let loaded = Self::of_weights(container, options, wrap, progress);
        container.check_file()?;
        loaded
    }

    fn of_weights(
        container: &Container,
        options: &Options,
        wrap: Wrap<'_>,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let mut config = container.config().clone();
        if let Some(rope) = options.rope {
            config = config.with_rope(rope).map_err(Error::Argument)?;
        }
        let threads = Threads::new(options.threads, options.threads_batch)?;
        let compute = Compute::new(threads, options.arithmetic, options.kernels.as_deref())?;
        let placement = Placement::new(container, options)?;
        compute.scratch.set_limit(usize::try_from(placement.scratch).unwrap_or(usize::MAX));
        match &placement.gpu {
            GpuPlacement::On { device, room, .. } => {
                tracing::info!(
                    "GPU {device}: the trunk and {} of {} experts",
                    room.slots,
                    room.needs.experts
                );
            }
            GpuPlacement::Off(why) if cfg!(feature = "gpu") && options.gpu.choice == gpu::Choice::Auto => {
                tracing::info!("the model runs on the CPU: {why}");
            }
            GpuPlacement::Off(_) => {}
        }
        let weights = Weights::new(container, &placement, options, progress)?;
        let layers = (0..config.layers).map(|l| weights.layer(l)).collect::<Result<Vec<_>>>()?;
        let head = if config.tied_embeddings { "token_embd.weight" } else { "output.weight" };
        let mut model = Self {
            compute,
            rope: Rope::of(&config),
            embedding: weights.embedding()?,
            layers,
            final_norm: weights.vector("output_norm.weight")?,
            head: weights.matrix(head)?,
            pager: weights.pager(&placement, &options.paging, wrap)?,
            look_ahead: options.paging.look_ahead && placement.mode == Mode::Streamed,
            script: None,
            pool: Pool::new(placement.pool, config.layers),
            placement,
            config,
            file: container.bytes().clone(),
            path: container.path().into(),
            log: Log::new(),
            #[cfg(feature = "gpu")]
            gpu: None,
        };
        // In the memory of intermediate results, of which there are none yet.
        let (bytes, memory) = (model.bytes_per_token(), model.placement.scratch);
        model.compute.tune(bytes, memory);
        model.pager.enter_pages();
        #[cfg(feature = "gpu")]
        model.load_gpu(container, &options.gpu)?;
        Ok(model)
    }
}

struct Weights<'c> {
    container: &'c Container,
    mode: Mode,
    /// Streamed: the trunk is read into memory of its own, past the page cache, which could drop it.
    file: Option<FileSource>,
    /// Matrices that the file has in rows become panels. Sums of floats would have another order in them.
    pack: bool,
    /// Who hears of bytes, how many there were, and how many there are.
    progress: RefCell<(Progress<'c>, u64)>,
    trunk: u64,
}

impl<'c> Weights<'c> {
    fn new(
        container: &'c Container,
        placement: &Placement,
        options: &Options,
        progress: Progress<'c>,
    ) -> Result<Self> {
        let (mut direct_io, mut trunk) = (options.paging.direct_io, placement.trunk);
        if let Some(arriving) = container.arriving() {
            // What has just been written is in the page cache.
            if direct_io == DirectIo::Auto {
                direct_io = DirectIo::Off;
            }
            trunk = arriving.expect_trunk();
        }
        let probe = container.tensors().first().map_or(0, |t| t.offset / PAGE as u64 * PAGE as u64);
        let open = || FileSource::open(container.path(), direct_io, probe);
        let file = (placement.mode == Mode::Streamed).then(open).transpose()?;
        let pack = options.arithmetic == Arithmetic::Integer;
        let progress = RefCell::new((progress, 0));
        Ok(Self { container, mode: placement.mode, file, pack, progress, trunk })
    }

    /// Waits for a tensor, where the file is still coming: it is the coming that takes time then, and is told of.
    fn arrive(&self, view: &TensorView) -> Result<()> {
        match (self.container.arriving(), view.bytes.file_offset()) {
            (Some(arriving), Some(offset)) => {
                arriving.bring(offset, &|bytes| self.tell(bytes as usize).is_ok())
            }
            _ => Ok(()),
        }
    }

    /// So many more bytes are there. A tensor that is used twice counts once in the sum.
    fn tell(&self, bytes: usize) -> Result<()> {
        let (progress, done) = &mut *self.progress.borrow_mut();
        *done = (*done + bytes as u64).min(self.trunk);
        if progress(*done, self.trunk).is_break() { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn find(&self, name: &str) -> Result<TensorView> {
        self.container
            .tensor(name)
            .ok_or_else(|| Error::Argument(format!("the container has no tensor {name}; convert it again")))
    }

    fn view(&self, name: &str) -> Result<TensorView> {
        self.bring_in(self.find(name)?)
    }

    /// The tensor in memory, where the mode asks for that: what cannot be read is an error now.
    fn bring_in(&self, view: TensorView) -> Result<TensorView> {
        self.arrive(&view)?;
        let comes = self.container.arriving().is_some();
        let bytes = match (&self.file, view.bytes.file_offset()) {
            (Some(file), Some(offset)) => {
                let length = view.bytes.len();
                Bytes::collect(length, |give| {
                    file.copy(offset, length, &mut |piece| {
                        give(piece);
                        self.tell(if comes { 0 } else { piece.len() })
                    })
                })?
            }
            _ => {
                for start in (0..view.bytes.len()).step_by(PIECE) {
                    let end = view.bytes.len().min(start + PIECE);
                    if self.mode == Mode::Mapped {
                        let populated = view.bytes.populate(start..end);
                        populated.map_err(Error::io("read", self.container.path()))?;
                    }
                    self.tell(end - start)?;
                }
                view.bytes
            }
        };
        Ok(TensorView { bytes, ..view })
    }

    /// A matrix for products.
    fn matrix(&self, name: &str) -> Result<Matrix> {
        self.packed(self.view(name)?)
    }

    fn packed(&self, view: TensorView) -> Result<Matrix> {
        Matrix::new(if self.pack { panels_in_memory(view)? } else { view })
    }

    /// A matrix whose rows are read one by one.
    fn rows(&self, name: &str) -> Result<Matrix> {
        Matrix::new(self.view(name)?)
    }

    /// A head that is the same matrix has a copy in panels.
    fn embedding(&self) -> Result<Embedding> {
        let view = self.find("token_embd.weight")?;
        match self.mode {
            Mode::Streamed => {
                self.arrive(&view)?;
                Embedding::streamed(view, self.container.path())
            }
            // A token reads one row of it, which comes when it does.
            Mode::Mapped => {
                self.arrive(&view)?;
                view.bytes.read_as_asked();
                self.tell(view.bytes.len())?;
                Embedding::new(view)
            }
            Mode::Plain => Embedding::new(self.bring_in(view)?),
        }
    }

    /// A projection of the router, in f32 whatever it is stored in: the choice of experts is not left to rounded activations.
    fn router(&self, name: &str) -> Result<Matrix> {
        let weights = self.vector(name)?;
        let bytes = Bytes::copy(bytemuck::cast_slice(&weights));
        Matrix::new(TensorView { dtype: DType::F32, bytes, ..self.find(name)? })
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let matrix = self.rows(name)?;
        let mut out = vec![0.0; matrix.rows * matrix.cols];
        out.chunks_exact_mut(matrix.cols).enumerate().for_each(|(r, out)| matrix.dequantize_row(r, out));
        Ok(out)
    }

    fn layer(&self, l: usize) -> Result<Layer> {
        let name = |name: &str| format!("blk.{l}.{name}");
        let matrix = |of: &str| self.matrix(&name(of));
        let vector = |of: &str| self.vector(&name(of));
        let router = |of: &str| self.router(&name(of));
        let filter = Filter {
            conv1: self.conv(&name("conv1"))?,
            conv2: self.conv(&name("conv2"))?,
            norm: vector("lf_output_norm.weight")?,
        };
        let config = self.container.config();
        let feed_forward = match config.architecture {
            Architecture::Dense => FeedForward::Dense(Mlp {
                gate: matrix("ffn_gate.weight")?,
                up: matrix("ffn_up.weight")?,
                down: matrix("ffn_down.weight")?,
            }),
            Architecture::Moe => FeedForward::Moe {
                router: Router {
                    projections: match config.router {
                        RouterKind::Attention => Projections::Attention([
                            router("mlp_attn_q.weight")?,
                            router("mlp_attn_k.weight")?,
                            router("mlp_attn_v.weight")?,
                        ]),
                        RouterKind::Linear => Projections::Linear(router("ffn_gate_inp.weight")?),
                    },
                    used: config.experts_used,
                    normalize: config.norm_topk,
                },
                experts: self.experts(l)?,
            },
        };
        Ok(Layer {
            input_norm: vector("attn_norm.weight")?,
            filter,
            q: matrix("attn_q.weight")?,
            k: matrix("attn_k.weight")?,
            v: matrix("attn_v.weight")?,
            o: matrix("attn_output.weight")?,
            post_norm: vector("ffn_norm.weight")?,
            feed_forward,
        })
    }

    fn conv(&self, name: &str) -> Result<Conv> {
        let (view, layout) = self.container.conv(name)?;
        let taps = match layout {
            ConvLayout::Split => Taps::Split,
            ConvLayout::Interleaved => Taps::Interleaved,
        };
        let view = self.bring_in(view)?;
        Ok(Conv { weight: self.packed(view)?, taps, bias: self.vector(&format!("{name}.bias"))? })
    }

    fn experts(&self, l: usize) -> Result<Experts> {
        let mut rows = Vec::new();
        for e in 0..self.container.config().experts {
            match self.container.expert(l, e)? {
                ExpertView::Tiles { layout, .. } => {
                    return Ok(Experts::Tiles { layer: l, dtype: layout.dtype });
                }
                ExpertView::Rows { w1, w2 } => {
                    rows.push(ExpertRows { w1: Matrix::new(w1)?, w2: Matrix::new(w2)? })
                }
            }
        }
        Ok(Experts::Rows(rows))
    }

    fn pager(self, placement: &Placement, settings: &Settings, wrap: Wrap<'_>) -> Result<Pager> {
        let config = self.container.config();
        let (mut blobs, mut tiles, mut tile_bytes) = (Vec::new(), 0, 0);
        for l in 0..config.layers {
            for e in 0..config.experts {
                if let ExpertView::Tiles { layout, bytes } = self.container.expert(l, e)? {
                    (tiles, tile_bytes) = (layout.tiles(), layout.tile_bytes());
                    blobs.push(bytes);
                }
            }
        }
        let path = self.container.path();
        match (placement.mode, self.file) {
            (Mode::Streamed, Some(file)) => {
                let offsets: Vec<u64> = blobs.iter().filter_map(Bytes::file_offset).collect();
                let file = match in_pages(&offsets, tile_bytes) {
                    true => file,
                    false => FileSource::open(path, DirectIo::Off, 0)?,
                };
                let file: Box<dyn Source> = match self.container.arriving() {
                    Some(arriving) => Box::new(ArrivingExperts::new(Box::new(file), arriving.clone())),
                    None => Box::new(file),
                };
                let source = Throttle::at(wrap(file), settings.throttle);
                let policy =
                    Policy::new(settings.eviction, config.layers, config.experts, placement.resident);
                let shape = Shape { experts: config.experts, tiles, tile_bytes };
                Pager::streamed(source, offsets, shape, policy, placement.transient, settings.readers, path)
            }
            (Mode::Mapped, _) => {
                let cool = self.container.data_bytes() > placement.budget.bytes;
                Pager::mapped(blobs, config.experts, tile_bytes, path, settings, cool)
            }
            _ => Pager::plain(blobs, config.experts, tile_bytes),
        }
    }
}
