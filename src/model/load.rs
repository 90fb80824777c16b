//! From a container to a model: every weight found, checked and named. No weight is copied but norms, biases and
//! the router.

use yuan_kernels::DType;

use super::{
    Layer, Model,
    compute::{Arithmetic, Compute},
    feed_forward::{ExpertRows, Experts, FeedForward, Mlp},
    filter::{Conv, Filter, Taps},
    matrix::Matrix,
    rope::Rope,
    router::Router,
};
use crate::{
    config::{Architecture, RopePrecision},
    container::{Bytes, Container, ConvLayout, ExpertView, TensorView},
    error::{Error, Result},
    pager::Pager,
};

/// How to run a model.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Threads; 0 means all that the process may use.
    pub threads: usize,
    /// Integer or float products.
    pub arithmetic: Arithmetic,
    /// Another rotary convention than the container's.
    pub rope: Option<RopePrecision>,
}

impl Model {
    /// Makes the container's weights ready to run.
    ///
    /// # Errors
    /// [`Error::Argument`] when kernels or threads are not to be had, or a tensor is not as its description says.
    pub fn load(container: &Container, options: &Options) -> Result<Self> {
        let mut config = container.config().clone();
        config.rope_precision = options.rope.unwrap_or(config.rope_precision);
        let compute = Compute::new(options.threads, options.arithmetic)?;
        let weights = Weights { container };
        let layers = (0..config.layers).map(|l| weights.layer(l)).collect::<Result<Vec<_>>>()?;
        let head = if config.tied_embeddings { "token_embd.weight" } else { "output.weight" };
        Ok(Self {
            compute,
            pager: weights.pager()?,
            rope: Rope::of(&config),
            embedding: weights.matrix("token_embd.weight")?,
            layers,
            final_norm: weights.vector("output_norm.weight")?,
            head: weights.matrix(head)?,
            config,
        })
    }
}

struct Weights<'c> {
    container: &'c Container,
}

impl Weights<'_> {
    fn view(&self, name: &str) -> Result<TensorView> {
        self.container
            .tensor(name)
            .ok_or_else(|| Error::Argument(format!("the container has no tensor {name}; convert it again")))
    }

    fn matrix(&self, name: &str) -> Result<Matrix> {
        Matrix::new(self.view(name)?)
    }

    /// A projection of the router, in f32 whatever it is stored in: the choice of experts is not left to rounded activations.
    fn router(&self, name: &str) -> Result<Matrix> {
        let weights = self.vector(name)?;
        let bytes = Bytes::copy(bytemuck::cast_slice(&weights));
        Matrix::new(TensorView { dtype: DType::F32, bytes, ..self.view(name)? })
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let matrix = self.matrix(name)?;
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
                    query: router("mlp_attn_q.weight")?,
                    key: router("mlp_attn_k.weight")?,
                    value: router("mlp_attn_v.weight")?,
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
        Ok(Conv { weight: Matrix::new(view)?, taps, bias: self.vector(&format!("{name}.bias"))? })
    }

    fn experts(&self, l: usize) -> Result<Experts> {
        let mut rows = Vec::new();
        for e in 0..self.container.config().experts {
            match self.container.expert(l, e)? {
                ExpertView::Tiles { layout, .. } if layout.dtype == DType::Q4_0 => {
                    return Ok(Experts::TilesQ4_0 { layer: l });
                }
                ExpertView::Tiles { .. } => return Ok(Experts::TilesQ4K { layer: l }),
                ExpertView::Rows { w1, w2 } => {
                    rows.push(ExpertRows { w1: Matrix::new(w1)?, w2: Matrix::new(w2)? })
                }
            }
        }
        Ok(Experts::Rows(rows))
    }

    fn pager(&self) -> Result<Pager> {
        let config = self.container.config();
        let (mut blobs, mut tile_bytes) = (Vec::new(), 0);
        for l in 0..config.layers {
            for e in 0..config.experts {
                if let ExpertView::Tiles { layout, bytes } = self.container.expert(l, e)? {
                    tile_bytes = layout.tile_bytes();
                    blobs.push(bytes);
                }
            }
        }
        Pager::new(blobs, config.experts, tile_bytes)
    }
}
