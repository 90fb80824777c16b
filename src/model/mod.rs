//! The forward pass of the Yuan 2.0 family. MODEL.md is the math; [`forward`] reads like it.

mod activations;
pub(crate) mod ahead;
mod attention;
mod batch;
#[doc(hidden)]
pub mod bench;
mod cancel;
mod compute;
mod embedding;
mod feed_forward;
mod filter;
mod finite;
pub mod forward;
#[cfg(feature = "gpu")]
mod gpu;
mod load;
mod matrix;
mod norm;
pub mod phases;
mod probe;
pub mod rope;
mod router;
mod scratch;
mod script;
mod sequence;
mod state;
pub mod threads;
mod tiles;
mod work;

pub use cancel::{Cancel, Running};
pub use compute::Arithmetic;
pub use load::{BATCH, GpuPlacement, GpuUse, LOGIT_ROWS, Options, Placement, Progress, Sizes};
pub use probe::{Probe, Stage};
pub use sequence::{Output, Results, Sequence, Want};
pub(crate) use state::{Extent, UNROTATED_Q4_0};
pub use state::{KvType, Pool, PoolUse, State, Stored};
pub use work::{Calls, Work};

use std::{path::PathBuf, sync::Arc};

use crate::{
    config::ModelConfig,
    container::Bytes,
    error::Result,
    machine::system::ProcessUse,
    pager::{
        Pager,
        trace::{Trace, Traced},
    },
};
use compute::Compute;
use embedding::Embedding;
use feed_forward::FeedForward;
use filter::Filter;
use matrix::Matrix;
use rope::Rope;
pub(crate) use router::{WideRouter, softmax};
use script::Script;

/// A model that is ready to run. Shared by any number of sessions, each with a [`State`] of its own.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    compute: Compute,
    pager: Pager,
    placement: Placement,
    /// What the states of all sequences take their memory from.
    pool: Arc<Pool>,
    /// Whether experts of the next layer are guessed.
    look_ahead: bool,
    /// Routing that is prescribed.
    script: Option<Script>,
    rope: Rope,
    /// [V, H].
    embedding: Embedding,
    layers: Vec<Layer>,
    /// [H].
    final_norm: Vec<f32>,
    /// [V, H].
    head: Matrix,
    #[cfg(feature = "gpu")]
    gpu: Option<gpu::Gpu>,
    /// Of the container, whose bytes the weights are, unless they were copied.
    file: Bytes,
    path: PathBuf,
    log: work::Log,
}

/// The weights of one layer.
#[derive(Debug)]
struct Layer {
    /// [H].
    input_norm: Vec<f32>,
    filter: Filter,
    /// [P, H] each; q and k are joined and cut per head (MODEL.md, "Attention").
    q: Matrix,
    k: Matrix,
    v: Matrix,
    /// [H, P].
    o: Matrix,
    /// [H].
    post_norm: Vec<f32>,
    feed_forward: FeedForward,
}

impl Model {
    /// The shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The router of a layer, widened; `None` where it has none.
    pub(crate) fn router(&self, layer: usize) -> Option<WideRouter> {
        let Layer { post_norm, feed_forward: FeedForward::Moe { router, .. }, .. } =
            self.layers.get(layer)?
        else {
            return None;
        };
        let projections = router.projections.matrices().iter().map(Matrix::dequantized).collect();
        Some(WideRouter { norm: post_norm.clone(), projections, used: router.used })
    }

    /// Integer or float products.
    pub fn arithmetic(&self) -> Arithmetic {
        self.compute.arithmetic
    }

    /// Threads that share the work.
    pub fn threads(&self) -> usize {
        self.compute.threads()
    }

    /// Threads that share the work of several tokens.
    pub fn batch_threads(&self) -> usize {
        self.compute.batch_threads()
    }

    /// Whether this thread is one of those that compute for a pass.
    pub(crate) fn is_inside(&self) -> bool {
        self.compute.inside()
    }

    /// Name of the kernels in use.
    pub fn kernels(&self) -> &'static str {
        self.compute.kernels.name
    }

    /// How far ahead one token asks for weights, in bytes; 0: not at all.
    pub fn prefetch(&self) -> usize {
        self.compute.kernels.ahead
    }

    /// Bytes of weights that one token reads: the trunk, the head, and the experts that it uses.
    pub fn bytes_per_token(&self) -> usize {
        let layer = |layer: &Layer| {
            let filter = [&layer.filter.conv1.weight, &layer.filter.conv2.weight];
            let matrices = [&layer.q, &layer.k, &layer.v, &layer.o].into_iter().chain(filter);
            let trunk: usize = matrices.map(Matrix::len_bytes).sum();
            trunk + layer.feed_forward.bytes_per_token(self.pager.expert_bytes())
        };
        self.layers.iter().map(layer).sum::<usize>() + self.head.len_bytes()
    }

    /// An empty state for `capacity` tokens at most. It takes memory out of the model's pool as it fills: a pass that the pool has no room for
    /// is an error.
    ///
    /// # Errors
    /// As [`State::new`].
    pub fn state(&self, capacity: usize, kv: KvType) -> Result<State> {
        State::of_pool(&self.config, capacity, kv, self.pool.clone())
    }

    /// How much memory the sequences take.
    pub fn pool_use(&self) -> PoolUse {
        self.pool.usage()
    }

    /// Where the weights are, and why.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// How the GPU was used so far, if one takes part.
    pub fn gpu_use(&self) -> Option<GpuUse> {
        #[cfg(feature = "gpu")]
        return self.gpu.as_ref().map(gpu::Gpu::usage);
        #[cfg(not(feature = "gpu"))]
        None
    }

    /// Which experts are on a GPU that works, by `layer * experts + expert`; none where there is no such GPU.
    pub fn experts_on_gpu(&self) -> Vec<bool> {
        #[cfg(feature = "gpu")]
        return self.gpu().map(gpu::Gpu::there).unwrap_or_default();
        #[cfg(not(feature = "gpu"))]
        Vec::new()
    }

    /// Tokens of a prompt to run together. Streamed experts are read once a call, so there it is as many as the budget has room for.
    pub fn batch(&self) -> usize {
        self.placement.batch
    }

    /// Checks that the file of the weights still holds them, where they are read from its mapping while the model runs.
    ///
    /// # Errors
    /// [`Error::BadFile`](crate::Error::BadFile) when it has become shorter, or a part of it could not be read.
    pub(crate) fn check_file(&self) -> Result<()> {
        self.file.check_file(&self.path)
    }

    /// The most bytes that intermediate results took at a time, logits aside.
    pub fn most_scratch(&self) -> usize {
        self.compute.scratch.most_held()
    }

    /// What was run so far.
    pub fn work(&self) -> Work {
        self.log.work()
    }

    /// Counts a draft that was taken up as a token.
    pub(crate) fn count_taken_up(&self) {
        self.log.take_up();
    }

    /// What the process had used when the model was opened.
    pub(crate) fn opened(&self) -> ProcessUse {
        self.log.opened
    }

    /// The pager, for its counters.
    pub fn pager(&self) -> &Pager {
        &self.pager
    }

    /// What was asked of the pager since [`Pager::record`]. Ends the recording.
    pub fn recorded(&self) -> Trace {
        let model = Traced {
            yuan_trace: 1,
            layers: self.config.layers,
            experts: self.config.experts,
            used: self.config.experts_used,
            expert_bytes: self.placement.expert_bytes,
            fixed_bytes: self.placement.smallest,
        };
        Trace { model, requests: self.pager.recorded() }
    }
}
