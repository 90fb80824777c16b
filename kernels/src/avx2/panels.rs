//! Panels on 256-bit vectors; `avx2.rs` has the register plan. What is here is the same for all instructions that
//! multiply bytes: `maddubs.rs` and `vnni.rs` have those.

use std::arch::x86_64::*;

use bytemuck::{Pod, cast};

use crate::blocks::BlockQ8;
use crate::panel::{PanelQ3K, PanelQ4K, SixBits, ThreeBits};

/// The function of one kind of panel, by blocks of `$rows` rows of activations, which ask for weights ahead with `$hint`. A single row does so where it is
/// told to, into the first cache; what is left of several rows finds the weights there.
macro_rules! product {
    ($features:literal, $visibility:vis $name:ident($panel:ty, $x:ty) by $block:ident, [$($rows:literal),*], $hint:ident) => {
        #[target_feature(enable = $features)]
        $visibility fn $name(panels: &[$panel], x: &[$x], acc: &mut [[f32; 16]], ahead: usize) {
            let walk = Walk { panels, ahead };
            if acc.len() == 1 && ahead > 0 {
                in_blocks!(walk, x, acc, 1 => $block::<1, _MM_HINT_T0>);
            } else {
                in_blocks!(walk, x, acc, $($rows => $block::<$rows, $hint>,)* 1 => $block::<1, { $crate::avx2::panels::NO_HINT }>);
            }
        }
    };
}
pub(crate) use product;

/// The panels' functions, of integer products that the module has where this stands: `byte_dots` (`Q8_0`), `nibble_dots`
/// (`Q4_0`), `nibble_pairs` and `add_pairs` (`Q4_K`), `begin_threes` and `add_threes` (`Q3_K`), `begin_sixes` and `add_sixes` (`Q6_K`).
macro_rules! panels {
    ($features:literal) => {
        $crate::avx2::panels::product!($features, pub(in crate::avx2) panels_q8_0(PanelQ8_0, BlockQ8x8) by block_q8_0, [4, 2], _MM_HINT_T0);
        $crate::avx2::panels::product!($features, pub(in crate::avx2) panels_q4_0(PanelQ4_0, BlockQ8) by block_q4_0, [4, 2], _MM_HINT_T0);
        $crate::avx2::panels::product!($features, pub(in crate::avx2) panels_q3_k(PanelQ3K, BlockQ8) by block_q3_k, [4, 2], _MM_HINT_T0);
        $crate::avx2::panels::product!($features, pub(in crate::avx2) panels_q4_k(PanelQ4K, BlockQ8) by block_q4_k, [4, 2], _MM_HINT_T0);
        $crate::avx2::panels::product!($features, pub(in crate::avx2) panels_q6_k(PanelQ6K, BlockQ8) by block_q6_k, [4, 2], _MM_HINT_T0);

        #[target_feature(enable = $features)]
        #[inline]
        fn block_q8_0<const T: usize, const HINT: i32>(
            walk: Walk<'_, PanelQ8_0>,
            x: [&[BlockQ8x8]; T],
            acc: &mut [[f32; 16]; T],
        ) {
            let (acc, ahead): (&mut [[[f32; 8]; 2]; T], _) = (bytemuck::cast_mut(acc), walk.ahead);
            for (i, panel) in walk.panels.iter().enumerate() {
                let d: &[[[f16; 8]; 2]; 8] = bytemuck::cast_ref(&panel.d);
                let lines: &[[[[i8; 32]; 2]; 8]; 8] = bytemuck::cast_ref(&panel.qs);
                let mut part = [[_mm256_setzero_ps(); 2]; T];
                prefetch_header::<HINT, _>(panel, ahead);
                for s in 0..8 {
                    prefetch::<HINT, _>(&lines[s], ahead);
                    for h in 0..2 {
                        let dots = byte_dots(&lines[s], h, &x, i, s);
                        let d = _mm256_cvtph_ps(cast(d[s][h]));
                        for t in 0..T {
                            let dot = _mm256_mul_ps(d, _mm256_cvtepi32_ps(dots[t]));
                            part[t][h] = _mm256_add_ps(part[t][h], _mm256_mul_ps(dot, _mm256_set1_ps(x[t][i].d[s])));
                        }
                    }
                }
                // In memory between panels: registers are for what a panel adds.
                for t in 0..T {
                    for h in 0..2 {
                        acc[t][h] = cast(_mm256_add_ps(cast(acc[t][h]), part[t][h]));
                    }
                }
            }
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn block_q4_0<const T: usize, const HINT: i32>(
            walk: Walk<'_, PanelQ4_0>,
            x: [&[BlockQ8]; T],
            acc: &mut [[f32; 16]; T],
        ) {
            let (mut sums, ahead) = (load(acc), walk.ahead);
            for (i, panel) in walk.panels.iter().enumerate() {
                let d: &[[[f16; 8]; 2]; 8] = bytemuck::cast_ref(&panel.d);
                let mut part = [[_mm256_setzero_ps(); 2]; T];
                prefetch_header::<HINT, _>(panel, ahead);
                for (s, d) in d.iter().enumerate() {
                    let nibbles = sub_block(&panel.qs, s);
                    prefetch::<HINT, _>(nibbles, ahead);
                    let dots = nibble_dots(nibbles, &x, i, s);
                    for h in 0..2 {
                        let d = _mm256_cvtph_ps(cast(d[h]));
                        for t in 0..T {
                            let dots = _mm256_cvtepi32_ps(dots[t][h]);
                            part[t][h] = _mm256_add_ps(part[t][h], _mm256_mul_ps(d, dots));
                        }
                    }
                }
                for t in 0..T {
                    for h in 0..2 {
                        let part = _mm256_mul_ps(part[t][h], _mm256_set1_ps(x[t][i].d));
                        sums[t][h] = _mm256_add_ps(sums[t][h], part);
                    }
                }
            }
            store(sums, acc);
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn block_q4_k<const T: usize, const HINT: i32>(
            walk: Walk<'_, PanelQ4K>,
            x: [&[BlockQ8]; T],
            acc: &mut [[f32; 16]; T],
        ) {
            let (mut sums, ahead) = (load(acc), walk.ahead);
            for (i, panel) in walk.panels.iter().enumerate() {
                prefetch_header::<HINT, _>(panel, ahead);
                let (scales, mins) = unpack_scales(panel);
                let mut sum = [[_mm256_setzero_si256(); 2]; T];
                for (s, scale) in scales.into_iter().enumerate() {
                    let nibbles = sub_block(&panel.qs, s);
                    prefetch::<HINT, _>(nibbles, ahead);
                    let scale = _mm256_broadcastsi128_si256(cast(scale));
                    let pairs = nibble_pairs(nibbles, &x, i, s);
                    for h in 0..2 {
                        let scale = _mm256_shuffle_epi8(scale, cast(ROWS_TWICE[h]));
                        for t in 0..T {
                            sum[t][h] = add_pairs(sum[t][h], pairs[t][h], scale);
                        }
                    }
                }
                let mut min_sum = [[_mm256_setzero_si256(); 2]; T];
                for s in 0..4 {
                    let (min, min_4) = (cast(mins[s]), cast(mins[s + 4]));
                    let pairs = [_mm_unpacklo_epi8(min, min_4), _mm_unpackhi_epi8(min, min_4)];
                    for h in 0..2 {
                        let pairs = _mm256_cvtepu8_epi16(pairs[h]);
                        for t in 0..T {
                            let two = _mm256_set1_epi32(cast([x[t][i].sums[s], x[t][i].sums[s + 4]]));
                            min_sum[t][h] = add_pairs(min_sum[t][h], pairs, two);
                        }
                    }
                }
                let (d, dmin): ([__m128i; 2], [__m128i; 2]) = (cast(panel.d), cast(panel.dmin));
                for h in 0..2 {
                    let (d, dmin) = (_mm256_cvtph_ps(d[h]), _mm256_cvtph_ps(dmin[h]));
                    for t in 0..T {
                        let dot = _mm256_mul_ps(d, _mm256_cvtepi32_ps(sum[t][h]));
                        let min_dot = _mm256_mul_ps(dmin, _mm256_cvtepi32_ps(min_sum[t][h]));
                        let part = _mm256_mul_ps(_mm256_sub_ps(dot, min_dot), _mm256_set1_ps(x[t][i].d));
                        sums[t][h] = _mm256_add_ps(sums[t][h], part);
                    }
                }
            }
            store(sums, acc);
        }

        $crate::avx2::panels::sixteens!($features, block_q3_k(PanelQ3K), begin_threes, add_threes, three_bits, panel => &unpack_scales_q3_k(panel));
        $crate::avx2::panels::sixteens!($features, block_q6_k(PanelQ6K), begin_sixes, add_sixes, six_bits, panel => &panel.scales);
    };
}
pub(super) use panels;

/// The block function of panels that have a scale for each 16 columns and row: `$bits` makes unsigned bytes of theirs, `$scales` the scales
/// `[[i8; 16]; 16]`; the integer products `$begin` for a block of activations and `$add` up.
macro_rules! sixteens {
    ($features:literal, $block:ident($panel:ty), $begin:ident, $add:ident, $bits:ident, $here:ident => $scales:expr) => {
        #[target_feature(enable = $features)]
        #[inline]
        fn $block<const T: usize, const HINT: i32>(
            walk: Walk<'_, $panel>,
            x: [&[BlockQ8]; T],
            acc: &mut [[f32; 16]; T],
        ) {
            let (mut sums, ahead) = (load(acc), walk.ahead);
            for (i, $here) in walk.panels.iter().enumerate() {
                let scales: &[[i8; 16]; 16] = $scales;
                let scales: &[[[[i8; 8]; 2]; 2]; 8] = bytemuck::cast_ref(scales);
                prefetch_header::<HINT, _>($here, ahead);
                let mut starts = [$begin(&x[0][i]); T];
                for t in 1..T {
                    starts[t] = $begin(&x[t][i]);
                }
                let mut sum = [[_mm256_setzero_si256(); 2]; T];
                for s in 0..8 {
                    prefetch::<HINT, _>(&$here.sub_blocks[s], ahead);
                    for h in 0..2 {
                        let q = $bits(&$here.sub_blocks[s], h);
                        for part in 0..2 {
                            let scale = _mm256_cvtepi8_epi32(_mm_cvtsi64_si128(cast(scales[s][part][h])));
                            for t in 0..T {
                                let x = Sixteen { x: &x[t][i], s, part, starts: &starts[t] };
                                sum[t][h] = $add(sum[t][h], &q[part], x, scale);
                            }
                        }
                    }
                }
                let d: [__m128i; 2] = cast($here.d);
                for h in 0..2 {
                    let d = _mm256_cvtph_ps(d[h]);
                    for t in 0..T {
                        let part = _mm256_mul_ps(d, _mm256_cvtepi32_ps(sum[t][h]));
                        let part = _mm256_mul_ps(part, _mm256_set1_ps(x[t][i].d));
                        sums[t][h] = _mm256_add_ps(sums[t][h], part);
                    }
                }
            }
            store(sums, acc);
        }
    };
}
pub(super) use sixteens;

/// A row of panels, and how many bytes ahead of them weights are asked for.
#[derive(Clone, Copy)]
pub(crate) struct Walk<'p, P> {
    pub panels: &'p [P],
    pub ahead: usize,
}

impl<P> Walk<'_, P> {
    /// Panels of the row.
    pub fn len(&self) -> usize {
        self.panels.len()
    }
}

/// The hint by which nothing is asked for.
pub(crate) const NO_HINT: i32 = -1;

/// Asks for what lies `ahead` bytes behind each line of these weights, by `HINT`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(crate) fn prefetch<const HINT: i32, W: Pod>(weights: &W, ahead: usize) {
    ask::<HINT>(bytemuck::bytes_of(weights), ahead);
}

/// [`prefetch`] for the 256 bytes that a panel begins with.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(crate) fn prefetch_header<const HINT: i32, P: Pod>(panel: &P, ahead: usize) {
    ask::<HINT>(&bytemuck::bytes_of(panel)[..256], ahead);
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn ask<const HINT: i32>(weights: &[u8], ahead: usize) {
    for line in weights.as_chunks::<64>().0 {
        let line = line.as_ptr().wrapping_add(ahead).cast();
        match HINT {
            _MM_HINT_T0 => _mm_prefetch::<_MM_HINT_T0>(line),
            _MM_HINT_T1 => _mm_prefetch::<_MM_HINT_T1>(line),
            _ => {}
        }
    }
}

// Loops, where `map` would be a call: it is compiled without these instructions.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn load<const T: usize>(acc: &[[f32; 16]; T]) -> [[__m256; 2]; T] {
    let mut sums = [[_mm256_setzero_ps(); 2]; T];
    for t in 0..T {
        sums[t] = cast(acc[t]);
    }
    sums
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn store<const T: usize>(sums: [[__m256; 2]; T], acc: &mut [[f32; 16]; T]) {
    for t in 0..T {
        acc[t] = cast(sums[t]);
    }
}

/// The nibbles of half `h` (8 rows) of a sub-block, as bytes: of line `g` the low ones, then the high ones.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn nibbles(nibbles: &[u8; 256], h: usize) -> [[__m256i; 2]; 4] {
    let lines: &[[[u8; 32]; 2]; 4] = bytemuck::cast_ref(nibbles);
    let low = _mm256_set1_epi8(15);
    let mut out = [[_mm256_setzero_si256(); 2]; 4];
    for g in 0..4 {
        let bytes = cast(lines[g][h]);
        out[g] = [_mm256_and_si256(bytes, low), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low)];
    }
    out
}

/// The 6-bit numbers of half `h` (8 rows) of a sub-block, as bytes: of its first 16 columns, then of the others.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn six_bits(bits: &SixBits, h: usize) -> [[__m256i; 4]; 2] {
    let lines: &[[[u8; 32]; 2]; 2] = bytemuck::cast_ref(&bits.high);
    let nibbles = nibbles(&bits.low, h);
    let mut out = [[_mm256_setzero_si256(); 4]; 2];
    for j in 0..2 {
        let bits: __m256i = cast(lines[j][h]);
        let (first, second) = (_mm256_slli_epi16::<4>(bits), _mm256_slli_epi16::<2>(bits));
        let upper = [[first, second], [bits, _mm256_srli_epi16::<2>(bits)]];
        for i in 0..2 {
            for part in 0..2 {
                let upper = _mm256_and_si256(upper[i][part], _mm256_set1_epi8(0x30));
                out[part][2 * j + i] = _mm256_or_si256(nibbles[2 * j + i][part], upper);
            }
        }
    }
    out
}

/// The 3-bit numbers of half `h` (8 rows) of a sub-block, as bytes: of its first 16 columns, then of the others.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn three_bits(bits: &ThreeBits, h: usize) -> [[__m256i; 4]; 2] {
    let (low, high): (&[[[u8; 32]; 2]; 2], &[[u8; 32]; 2]) =
        (bytemuck::cast_ref(&bits.low), bytemuck::cast_ref(&bits.high));
    let thirds: __m256i = cast(high[h]);
    // The third bits of lines 0..4 and 4..8, each to the third place of its byte.
    let thirds = [
        [
            _mm256_slli_epi16::<2>(thirds),
            _mm256_slli_epi16::<1>(thirds),
            thirds,
            _mm256_srli_epi16::<1>(thirds),
        ],
        [
            _mm256_srli_epi16::<2>(thirds),
            _mm256_srli_epi16::<3>(thirds),
            _mm256_srli_epi16::<4>(thirds),
            _mm256_srli_epi16::<5>(thirds),
        ],
    ];
    let mut out = [[_mm256_setzero_si256(); 4]; 2];
    for part in 0..2 {
        let bits: __m256i = cast(low[part][h]);
        let pairs =
            [bits, _mm256_srli_epi16::<2>(bits), _mm256_srli_epi16::<4>(bits), _mm256_srli_epi16::<6>(bits)];
        for g in 0..4 {
            let pair = _mm256_and_si256(pairs[g], _mm256_set1_epi8(3));
            out[part][g] = _mm256_or_si256(pair, _mm256_and_si256(thirds[part][g], _mm256_set1_epi8(4)));
        }
    }
    out
}

/// The scales of a panel of `Q3_K`: of sixteen `s` and row `r` at `[s][r]`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(crate) fn unpack_scales_q3_k(panel: &PanelQ3K) -> [[i8; 16]; 16] {
    let bytes: [__m256i; 6] = cast(panel.scales);
    let mut out = [_mm256_setzero_si256(); 8];
    for i in 0..2 {
        let upper = bytes[4 + i];
        let uppers = [
            _mm256_slli_epi16::<4>(upper),
            _mm256_slli_epi16::<2>(upper),
            upper,
            _mm256_srli_epi16::<2>(upper),
        ];
        for j in 0..4 {
            // Two sixteens: 4 j + 2 i and the next.
            let lower = bytes[2 * (j % 2) + i];
            let lower = if j < 2 { lower } else { _mm256_srli_epi16::<4>(lower) };
            let number = _mm256_or_si256(
                _mm256_and_si256(lower, _mm256_set1_epi8(15)),
                _mm256_and_si256(uppers[j], _mm256_set1_epi8(0x30)),
            );
            out[2 * j + i] = _mm256_sub_epi8(number, _mm256_set1_epi8(32));
        }
    }
    cast(out)
}

/// Sixteen activations.
pub(super) struct Sixteen<'x> {
    /// Their block.
    pub x: &'x BlockQ8,
    /// Their sub-block, and their half of it.
    pub s: usize,
    pub part: usize,
    /// Where the sums of the block's sixteens begin.
    pub starts: &'x Starts,
}

impl Sixteen<'_> {
    /// Four activations.
    #[inline]
    pub fn word(&self, g: usize) -> i32 {
        let words: &[[[i32; 4]; 2]; 8] = bytemuck::cast_ref(&self.x.qs);
        words[self.s][self.part][g]
    }
}

/// Where the sums of sixteen activations begin, of part `p` of sub-block `s`: at `[s / 4][p][s % 4]`.
pub(crate) type Starts = [[[i32; 4]; 2]; 2];

/// The [`Starts`] of products with weights that are `OFFSET` too large: -`OFFSET` times the sums of the activations.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(crate) fn starts<const OFFSET: i16>(x: &BlockQ8) -> Starts {
    let xs: &[[i8; 32]; 8] = bytemuck::cast_ref(&x.qs);
    let (ones, minus) = (_mm256_set1_epi8(1), _mm256_set1_epi16(-OFFSET));
    let fours = |s: usize| _mm256_madd_epi16(_mm256_maddubs_epi16(ones, cast(xs[s])), minus);
    let sixteens = |s: usize| {
        _mm256_hadd_epi32(
            _mm256_hadd_epi32(fours(s), fours(s + 1)),
            _mm256_hadd_epi32(fours(s + 2), fours(s + 3)),
        )
    };
    cast([sixteens(0), sixteens(4)])
}

/// The scales and the mins of a panel: of sub-block `s` and row `r` at `[s][r]`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn unpack_scales(panel: &PanelQ4K) -> ([[u8; 16]; 8], [[u8; 16]; 8]) {
    let (low, high) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
    let (scales_lo, mins_lo): ([__m256i; 2], [__m256i; 2]) = (cast(panel.scales_lo), cast(panel.mins_lo));
    let hi: [__m256i; 2] = cast(panel.hi);
    let (mut scales, mut mins) = ([_mm256_setzero_si256(); 4], [_mm256_setzero_si256(); 4]);
    for i in 0..2 {
        let join = |lo, hi| _mm256_or_si256(_mm256_and_si256(lo, low), _mm256_and_si256(hi, high));
        scales[i] = join(scales_lo[i], _mm256_slli_epi16::<4>(hi[i]));
        scales[i + 2] = join(_mm256_srli_epi16::<4>(scales_lo[i]), _mm256_slli_epi16::<2>(hi[i]));
        mins[i] = join(mins_lo[i], hi[i]);
        mins[i + 2] = join(_mm256_srli_epi16::<4>(mins_lo[i]), _mm256_srli_epi16::<2>(hi[i]));
    }
    (cast(scales), cast(mins))
}

/// For byte shuffles: bytes 0..8 or 8..16, each as two `i16`.
pub(super) const ROWS_TWICE: [[i8; 32]; 2] = {
    let mut rows = [[-1; 32]; 2];
    let mut r = 0;
    while r < 16 {
        rows[r / 8][4 * (r % 8)] = r as i8;
        rows[r / 8][4 * (r % 8) + 2] = r as i8;
        r += 1;
    }
    rows
};
