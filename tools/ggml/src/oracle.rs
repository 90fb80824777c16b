//! ggml's plain functions on rows of blocks.

use std::ptr;

use ggml_sys::*;
use yuan_kernels::DType;

use crate::init::{init, type_of};

/// The weights that `bytes` hold, as ggml reads them.
///
/// # Panics
/// Where `bytes` is not exactly `out.len()` weights, or for `F32`, for which ggml has no function.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(dtype.row_bytes(out.len()), Some(bytes.len()), "bytes of the weights");
    let bytes = aligned(bytes);
    init();
    // SAFETY: ggml returns a pointer into a constant table of all types, and `DType` has only its types.
    let to_float = unsafe { &*ggml_get_type_traits(type_of(dtype)) }.to_float.expect("ggml reads this type");
    // SAFETY: `bytes` are the whole blocks of `out.len()` weights (asserted above), aligned for any of ggml's blocks.
    unsafe { to_float(bytes.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64) }
}

/// ggml's blocks of rows of `columns` weights.
///
/// # Panics
/// Where the weights are no whole rows of whole blocks.
pub fn quantize(dtype: DType, weights: &[f32], columns: usize) -> Vec<u8> {
    assert!(weights.len().is_multiple_of(columns), "whole rows");
    let rows = weights.len() / columns;
    let mut out = vec![0u8; rows * dtype.row_bytes(columns).expect("whole blocks")];
    init();
    // SAFETY: `weights` has `rows * columns` floats and `out` the bytes of so many rows; the formats of `DType`
    // do without an importance matrix, which may then be null.
    let written = unsafe {
        let (from, to) = (weights.as_ptr(), out.as_mut_ptr().cast());
        ggml_quantize_chunk(type_of(dtype), from, to, 0, rows as i64, columns as i64, ptr::null())
    };
    assert_eq!(written, out.len(), "bytes that ggml wrote");
    out
}

/// The product of a row of weights with activations, which ggml first quantizes for it.
///
/// # Panics
/// Where `weights` is not exactly `x.len()` weights.
pub fn vec_dot(dtype: DType, weights: &[u8], x: &[f32]) -> f32 {
    assert_eq!(dtype.row_bytes(x.len()), Some(weights.len()), "bytes of the weights");
    let weights = aligned(weights);
    init();
    // SAFETY: ggml returns a pointer into a constant table of all types, and `DType` has only its types.
    let traits = unsafe { &*ggml_get_type_traits_cpu(type_of(dtype)) };
    // SAFETY: as above; the type of the activations is one of ggml's own.
    let of_x = unsafe { &*ggml_get_type_traits_cpu(traits.vec_dot_type) };
    let dot = traits.vec_dot.expect("ggml multiplies this type");
    let n = x.len() as i64;
    // SAFETY: a plain function of a type and a number of columns.
    let bytes = unsafe { ggml_row_size(traits.vec_dot_type, n) };
    let mut quantized = vec![0u128; bytes.div_ceil(16)];
    match of_x.from_float {
        // SAFETY: `quantized` holds at least the bytes that a row of `n` takes, and `x` has `n` floats.
        Some(from_float) => unsafe { from_float(x.as_ptr(), quantized.as_mut_ptr().cast(), n) },
        None => bytemuck::cast_slice_mut(&mut quantized)[..x.len()].copy_from_slice(x),
    }
    let mut sum = 0.0;
    // SAFETY: both rows have `n` columns of the types that `dot` is for, and one row (the last argument) is asked for, so
    // that the strides are not used.
    unsafe { dot(n as i32, &raw mut sum, 0, weights.as_ptr().cast(), 0, quantized.as_ptr().cast(), 0, 1) };
    sum
}

/// A copy at an address that suits any block.
fn aligned(bytes: &[u8]) -> Vec<u128> {
    let mut words = vec![0u128; bytes.len().div_ceil(16)];
    bytemuck::cast_slice_mut::<_, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
    words
}
