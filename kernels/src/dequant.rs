//! Weights back to floats, with ggml's order of operations: the results equal ggml's bit for bit.

use bytemuck::{Pod, pod_read_unaligned};
use half::{bf16, f16};

use crate::blocks::{BlockQ3K, BlockQ4_0, BlockQ4K, BlockQ6K, BlockQ8_0, DType};

/// Writes the weights that `bytes` hold as `out.len()` weights of type `dtype`. `bytes` may lie at any address.
///
/// # Panics
/// Where `bytes` is not exactly `dtype.row_bytes(out.len())` long.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        Some(bytes.len()),
        dtype.row_bytes(out.len()),
        "bytes of {} {} weights",
        out.len(),
        dtype.name()
    );
    match dtype {
        DType::F32 => each(bytes, out, |w: f32| [w]),
        DType::F16 => each(bytes, out, |w: f16| [w.to_f32()]),
        DType::Bf16 => each(bytes, out, |w: bf16| [w.to_f32()]),
        DType::Q4_0 => each(bytes, out, |b: BlockQ4_0| b.quants().map(|q| f32::from(q) * b.d.to_f32())),
        DType::Q8_0 => each(bytes, out, |b: BlockQ8_0| b.qs.map(|q| f32::from(q) * b.d.to_f32())),
        DType::Q3_K => each(bytes, out, |b: BlockQ3K| sixteens(b.d, b.quants(), b.unpack_scales())),
        DType::Q4_K => each(bytes, out, q4_k),
        DType::Q6_K => each(bytes, out, |b: BlockQ6K| sixteens(b.d, b.quants(), b.scales)),
    }
}

/// Block by block: `N` weights of one `B`.
fn each<B: Pod, const N: usize>(bytes: &[u8], out: &mut [f32], weights: impl Fn(B) -> [f32; N]) {
    for (block, out) in bytes.chunks_exact(size_of::<B>()).zip(out.as_chunks_mut().0) {
        *out = weights(pod_read_unaligned(block));
    }
}

fn q4_k(block: BlockQ4K) -> [f32; 256] {
    let (d, dmin) = (block.d.to_f32(), block.dmin.to_f32());
    let (scales, mins) = block.unpack_scales();
    let mut w = block.quants().map(f32::from);
    for (s, w) in w.chunks_exact_mut(32).enumerate() {
        let (scale, min) = (d * f32::from(scales[s]), dmin * f32::from(mins[s]));
        for w in w {
            *w = scale * *w - min;
        }
    }
    w
}

/// Weights that have a scale for each sixteen.
fn sixteens(d: f16, quants: [i8; 256], scales: [i8; 16]) -> [f32; 256] {
    let d = d.to_f32();
    let mut w = quants.map(f32::from);
    for (w, scale) in w.chunks_exact_mut(16).zip(scales) {
        for w in w {
            *w *= d * f32::from(scale);
        }
    }
    w
}
