//! The keys and values of one layer, as they are stored.

use std::ops::Range;

use bytemuck::{allocation::try_zeroed_vec, cast_slice, cast_slice_mut};
use half::{f16, slice::HalfFloatSliceExt};
use yuan_kernels::{BlockQ4_0, BlockQ8, BlockQ8_0, Kernels, blocks::QK, encode::best_encoders};

/// The type that keys and values are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// 2 bytes a value.
    #[default]
    F16,
    /// 4 bytes a value: for comparison with other implementations.
    F32,
    /// 8.5 bits a value, in blocks of 32.
    Q8_0,
    /// 4.5 bits a value, in blocks of 32.
    Q4_0,
}

impl KvType {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::F16, Self::F32, Self::Q8_0, Self::Q4_0];

    /// The name of the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// The inverse of [`KvType::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// Values of one block: a head's width must be a multiple of it.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F16 | Self::F32 => 1,
            Self::Q8_0 | Self::Q4_0 => 32,
        }
    }

    /// Bytes of `values` values, a whole number of blocks.
    pub const fn bytes(self, values: usize) -> usize {
        match self {
            Self::F16 => 2 * values,
            Self::F32 => 4 * values,
            Self::Q8_0 => values / 32 * size_of::<BlockQ8_0>(),
            Self::Q4_0 => values / 32 * size_of::<BlockQ4_0>(),
        }
    }
}

/// Keys and values of `capacity` positions, [head][position][dim].
#[derive(Clone, Debug)]
pub struct KvCache {
    heads: usize,
    head_dim: usize,
    capacity: usize,
    len: usize,
    keys: Store,
    values: Store,
}

/// Untouched pages of a zeroed allocation cost no memory: a large context is paid for as it fills.
#[derive(Clone, Debug)]
enum Store {
    F16(Vec<f16>),
    F32(Vec<f32>),
    Q8_0(Vec<BlockQ8_0>),
    Q4_0(Vec<BlockQ4_0>),
}

impl KvCache {
    /// An empty cache, or `None` where the system has no memory for it. `head_dim` is a multiple of the type's blocks.
    pub fn new(heads: usize, head_dim: usize, capacity: usize, kv: KvType) -> Option<Self> {
        let n = heads * head_dim * capacity / kv.block_len();
        let store = || {
            Some(match kv {
                KvType::F16 => Store::F16(try_zeroed_vec(n).ok()?),
                KvType::F32 => Store::F32(try_zeroed_vec(n).ok()?),
                KvType::Q8_0 => Store::Q8_0(try_zeroed_vec(n).ok()?),
                KvType::Q4_0 => Store::Q4_0(try_zeroed_vec(n).ok()?),
            })
        };
        Some(Self { heads, head_dim, capacity, len: 0, keys: store()?, values: store()? })
    }

    /// Heads that share the width of a row.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Positions that are filled.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is filled.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The type of keys and values.
    pub fn kv_type(&self) -> KvType {
        match self.keys {
            Store::F16(_) => KvType::F16,
            Store::F32(_) => KvType::F32,
            Store::Q8_0(_) => KvType::Q8_0,
            Store::Q4_0(_) => KvType::Q4_0,
        }
    }

    /// Forgets the positions from `len` on, if there are such.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// A copy of the first `positions` with room for `capacity`, or `None` where the system has no memory for it.
    pub fn resized(&self, positions: usize, capacity: usize) -> Option<Self> {
        let mut new = Self::new(self.heads, self.head_dim, capacity, self.kv_type())?;
        new.pieces_mut(positions).zip(self.pieces(positions)).for_each(|(to, from)| to.copy_from_slice(from));
        Some(new)
    }

    /// The bytes of the first `positions`: keys, head by head, then values, head by head.
    pub fn pieces(&self, positions: usize) -> impl Iterator<Item = &[u8]> {
        let stores = [self.keys.bytes(), self.values.bytes()];
        let (head, part) = self.head_bytes(positions);
        stores.into_iter().flat_map(move |bytes| bytes.chunks_exact(head).map(move |bytes| &bytes[..part]))
    }

    /// [`KvCache::pieces`], to be overwritten; the cache then holds `positions`.
    pub fn pieces_mut(&mut self, positions: usize) -> impl Iterator<Item = &mut [u8]> {
        assert!(positions <= self.capacity, "the state checks the context");
        self.len = positions;
        let (head, part) = self.head_bytes(positions);
        let stores = [self.keys.bytes_mut(), self.values.bytes_mut()];
        stores
            .into_iter()
            .flat_map(move |bytes| bytes.chunks_exact_mut(head).map(move |bytes| &mut bytes[..part]))
    }

    /// Adds `rows` positions, and gives their bytes, in the order of [`KvCache::pieces`], to be overwritten.
    #[cfg(feature = "gpu")]
    pub fn extend(&mut self, rows: usize) -> impl Iterator<Item = &mut [u8]> {
        let start = self.len;
        let (_, from) = self.head_bytes(start);
        self.pieces_mut(start + rows).map(move |piece| &mut piece[from..])
    }

    /// Bytes of all positions of one head, and of the first `positions`.
    fn head_bytes(&self, positions: usize) -> (usize, usize) {
        let bytes = self.kv_type().bytes(self.head_dim);
        ((bytes * self.capacity).max(1), bytes * positions)
    }

    /// Adds the next positions: `keys` (rotated) and `values` are [T, heads * head_dim].
    pub fn push(&mut self, keys: &[f32], values: &[f32]) {
        let rows = keys.len() / (self.heads * self.head_dim);
        assert!(self.len + rows <= self.capacity, "the session checks the context");
        for (store, data) in [(&mut self.keys, keys), (&mut self.values, values)] {
            for (i, head) in data.chunks_exact(self.head_dim).enumerate() {
                let (t, h) = (i / self.heads, i % self.heads);
                store.write((h * self.capacity + self.len + t) * self.head_dim, head);
            }
        }
        self.len += rows;
    }

    /// `scores[t][i] = q[t] · key of position i` of one head, for the `positions` given and queries [T, head_dim].
    pub fn scores(
        &self,
        kernels: &Kernels,
        head: usize,
        positions: Range<usize>,
        q: &[f32],
        scores: &mut [f32],
    ) {
        let (dim, at) = (self.head_dim, self.places(head, &positions));
        match &self.keys {
            Store::F16(keys) => (kernels.scores_f16)(q, dim, &keys[at], scores),
            Store::F32(keys) => (kernels.scores_f32)(q, dim, &keys[at], scores),
            Store::Q8_0(keys) => {
                quantized_scores(
                    kernels,
                    dim,
                    &keys[at.start / 32..at.end / 32],
                    q,
                    scores,
                    kernels.dot_q8_0,
                );
            }
            Store::Q4_0(keys) => {
                quantized_scores(
                    kernels,
                    dim,
                    &keys[at.start / 32..at.end / 32],
                    q,
                    scores,
                    kernels.dot_q4_0,
                );
            }
        }
    }

    /// `y[t] += sum over i of p[t][i] * value of position i` of one head.
    pub fn mix(&self, kernels: &Kernels, head: usize, positions: Range<usize>, p: &[f32], y: &mut [f32]) {
        let (dim, at) = (self.head_dim, self.places(head, &positions));
        match &self.values {
            Store::F16(values) => (kernels.mix_f16)(p, dim, &values[at], y),
            Store::F32(values) => (kernels.mix_f32)(p, dim, &values[at], y),
            Store::Q8_0(values) => (kernels.mix_q8_0)(p, dim, &values[at.start / 32..at.end / 32], y),
            Store::Q4_0(values) => (kernels.mix_q4_0)(p, dim, &values[at.start / 32..at.end / 32], y),
        }
    }

    /// Where the values of a head's positions lie.
    fn places(&self, head: usize, positions: &Range<usize>) -> Range<usize> {
        let start = head * self.capacity;
        (start + positions.start) * self.head_dim..(start + positions.end) * self.head_dim
    }
}

/// Scores of quantized keys with queries that are quantized as other activations are.
fn quantized_scores<B>(
    kernels: &Kernels,
    dim: usize,
    keys: &[B],
    q: &[f32],
    scores: &mut [f32],
    dot: fn(&[B], &[BlockQ8]) -> f32,
) {
    let blocks = dim / 32;
    let mut quantized = vec![bytemuck::Zeroable::zeroed(); dim.div_ceil(QK)];
    for (q, scores) in q.chunks_exact(dim).zip(scores.chunks_exact_mut((keys.len() / blocks).max(1))) {
        (kernels.quantize)(q, &mut quantized);
        for (key, score) in keys.chunks_exact(blocks).zip(scores) {
            *score = dot(key, &quantized);
        }
    }
}

impl Store {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::F16(store) => cast_slice(store),
            Self::F32(store) => cast_slice(store),
            Self::Q8_0(store) => cast_slice(store),
            Self::Q4_0(store) => cast_slice(store),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::F16(store) => cast_slice_mut(store),
            Self::F32(store) => cast_slice_mut(store),
            Self::Q8_0(store) => cast_slice_mut(store),
            Self::Q4_0(store) => cast_slice_mut(store),
        }
    }

    fn write(&mut self, at: usize, data: &[f32]) {
        match self {
            Self::F16(store) => store[at..][..data.len()].convert_from_f32_slice(data),
            Self::F32(store) => store[at..][..data.len()].copy_from_slice(data),
            Self::Q8_0(store) => {
                (best_encoders().q8_0)(data, cast_slice_mut(&mut store[at / 32..][..data.len() / 32]))
            }
            Self::Q4_0(store) => {
                (best_encoders().q4_0)(data, cast_slice_mut(&mut store[at / 32..][..data.len() / 32]))
            }
        }
    }
}
