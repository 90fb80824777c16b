//! `neon` with `sdot`: sixteen products of bytes in one instruction.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::sync::LazyLock;

use bytemuck::cast;

use super::*;

/// The table, where this CPU has the instructions.
pub(crate) fn table() -> Option<&'static Kernels> {
    static TABLE: LazyLock<Option<Kernels>> = LazyLock::new(|| {
        let neon = super::table().filter(|_| is_aarch64_feature_detected!("dotprod"))?;
        /// A plain function of one that needs the instructions.
        macro_rules! enter {
            ($function:ident($($argument:ident),*) $(, $unused:tt)?) => {
                // SAFETY: `TABLE` holds these only where this CPU has NEON and `sdot`.
                |$($argument),* $(, $unused)?| unsafe { $function($($argument),*) }
            };
        }
        Some(Kernels {
            name: "neon_dotprod",
            dot_q8_0: enter!(dot_q8_0(w, x)),
            dot_q4_0: enter!(dot_q4_0(w, x)),
            dot_q3_k: enter!(dot_q3_k(w, x)),
            dot_q4_k: enter!(dot_q4_k(w, x)),
            dot_q6_k: enter!(dot_q6_k(w, x)),
            panels_q8_0: enter!(panels_q8_0(panels, x, acc), _),
            panels_q4_0: enter!(panels_q4_0(panels, x, acc), _),
            panels_q3_k: enter!(panels_q3_k(panels, x, acc), _),
            panels_q4_k: enter!(panels_q4_k(panels, x, acc), _),
            panels_q6_k: enter!(panels_q6_k(panels, x, acc), _),
            ..*neon
        })
    });
    TABLE.as_ref()
}

quantized!("neon,dotprod", sdot, dots, dots, half_dots);

/// `sum` and the products of 16 weights with 16 activations.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn sdot(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: reads and writes the registers that it names; the CPU has it, as this function's features say.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inlateout(vreg) sum, in(vreg) w, in(vreg) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// `sum` and the products of 4 rows of 4 weights with word `G` of the activations.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn sdot_word<const G: usize>(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: as above.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{G}]", inlateout(vreg) sum, in(vreg) w, in(vreg) x, G = const G,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// `start` and the integer products of sub-block `s` with the activations `qs`, for each of 4 rows.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn dots(start: int32x4_t, weights: &[[int8x16_t; 4]; 2], qs: &[i8; 256], s: usize) -> int32x4_t {
    half_dots(half_dots(start, weights, qs, s, 0), weights, qs, s, 1)
}

/// [`dots`] for 16 columns: part `part` of the sub-block.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn half_dots(
    start: int32x4_t,
    weights: &[[int8x16_t; 4]; 2],
    qs: &[i8; 256],
    s: usize,
    part: usize,
) -> int32x4_t {
    let xs: &[[[i8; 16]; 2]; 8] = bytemuck::cast_ref(qs);
    let (w, x) = (&weights[part], cast(xs[s][part]));
    let sum = sdot_word::<0>(start, w[0], x);
    let sum = sdot_word::<1>(sum, w[1], x);
    let sum = sdot_word::<2>(sum, w[2], x);
    sdot_word::<3>(sum, w[3], x)
}
