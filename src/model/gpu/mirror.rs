//! A session's keys and values on the GPU. Those of the host are the truth, and these a copy of them: so a session is saved,
//! restored, cut and enlarged as without a GPU, and outlives one that fails.

use std::sync::Arc;

use yuan_kernels::DType;

use super::scratch::{Shape, partials};
use crate::{
    error::Result,
    gpu::{
        Device, Graph,
        driver::Rows,
        memory::{Buffer, Pinned},
        ops::{Cache, f32s},
    },
    model::{
        KvType, State,
        kv::{KvCache, SPAN},
    },
};

/// The copy, if there is one.
#[derive(Debug, Default)]
pub struct Mirror(Option<Kept>);

/// A copy of a session's state is a session of its own.
impl Clone for Mirror {
    fn clone(&self) -> Self {
        Self(None)
    }
}

impl Mirror {
    /// Positions from here on are other ones than the host's.
    pub fn truncate(&mut self, position: usize) {
        if let Some(copy) = &mut self.0 {
            copy.filled = copy.filled.min(position);
        }
    }
}

/// [layers][keys, values][heads][capacity][dim].
#[derive(Debug)]
pub struct Kept {
    device: Arc<Device>,
    memory: Buffer,
    /// Between the two kernels of attention.
    pub partials: Buffer,
    capacity: usize,
    /// Positions that equal the host's.
    filled: usize,
    /// The layers of a single token.
    pub graph: Option<TokenGraph>,
}

/// What all layers do for one token, where nothing is decided between them.
#[derive(Debug)]
pub struct TokenGraph {
    pub graph: Graph,
    /// The spans of attention that it was made for.
    pub spans: usize,
}

/// The type, if the kernels have it.
pub const fn dtype(kv: KvType) -> Option<DType> {
    match kv {
        KvType::F16 => Some(DType::F16),
        KvType::Q8_0 => Some(DType::Q8_0),
        KvType::F32 | KvType::Q4_0 => None,
    }
}

impl Kept {
    /// The copy of `state`'s keys and values, made or completed where it must be.
    pub fn of<'s>(
        state: &'s mut State,
        shape: &Shape,
        device: &Arc<Device>,
        pinned: &mut Pinned,
    ) -> Result<&'s mut Self> {
        let (capacity, position, kv) = (state.capacity(), state.position(), state.kv_type());
        let fits = |copy: &Self| copy.capacity == capacity && Arc::ptr_eq(&copy.device, device);
        let mut copy = match state.mirror.0.take().filter(fits) {
            Some(copy) => copy,
            None => Self {
                device: device.clone(),
                memory: Buffer::new(device, 2 * shape.layers * capacity * kv.bytes(shape.projection))?,
                partials: Buffer::new(device, f32s(partials(shape, capacity)))?,
                capacity,
                filled: 0,
                graph: None,
            },
        };
        let row = kv.bytes(shape.dim);
        while copy.filled < position {
            let (start, n) = (copy.filled, of_one_page(copy.filled, position - copy.filled));
            let pieces: Vec<&[u8]> = state.layers.iter().flat_map(|l| l.kv.part(start..start + n)).collect();
            let width = n * row;
            for (i, group) in pieces.chunks((pinned.size() / width).max(1)).enumerate() {
                let host = pinned.host()?;
                for (to, from) in host.chunks_exact_mut(width).zip(group) {
                    to.copy_from_slice(from);
                }
                let first = i * (pinned.size() / width).max(1);
                let rows = Rows { count: group.len(), width, pitch: capacity * row };
                pinned.upload_rows(
                    0,
                    copy.memory.part(copy.place(first, start, row)..copy.memory.size())?,
                    rows,
                )?;
            }
            copy.filled += n;
        }
        Ok(state.mirror.0.insert(copy))
    }

    /// Where a position of the piece `piece` (layer, keys or values, head) lies.
    fn place(&self, piece: usize, position: usize, row: usize) -> usize {
        (piece * self.capacity + position) * row
    }

    /// Keys and values of one layer; `start` holds the number of positions.
    pub fn layer<'b>(
        &'b self,
        shape: &Shape,
        dtype: DType,
        l: usize,
        start: crate::gpu::memory::View<'b>,
    ) -> Result<Cache<'b>> {
        let bytes = Cache::bytes(dtype, shape.heads, shape.dim, self.capacity);
        let part = |i: usize| self.memory.part((2 * l + i) * bytes..(2 * l + i + 1) * bytes);
        let (keys, values) = (part(0)?, part(1)?);
        Ok(Cache { dtype, heads: shape.heads, dim: shape.dim, capacity: self.capacity, keys, values, start })
    }
}

/// Brings the `tokens` positions behind the host's, which a pass has computed, to the host.
pub fn bring_back(state: &mut State, shape: &Shape, tokens: usize, pinned: &mut Pinned) -> Result<()> {
    let (start, row) = (state.position(), state.kv_type().bytes(shape.dim));
    let Some(copy) = &mut state.mirror.0 else { return Ok(()) };
    let pieces = 2 * shape.layers * shape.heads;
    let mut first = 0;
    while first < tokens {
        let n = of_one_page(start + first, tokens - first);
        let width = n * row;
        let most = (pinned.size() / width).max(1);
        let mut to: Vec<&mut [u8]> = state.layers.iter_mut().flat_map(|l| extend(&mut l.kv, n)).collect();
        for (i, group) in to.chunks_mut(most).enumerate() {
            let rows = Rows { count: group.len(), width, pitch: copy.capacity * row };
            let at = copy.place(i * most, start + first, row);
            pinned.download_rows(0, copy.memory.part(at..copy.memory.size())?, rows)?;
            let host = pinned.host()?;
            group.iter_mut().zip(host.chunks_exact(width)).for_each(|(to, from)| to.copy_from_slice(from));
        }
        debug_assert_eq!(to.len(), pieces);
        first += n;
    }
    copy.filled = start + tokens;
    Ok(())
}

/// How many of the `most` positions from `start` on are of one page.
fn of_one_page(start: usize, most: usize) -> usize {
    most.min(SPAN - start % SPAN)
}

fn extend(kv: &mut KvCache, rows: usize) -> Vec<&mut [u8]> {
    kv.extend(rows).collect()
}
