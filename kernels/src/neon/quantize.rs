//! Blocks of activations in 8 bits, whose rows `floats.rs` walks.

use std::arch::aarch64::*;

use bytemuck::cast;

use crate::blocks::{BlockQ8, BlockQ8x8, QK};
use crate::scalar::scale_of;

#[target_feature(enable = "neon")]
pub(super) fn quantize_block(x: &[f32; QK], out: &mut BlockQ8) {
    let x: &[[[[f32; 4]; 4]; 2]; 8] = bytemuck::cast_ref(x);
    let (d, inverse) = scale_of(largest(x.as_flattened().as_flattened()));
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
pub(super) fn quantize_eight(x: &[f32; QK], out: &mut BlockQ8x8) {
    let x: &[[[[f32; 4]; 4]; 2]; 8] = bytemuck::cast_ref(x);
    *out = bytemuck::Zeroable::zeroed();
    let qs: &mut [[[i8; 16]; 2]; 8] = bytemuck::cast_mut(&mut out.qs);
    for s in 0..8 {
        let (d, inverse) = scale_of(largest(x[s].as_flattened()));
        out.d[s] = d;
        if inverse != 0.0 {
            let sum;
            (qs[s], sum) = round(&x[s], inverse);
            out.starts[s] = -128 * i32::from(sum);
        }
    }
}

/// The bits of the largest absolute value.
#[target_feature(enable = "neon")]
#[inline]
fn largest(x: &[[f32; 4]]) -> u32 {
    let mut amax = vdupq_n_u32(0);
    for &x in x {
        amax = vmaxq_u32(amax, vreinterpretq_u32_f32(vabsq_f32(cast(x))));
    }
    vmaxvq_u32(amax)
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
