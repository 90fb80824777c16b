//! Eight floats as two vectors of four: what `floats.rs` needs of NEON.

use std::arch::{aarch64::*, asm};

use bytemuck::cast;
use half::{bf16, f16};

use crate::{
    blocks::{BlockQ4_0, BlockQ8_0},
    scalar::{EXP_LEAST, EXP_MOST},
};

pub type Eight = [float32x4_t; 2];
/// Eight integers that become floats.
pub type Eights = [int32x4_t; 2];

/// Functions of vectors.
macro_rules! each {
    ($($name:ident($($x:ident: $of:ty),*) -> $out:ty = $body:expr;)*) => {
        $(
            #[target_feature(enable = "neon")]
            #[inline]
            pub fn $name($($x: $of),*) -> $out {
                $body
            }
        )*
    };
}
each! {
    splat(x: f32) -> Eight = [vdupq_n_f32(x); 2];
    add(a: Eight, b: Eight) -> Eight = [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1])];
    sub(a: Eight, b: Eight) -> Eight = [vsubq_f32(a[0], b[0]), vsubq_f32(a[1], b[1])];
    mul(a: Eight, b: Eight) -> Eight = [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])];
    div(a: Eight, b: Eight) -> Eight = [vdivq_f32(a[0], b[0]), vdivq_f32(a[1], b[1])];
    minus(x: Eight) -> Eight = [vnegq_f32(x[0]), vnegq_f32(x[1])];
    round(x: Eight) -> Eight = [vrndnq_f32(x[0]), vrndnq_f32(x[1])];
    of_i32(x: Eights) -> Eight = [vcvtq_f32_s32(x[0]), vcvtq_f32_s32(x[1])];
    to_f32(x: f16) -> f32 = vgetq_lane_f32::<0>(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(x.to_bits()))));
}

#[target_feature(enable = "neon")]
#[inline]
pub fn of_f16(x: [f16; 8]) -> Eight {
    let x = vreinterpretq_f16_u16(cast(x));
    [vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x)]
}

#[target_feature(enable = "neon")]
#[inline]
pub fn of_bf16(x: [bf16; 8]) -> Eight {
    let x = cast(x);
    [vshll_n_u16::<16>(vget_low_u16(x)), vshll_high_n_u16::<16>(x)].map(|x| vreinterpretq_f32_u32(x))
}

/// `x` within the bounds of the exponential. A NaN passes both.
#[target_feature(enable = "neon")]
#[inline]
pub fn within_exp(x: Eight) -> Eight {
    x.map(|x| vminq_f32(vmaxq_f32(x, vdupq_n_f32(EXP_LEAST)), vdupq_n_f32(EXP_MOST)))
}

/// 2 to the power of whole numbers.
#[target_feature(enable = "neon")]
#[inline]
pub fn two_to_the(n: Eight) -> Eight {
    n.map(|n| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)))))
}

/// `value`, and 0 where `x` is below `bound`.
#[target_feature(enable = "neon")]
#[inline]
pub fn zero_below(x: Eight, bound: f32, value: Eight) -> Eight {
    [0, 1].map(|i| cast(vbicq_u32(cast(value[i]), vcltq_f32(x[i], vdupq_n_f32(bound)))))
}

/// The upper half of the lanes onto the lower half, until one is left.
#[target_feature(enable = "neon")]
#[inline]
pub fn sum_32(lanes: [Eight; 4]) -> f32 {
    let [a, b, c, d] = lanes;
    let [low, high] = add(add(a, c), add(b, d));
    let four = vaddq_f32(low, high);
    vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
}

#[target_feature(enable = "neon")]
#[inline]
pub fn quants_q8_0(block: &BlockQ8_0) -> [Eights; 4] {
    let qs: [int8x16_t; 2] = cast(block.qs);
    cast([sixteen(qs[0]), sixteen(qs[1])])
}

#[target_feature(enable = "neon")]
#[inline]
pub fn quants_q4_0(block: &BlockQ4_0) -> [Eights; 4] {
    let bytes = cast(block.qs);
    let nibbles = [vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes)];
    cast(nibbles.map(|q| sixteen(vsubq_s8(vreinterpretq_s8_u8(q), vdupq_n_s8(8)))))
}

/// Sixteen bytes, widened.
#[target_feature(enable = "neon")]
#[inline]
fn sixteen(q: int8x16_t) -> [Eights; 2] {
    [vmovl_s8(vget_low_s8(q)), vmovl_high_s8(q)]
        .map(|half| [vmovl_s16(vget_low_s16(half)), vmovl_high_s16(half)])
}

/// Asks for what lies `ahead` bytes further on.
#[target_feature(enable = "neon")]
#[inline]
pub fn prefetch<V>(value: &V, ahead: usize) {
    let ahead = std::ptr::from_ref(value).addr().wrapping_add(ahead);
    // SAFETY: a prefetch changes no state of the program, whatever its address.
    unsafe { asm!("prfm pldl1keep, [{}]", in(reg) ahead, options(nomem, nostack, preserves_flags)) }
}
