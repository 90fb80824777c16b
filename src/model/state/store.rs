//! How the keys and values of a pass come into the caches of its sequences.

use bytemuck::cast_slice_mut;
use half::{f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;
use yuan_kernels::encode::best_encoders;

use super::{super::compute::Compute, kv::KvCache, kv_type::Stored};

/// Values that one thread encodes at least, where several share the work.
const ENCODED_TOGETHER: usize = 1 << 15;

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

/// Adds the next positions to caches, which have pages for them: to each its keys (rotated) and values, [T, heads * head_dim].
pub fn store<'c>(
    compute: &Compute,
    caches: impl IntoIterator<Item = (&'c mut KvCache, &'c [f32], &'c [f32])>,
) {
    let (mut all, mut numbers) = (Vec::new(), 0);
    for (cache, keys, values) in caches {
        numbers += keys.len() + values.len();
        cache.extend_by(keys, values, &mut all);
    }
    let least = (ENCODED_TOGETHER * all.len()).div_ceil(numbers.max(1));
    compute.each(all.into_par_iter().with_min_len(least), Rows::store);
}

impl Rows<'_> {
    fn store(self) {
        let Self { data, width, dim, stored, rotation, to } = self;
        let rows = data.chunks(width).map(|row| &row[..dim]).zip(to.chunks_exact_mut(stored.bytes(dim)));
        let Some(rotation) = rotation else {
            return rows.for_each(|(row, to)| encode(stored, row, to));
        };
        let mut rotated = vec![0.0; dim];
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
