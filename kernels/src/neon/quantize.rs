//! Activations to blocks of 8 bits.

use std::arch::aarch64::*;

use bytemuck::cast;

use crate::blocks::{BlockQ8, BlockQ8x8, QK};
use crate::scalar::scale_of;

#[target_feature(enable = "neon")]
pub(super) fn quantize(x: &[f32], out: &mut [BlockQ8]) {
    assert_eq!(x.len().div_ceil(QK), out.len(), "blocks of activations");
    each_block(x, out, |x, out| quantize_block(x, out));
}

#[target_feature(enable = "neon")]
pub(super) fn quantize_x8(x: &[f32], out: &mut [BlockQ8x8]) {
    assert_eq!(x.len().div_ceil(QK), out.len(), "blocks of activations");
    each_block(x, out, |x, out| quantize_eight(x, out));
}

/// A row of activations by blocks, of which the last one is filled up with zeros.
#[target_feature(enable = "neon")]
#[inline]
fn each_block<B>(x: &[f32], out: &mut [B], block: impl Fn(&[f32; QK], &mut B)) {
    let (whole, tail) = x.as_chunks::<QK>();
    for (x, out) in whole.iter().zip(&mut *out) {
        block(x, out);
    }
    if let (false, Some(out)) = (tail.is_empty(), out.last_mut()) {
        let mut filled = [0.0; QK];
        filled[..tail.len()].copy_from_slice(tail);
        block(&filled, out);
    }
}

#[target_feature(enable = "neon")]
fn quantize_block(x: &[f32; QK], out: &mut BlockQ8) {
    let x: &[[[[f32; 4]; 4]; 2]; 8] = bytemuck::cast_ref(x);
    let mut amax = vdupq_n_u32(0);
    for &x in x.as_flattened().as_flattened() {
        amax = vmaxq_u32(amax, vreinterpretq_u32_f32(vabsq_f32(cast(x))));
    }
    let (d, inverse) = scale_of(vmaxvq_u32(amax));
    *out = BlockQ8 { d, ..bytemuck::Zeroable::zeroed() };
    if inverse == 0.0 {
        return;
    }
    let qs: &mut [[[i8; 16]; 2]; 8] = bytemuck::cast_mut(&mut out.qs);
    for s in 0..8 {
        (qs[s], out.sums[s]) = round(&x[s], inverse);
    }
}

#[target_feature(enable = "neon")]
fn quantize_eight(x: &[f32; QK], out: &mut BlockQ8x8) {
    let x: &[[[[f32; 4]; 4]; 2]; 8] = bytemuck::cast_ref(x);
    *out = bytemuck::Zeroable::zeroed();
    let qs: &mut [[[i8; 16]; 2]; 8] = bytemuck::cast_mut(&mut out.qs);
    for s in 0..8 {
        let mut amax = vdupq_n_u32(0);
        for &x in x[s].as_flattened() {
            amax = vmaxq_u32(amax, vreinterpretq_u32_f32(vabsq_f32(cast(x))));
        }
        let (d, inverse) = scale_of(vmaxvq_u32(amax));
        out.d[s] = d;
        if inverse != 0.0 {
            let sum;
            (qs[s], sum) = round(&x[s], inverse);
            out.starts[s] = -128 * i32::from(sum);
        }
    }
}

/// 32 activations times the inverse of their scale, rounded, and the sum of those.
#[target_feature(enable = "neon")]
#[inline]
fn round(x: &[[[f32; 4]; 4]; 2], inverse: f32) -> ([[i8; 16]; 2], i16) {
    let mut qs = [[0; 16]; 2];
    let mut sum = vdupq_n_s16(0);
    for i in 0..2 {
        let [a, b, c, d] = x[i].map(|x| vcvtnq_s32_f32(vmulq_n_f32(cast(x), inverse)));
        let low = vmovn_high_s32(vmovn_s32(a), b);
        let high = vmovn_high_s32(vmovn_s32(c), d);
        sum = vaddq_s16(sum, vaddq_s16(low, high));
        qs[i] = cast(vmovn_high_s16(vmovn_s16(low), high));
    }
    (qs, vaddvq_s16(sum))
}
