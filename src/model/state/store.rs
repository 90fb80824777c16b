//! How the keys and values of a pass come into the caches of its sequences.

use std::iter;

use bytemuck::cast_slice_mut;
use half::{f16, slice::HalfFloatSliceExt};
use smallvec::{SmallVec, smallvec};
use yuan_kernels::encode::best_encoders;

use super::{super::compute::Compute, kv::KvCache, kv_type::Stored};
use crate::list::List;

/// Values that one thread encodes at least, where several share the work.
const ENCODED_TOGETHER: usize = 1 << 11;

/// Stripes that a thread takes together at most.
const TOGETHER: usize = 8;

/// New rows of one head, and where they are stored.
pub(super) struct Rows<'c> {
    /// Rows of all heads, from this head on.
    pub data: &'c [f32],
    /// Of a row of all heads.
    pub width: usize,
    /// Of this head.
    pub dim: usize,
    pub stored: Stored,
    /// How many numbers are rotated together, where they are (`KvCache::rotation`).
    pub rotation: Option<usize>,
    pub to: &'c mut [u8],
}

/// Adds the next positions to caches, which have pages for them: to each its keys (rotated) and values, [T, heads * head_dim], of `numbers` in all.
pub fn store<'c>(
    compute: &Compute,
    numbers: usize,
    caches: impl Iterator<Item = (&'c mut KvCache, &'c [f32], &'c [f32])> + Send,
) {
    let mut all = caches.flat_map(|(cache, keys, values)| cache.extend_by(keys, values));
    if numbers < 2 * ENCODED_TOGETHER {
        return all.for_each(Rows::store);
    }
    // As many together as one thread encodes sooner than it takes the next, of short rows.
    let together = iter::from_fn(move || {
        let first = all.next()?;
        let more = (ENCODED_TOGETHER / first.numbers()).min(TOGETHER - 1);
        Some(iter::once(first).chain(all.by_ref().take(more)).collect::<List<_>>())
    });
    compute.in_turn(together, |rows| rows.into_iter().for_each(Rows::store));
}

impl Rows<'_> {
    /// How many numbers are stored.
    fn numbers(&self) -> usize {
        self.data.len().div_ceil(self.width) * self.dim
    }

    fn store(self) {
        let Self { data, width, dim, stored, rotation, to } = self;
        let rows = data.chunks(width).map(|row| &row[..dim]).zip(to.chunks_exact_mut(stored.bytes(dim)));
        let Some(rotation) = rotation else {
            return rows.for_each(|(row, to)| encode(stored, row, to));
        };
        let mut rotated: SmallVec<[f32; 256]> = smallvec![0.0; dim];
        rows.for_each(|(row, to)| {
            rotated.copy_from_slice(row);
            (best_encoders().rotate)(&mut rotated, rotation);
            encode(stored, &rotated, to);
        });
    }
}

/// One head's numbers as they are stored.
pub(super) fn encode(stored: Stored, data: &[f32], to: &mut [u8]) {
    match stored {
        Stored::F16 => cast_slice_mut::<u8, f16>(to).convert_from_f32_slice(data),
        Stored::F32 => cast_slice_mut(to).copy_from_slice(data),
        Stored::Q8_0 => (best_encoders().q8_0)(data, to),
        Stored::Q4_0 => (best_encoders().q4_0)(data, to),
    }
}
