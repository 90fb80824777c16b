//! The weights that always lie on the GPU.

use std::sync::Arc;

use yuan_cuda::launch;
use yuan_kernels::DType;

use crate::{
    container::{Container, TensorView},
    error::Result,
    gpu::{
        Device,
        driver::Stream,
        form::Form,
        memory::{Buffer, Pinned, View},
        ops::{Ops, Weights, f32s},
    },
    model::{
        Layer, Model,
        feed_forward::FeedForward,
        filter::{Conv, Taps},
        matrix::Matrix,
        router::Router,
    },
};

/// A matrix.
#[derive(Debug)]
pub struct GpuMatrix {
    dtype: DType,
    rows: usize,
    cols: usize,
    bytes: Buffer,
    bias: Option<Buffer>,
}

/// One convolution of the filter.
#[derive(Debug)]
pub struct GpuConv {
    pub weight: GpuMatrix,
    pub interleaved: bool,
}

/// The weights of one layer, but its experts.
#[derive(Debug)]
pub struct GpuLayer {
    pub input_norm: Buffer,
    pub conv1: GpuConv,
    pub conv2: GpuConv,
    pub filter_norm: Buffer,
    pub q: GpuMatrix,
    pub k: GpuMatrix,
    pub v: GpuMatrix,
    pub o: GpuMatrix,
    pub post_norm: Buffer,
    /// Its projections, one over the other: [3E, H] or [E, H].
    pub router: GpuMatrix,
    pub normalize: bool,
}

/// All of them.
#[derive(Debug)]
pub struct Trunk {
    pub layers: Vec<GpuLayer>,
    pub final_norm: Buffer,
    pub head: GpuMatrix,
    /// In rows, where there is room for it.
    pub embedding: Option<GpuMatrix>,
}

impl GpuMatrix {
    fn weights(&self) -> Weights<'_> {
        let Self { dtype, rows, cols, ref bytes, ref bias } = *self;
        let bias = bias.as_ref().map_or(View::NONE, Buffer::view);
        Weights { dtype, rows, cols, bytes: bytes.view(), bias }
    }

    /// In which blocks it takes activations.
    pub fn form(&self) -> Form {
        Form::of(self.dtype)
    }

    /// The rows of these ids, i32 [T], of which it has all.
    pub fn embed(&self, ops: Ops<'_>, ids: View<'_>, out: View<'_>, tokens: usize) -> Result<()> {
        ops.embed(self.weights(), ids, out, tokens)
    }

    /// `out = x wᵀ + bias`, of the form of `x` that the type wants.
    pub fn product(&self, ops: Ops<'_>, x: (View<'_>, View<'_>), out: View<'_>, tokens: usize) -> Result<()> {
        let x = if self.dtype.is_quantized() { x.1 } else { x.0 };
        ops.product(self.weights(), x, out, tokens)
    }
}

/// Bytes that are sent at once.
const PIECE: usize = 8 << 20;

/// Sends weights.
struct Sender {
    device: Arc<Device>,
    /// Two, so that one is filled while the other is sent.
    pinned: [Pinned; 2],
}

impl Sender {
    fn new(device: &Arc<Device>) -> Result<Self> {
        let pinned = || Pinned::new(device, PIECE, Stream::Compute);
        Ok(Self { device: device.clone(), pinned: [pinned()?, pinned()?] })
    }

    fn bytes(&mut self, parts: &[&[u8]]) -> Result<Buffer> {
        let buffer = Buffer::new(&self.device, parts.iter().map(|p| p.len()).sum())?;
        let mut at = 0;
        for piece in parts.iter().flat_map(|part| part.chunks(PIECE)) {
            self.pinned.swap(0, 1);
            self.pinned[0].host()?[..piece.len()].copy_from_slice(piece);
            self.pinned[0].upload(0..piece.len(), buffer.part(at..at + piece.len())?)?;
            at += piece.len();
        }
        Ok(buffer)
    }

    fn vector(&mut self, numbers: &[f32]) -> Result<Buffer> {
        self.bytes(&[bytemuck::cast_slice(numbers)])
    }

    fn matrix(&mut self, m: &Matrix) -> Result<GpuMatrix> {
        let bytes = self.bytes(&[m.bytes()])?;
        Ok(GpuMatrix { dtype: m.dtype, rows: m.rows, cols: m.cols, bytes, bias: None })
    }

    fn conv(&mut self, conv: &Conv) -> Result<GpuConv> {
        let (weight, bias) = (self.matrix(&conv.weight)?, Some(self.vector(&conv.bias)?));
        Ok(GpuConv { weight: GpuMatrix { bias, ..weight }, interleaved: conv.taps == Taps::Interleaved })
    }

    fn layer(&mut self, layer: &Layer, router: &Router) -> Result<GpuLayer> {
        let parts = router.projections.matrices();
        let router_bytes = self.bytes(&parts.iter().map(Matrix::bytes).collect::<Vec<_>>())?;
        let (rows, cols) = (parts.len() * router.projections.experts(), parts[0].cols);
        Ok(GpuLayer {
            input_norm: self.vector(&layer.input_norm)?,
            conv1: self.conv(&layer.filter.conv1)?,
            conv2: self.conv(&layer.filter.conv2)?,
            filter_norm: self.vector(&layer.filter.norm)?,
            q: self.matrix(&layer.q)?,
            k: self.matrix(&layer.k)?,
            v: self.matrix(&layer.v)?,
            o: self.matrix(&layer.o)?,
            post_norm: self.vector(&layer.post_norm)?,
            router: GpuMatrix { dtype: DType::F32, rows, cols, bytes: router_bytes, bias: None },
            normalize: router.normalize,
        })
    }
}

impl Trunk {
    /// Sends the trunk of a model with routed experts, and with it the embedding, where that is to be there.
    pub fn send(model: &Model, device: &Arc<Device>, embedding: bool) -> Result<Self> {
        let mut sender = Sender::new(device)?;
        let layers = model.layers.iter().filter_map(|layer| match &layer.feed_forward {
            FeedForward::Moe { router, .. } => Some(sender.layer(layer, router)),
            FeedForward::Dense(_) => None,
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let (final_norm, head) = (sender.vector(&model.final_norm)?, sender.matrix(&model.head)?);
        let embedding = embedding.then(|| sender.matrix(model.embedding.table())).transpose()?;
        device.finish()?;
        Ok(Self { layers, final_norm, head, embedding })
    }
}

/// Bytes of the embedding, or 0 where the kernels do not read it.
pub fn embedding_bytes(container: &Container) -> u64 {
    let table = container.tensor("token_embd.weight");
    let reads = |t: &TensorView| !t.panels && launch::embed(t.dtype, 1).is_some();
    table.filter(reads).map_or(0, |t| t.bytes.len().next_multiple_of(256) as u64)
}

/// Bytes of the trunk, or which of its tensors the kernels do not read.
pub fn trunk_bytes(container: &Container) -> Result<u64, String> {
    let config = container.config();
    let head = if config.tied_embeddings { "token_embd.weight" } else { "output.weight" };
    let tensor = |name: &str| container.tensor(name).ok_or_else(|| format!("there is no tensor {name}"));
    let mut matrices = vec![tensor(head)?];
    for l in 0..config.layers {
        for name in ["attn_q", "attn_k", "attn_v", "attn_output"] {
            matrices.push(tensor(&format!("blk.{l}.{name}.weight"))?);
        }
        for name in ["conv1", "conv2"] {
            matrices.push(container.conv(&format!("blk.{l}.{name}")).map_err(|e| e.to_string())?.0);
        }
    }
    let reads = |m: &&TensorView| {
        m.panels == m.dtype.is_quantized() && launch::product(m.dtype, m.rows, m.cols, 1).is_some()
    };
    if let Some(other) = matrices.iter().find(|m| !reads(m)) {
        let (name, rows) = (&other.name, if other.panels { "panels" } else { "rows" });
        return Err(format!(
            "{name} is {} in {rows}, which the GPU does not read; convert it with yuan-quant --dense q8_0",
            other.dtype.name()
        ));
    }
    let form = |name: String| tensor(&name).map(|t| Form::of(t.dtype));
    for l in 0..config.layers {
        if form(format!("blk.{l}.attn_q.weight"))? != form(format!("blk.{l}.attn_k.weight"))? {
            return Err(format!(
                "blk.{l}.attn_q.weight and blk.{l}.attn_k.weight, which the GPU gives the same inputs, are of types that take different ones; \
                 convert them with yuan-quant --dense q8_0"
            ));
        }
    }
    let router = f32s(config.router.projections() * config.experts * config.hidden);
    let vectors = f32s(4 * config.hidden + config.hidden / 2);
    // Every piece begins at a border of 256 bytes.
    let piece = |m: &TensorView| m.bytes.len().next_multiple_of(256) as u64;
    let others = config.layers * (router + vectors + 8 * 256) + f32s(config.hidden) + 256;
    Ok(matrices.iter().map(piece).sum::<u64>() + others as u64)
}
