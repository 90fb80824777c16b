//! Block formats and multiply kernels: slices in, slices out.
//!
//! A leaf: no files, threads or names of the model, and the kernels allocate nothing. `scalar` defines every
//! operation; the modules named for instruction sets have the same functions in the same order. [`Kernels`] is the
//! table of functions, chosen once at run time: [`best`] for this machine, [`by_name`] for the user's choice.

/// Passes the rows of activations through the panels, as many together as there is a function for.
macro_rules! in_blocks {
    ($panels:ident, $x:ident, $acc:ident, $($rows:literal => $block:path),*) => {
        let width = $panels.len();
        assert_eq!($x.len(), width * $acc.len(), "blocks of activations");
        let (x, acc) = ($x, $acc);
        $(
            let (blocks, acc) = acc.as_chunks_mut::<$rows>();
            let (here, x) = x.split_at(blocks.len() * $rows * width);
            for (i, acc) in blocks.iter_mut().enumerate() {
                // A loop, where `from_fn` would be a call: it is compiled without the caller's instructions.
                let mut rows = [&here[..0]; $rows];
                for t in 0..$rows {
                    rows[t] = &here[(i * $rows + t) * width..][..width];
                }
                $block($panels, rows, acc);
            }
        )*
        debug_assert!(x.is_empty() && acc.is_empty());
    };
}

/// [`Kernels::ahead`] of x86-64 where nobody has measured: one panel of 4 bits.
#[cfg(target_arch = "x86_64")]
const DEFAULT_AHEAD: usize = panel::PANEL_BYTES;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[macro_use]
mod floats;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod blocks;
pub mod columns;
mod dequant;
pub mod encode;
mod hadamard;
mod lacking;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod panel;
mod scalar;
pub mod tile;

use std::sync::LazyLock;

use half::{bf16, f16};

pub use blocks::{BlockQ3K, BlockQ4_0, BlockQ4K, BlockQ6K, BlockQ8, BlockQ8_0, BlockQ8x8, DType};
pub use columns::Columns;
pub use dequant::dequantize;
pub use lacking::lacking;
pub use panel::{PanelQ3K, PanelQ4_0, PanelQ4K, PanelQ6K, PanelQ8_0};
pub use scalar::exp;

/// Version of the integer arithmetic, which counts the changes after which products have other bits. 1: all activations in [`BlockQ8`]; 2: those that
/// meet `q8_0` in [`BlockQ8x8`].
pub const ARITHMETIC: u32 = 2;

/// One function for every operation, all of one instruction set.
///
/// `dot_*` multiply one row of weights with one row of activations. `panels_*` multiply a panel row (16 rows x
/// `256 * panels.len()` columns) with `acc.len()` rows of activations (`panels.len()` blocks each) and *add* each panel's
/// contribution to `acc`, panel after panel. `ahead` is [`Kernels::ahead`], or another distance. All floats round in the same places on every instruction set and for any
/// number of rows: results are equal bit for bit (but for the payload of a NaN), and a panel row's product equals
/// sixteen products of rows.
///
/// Slices of weights and activations must cover the same columns; the functions panic where they do not.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Kernels {
    /// `scalar`, `avx2`, …
    pub name: &'static str,
    /// How far ahead panels are asked for (`ahead` of the functions), in bytes; 0: not at all. On 512-bit vectors it counts for a single row of
    /// activations only. Which distance is fastest differs from one CPU to the next, and no bit of a result depends on it.
    pub ahead: usize,
    /// Activations to blocks of 256; the last one is filled up with zeros. `out.len() == x.len().div_ceil(256)`.
    /// A block with a NaN or an infinity in it becomes zeros with the scale NaN, so that its products are NaN.
    pub quantize: fn(x: &[f32], out: &mut [BlockQ8]),
    /// The same with a scale for each 32 activations, for products with `q8_0`. Each 32 with a NaN or an infinity among them become zeros with the scale NaN.
    pub quantize_x8: fn(x: &[f32], out: &mut [BlockQ8x8]),
    pub dot_f32: fn(w: &[f32], x: &[f32]) -> f32,
    pub dot_f16: fn(w: &[f16], x: &[f32]) -> f32,
    pub dot_bf16: fn(w: &[bf16], x: &[f32]) -> f32,
    pub dot_q8_0: fn(w: &[BlockQ8_0], x: &[BlockQ8x8]) -> f32,
    pub dot_q4_0: fn(w: &[BlockQ4_0], x: &[BlockQ8]) -> f32,
    pub dot_q3_k: fn(w: &[BlockQ3K], x: &[BlockQ8]) -> f32,
    pub dot_q4_k: fn(w: &[BlockQ4K], x: &[BlockQ8]) -> f32,
    pub dot_q6_k: fn(w: &[BlockQ6K], x: &[BlockQ8]) -> f32,
    pub panels_q8_0: PanelProduct<PanelQ8_0>,
    pub panels_q4_0: PanelProduct<PanelQ4_0>,
    pub panels_q3_k: PanelProduct<PanelQ3K>,
    pub panels_q4_k: PanelProduct<PanelQ4K>,
    pub panels_q6_k: PanelProduct<PanelQ6K>,
    /// `gate = silu(gate) * up`.
    pub swiglu: fn(gate: &mut [f32], up: &[f32]),
    /// `x = e^x`, each held within -87 and 88.
    pub exps: fn(x: &mut [f32]),
    /// `x = e^(x - max)`, returns the sum.
    pub exp_sum: fn(x: &mut [f32], max: f32) -> f32,
    /// `scores[t][i] = q[t] · keys[i]` for queries [T, dim] and keys [n, dim].
    pub scores_f32: fn(q: &[f32], dim: usize, keys: &[f32], scores: &mut [f32]),
    pub scores_f16: fn(q: &[f32], dim: usize, keys: &[f16], scores: &mut [f32]),
    /// `y[t] += sum over i of p[t][i] * values[i]` for values [n, dim], added in the order of the positions i.
    pub mix_f32: fn(p: &[f32], dim: usize, values: &[f32], y: &mut [f32]),
    pub mix_f16: fn(p: &[f32], dim: usize, values: &[f16], y: &mut [f32]),
    pub mix_q8_0: fn(p: &[f32], dim: usize, values: &[BlockQ8_0], y: &mut [f32]),
    pub mix_q4_0: fn(p: &[f32], dim: usize, values: &[BlockQ4_0], y: &mut [f32]),
}

/// The product of a row of panels, `(panels, x, acc, ahead)`: [`Kernels`] says what it adds to `acc`.
pub type PanelProduct<P> = fn(&[P], &[<P as panel::Panel>::X], &mut [[f32; 16]], usize);

/// The tables that this CPU runs, fastest first; `scalar` is always the last.
pub fn available() -> impl Iterator<Item = &'static Kernels> {
    let tables = [
        #[cfg(target_arch = "x86_64")]
        avx512::table(),
        #[cfg(target_arch = "x86_64")]
        avx2::vnni::vex::table(),
        #[cfg(target_arch = "x86_64")]
        avx2::vnni::evex::table(),
        #[cfg(target_arch = "x86_64")]
        avx2::table(),
        #[cfg(target_arch = "aarch64")]
        neon::i8mm::table(),
        #[cfg(target_arch = "aarch64")]
        neon::dotprod::table(),
        #[cfg(target_arch = "aarch64")]
        neon::table(),
        Some(&scalar::TABLE),
    ];
    tables.into_iter().flatten()
}

/// The fastest table that this CPU runs.
pub fn best() -> &'static Kernels {
    static BEST: LazyLock<&Kernels> = LazyLock::new(|| available().next().unwrap_or(&scalar::TABLE));
    *BEST
}

/// The table of this name, or `None` where there is none or this CPU cannot run it.
pub fn by_name(name: &str) -> Option<&'static Kernels> {
    available().find(|kernels| kernels.name == name)
}
