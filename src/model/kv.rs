//! The keys and values of one layer, and the attention over them.

use half::f16;
use rayon::prelude::*;
use yuan_kernels::Kernels;

use super::{activations::Activations, compute::Compute};

/// The type that keys and values are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// 2 bytes a value.
    #[default]
    F16,
    /// 4 bytes a value: for comparison with other implementations.
    F32,
}

impl KvType {
    /// Bytes of one value.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
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
}

impl KvCache {
    /// An empty cache.
    pub fn new(heads: usize, head_dim: usize, capacity: usize, kv: KvType) -> Self {
        let store = || match kv {
            KvType::F16 => Store::F16(bytemuck::allocation::zeroed_vec(heads * head_dim * capacity)),
            KvType::F32 => Store::F32(vec![0.0; heads * head_dim * capacity]),
        };
        Self { heads, head_dim, capacity, len: 0, keys: store(), values: store() }
    }

    /// Positions that are filled.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is filled.
    pub fn is_empty(&self) -> bool {
        self.len == 0
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

    /// Causal attention of the last T positions: `softmax(q·k / sqrt(head_dim)) v` for `queries` [T, heads * head_dim],
    /// heads side by side.
    pub fn attend(&self, compute: &Compute, queries: &[f32]) -> Activations {
        let width = self.heads * self.head_dim;
        let first = self.len - queries.len() / width;
        let mut out = vec![0.0; queries.len()];
        let head = |(i, (out, q)): (usize, (&mut [f32], &[f32]))| {
            let (t, h) = (i / self.heads, i % self.heads);
            self.attend_head(compute.kernels, h, first + t + 1, q, out);
        };
        compute.run(|| {
            let items = out.par_chunks_exact_mut(self.head_dim).zip(queries.par_chunks_exact(self.head_dim));
            items.enumerate().for_each(head);
        });
        Activations::new(out, width)
    }

    /// One query of one head against its first `visible` positions.
    fn attend_head(&self, kernels: &Kernels, head: usize, visible: usize, q: &[f32], out: &mut [f32]) {
        let start = head * self.capacity * self.head_dim;
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let position = |i: usize| start + i * self.head_dim;

        let mut p: Vec<f32> = (0..visible).map(|i| scale * self.keys.dot(kernels, position(i), q)).collect();
        let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        p.iter_mut().for_each(|p| *p = (*p - max).exp());
        let sum: f32 = p.iter().sum();
        for (i, p) in p.iter().enumerate() {
            self.values.axpy(kernels, position(i), p / sum, out);
        }
    }
}

impl Store {
    fn write(&mut self, at: usize, data: &[f32]) {
        match self {
            Self::F16(store) => {
                for (s, d) in store[at..].iter_mut().zip(data) {
                    *s = f16::from_f32(*d);
                }
            }
            Self::F32(store) => store[at..][..data.len()].copy_from_slice(data),
        }
    }

    fn dot(&self, kernels: &Kernels, at: usize, x: &[f32]) -> f32 {
        match self {
            Self::F16(store) => (kernels.dot_f16)(&store[at..][..x.len()], x),
            Self::F32(store) => (kernels.dot_f32)(&store[at..][..x.len()], x),
        }
    }

    fn axpy(&self, kernels: &Kernels, at: usize, a: f32, y: &mut [f32]) {
        match self {
            Self::F16(store) => (kernels.axpy_f16)(a, &store[at..][..y.len()], y),
            Self::F32(store) => (kernels.axpy_f32)(a, &store[at..][..y.len()], y),
        }
    }
}
