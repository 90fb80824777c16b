//! Panels by `vpdpbusd` and `vpdpwssd` on 256-bit vectors: in AVX-VNNI, which CPUs without AVX-512 have, and in AVX-512 (VL),
//! which has the same instructions in another encoding. The second is for CPUs that slow down for 512-bit vectors, and it is how
//! CPUs without AVX-VNNI run this code in tests: the two modules differ by the encoding of these instructions alone.
//!
//! Where it departs from the code of `maddubs.rs`:
//! 1. To the weights of `Q8_0` 128 is added, and their sums begin at -128 times that of the activations.
//! 2. `Q3_K` and `Q6_K` stay unsigned: their sums begin at -4 and -32 times those of sixteen activations.
//! 3. A sub-block of `Q4_K` is summed up in two halves of 16 columns, each at most 16 * 15 * 127 = 30480 in size: side by side
//!    as `i16` they meet the scales as the pairs of `maddubs` do. `vpmulld` on whole sums takes Intel's CPUs twice as long.

/// The table of these functions beside those of `avx2`, and the functions.
macro_rules! vnni {
    ($encoding:ident, $name:literal, $features:literal, [$($feature:tt),*], $dpbusd:ident, $dpwssd:ident) => {
        pub(crate) mod $encoding {
            use std::arch::x86_64::*;

            use bytemuck::cast;
            use half::f16;

            use crate::Kernels;
            use crate::avx2::panels::{
                ROWS_TWICE, Sixteen, Starts, Walk, load, nibbles, panels, prefetch, prefetch_header, six_bits, starts, store, three_bits, unpack_scales,
                unpack_scales_q3_k,
            };
            use crate::blocks::{BlockQ8, BlockQ8x8};
            use crate::panel::{PanelQ3K, PanelQ4_0, PanelQ4K, PanelQ6K, PanelQ8_0, sub_block};

            /// The table, where this CPU has the instructions.
            pub(crate) fn table() -> Option<&'static Kernels> {
                static TABLE: std::sync::LazyLock<Option<Kernels>> = std::sync::LazyLock::new(|| {
                    let here = $(is_x86_feature_detected!($feature))&&*;
                    let avx2 = crate::avx2::table().filter(|_| here)?;
                    Some(Kernels {
                        name: $name,
                        // SAFETY: `TABLE` holds these only where this CPU has all of `$features`.
                        panels_q8_0: |panels, x, acc, ahead| unsafe { panels_q8_0(panels, x, acc, ahead) },
                        // SAFETY: as above.
                        panels_q4_0: |panels, x, acc, ahead| unsafe { panels_q4_0(panels, x, acc, ahead) },
                        // SAFETY: as above.
                        panels_q3_k: |panels, x, acc, ahead| unsafe { panels_q3_k(panels, x, acc, ahead) },
                        // SAFETY: as above.
                        panels_q4_k: |panels, x, acc, ahead| unsafe { panels_q4_k(panels, x, acc, ahead) },
                        // SAFETY: as above.
                        panels_q6_k: |panels, x, acc, ahead| unsafe { panels_q6_k(panels, x, acc, ahead) },
                        ..*avx2
                    })
                });
                TABLE.as_ref()
            }

            panels!($features);

            /// The integer products of half `h` of a sub-block's lines with T rows of activations, for each of 8 rows.
            #[target_feature(enable = $features)]
            #[inline]
            fn byte_dots<const T: usize>(
                lines: &[[[i8; 32]; 2]; 8],
                h: usize,
                x: &[&[BlockQ8x8]; T],
                i: usize,
                s: usize,
            ) -> [__m256i; T] {
                let mut dots = [_mm256_setzero_si256(); T];
                for t in 0..T {
                    dots[t] = _mm256_set1_epi32(x[t][i].starts[s]);
                }
                for (g, line) in lines.iter().enumerate() {
                    let unsigned = _mm256_xor_si256(cast(line[h]), _mm256_set1_epi8(-128));
                    for t in 0..T {
                        let xs: &[[[i8; 4]; 8]; 8] = bytemuck::cast_ref(&x[t][i].qs);
                        dots[t] = $dpbusd(dots[t], unsigned, _mm256_set1_epi32(cast(xs[s][g])));
                    }
                }
                dots
            }

            /// The integer products of a sub-block's nibbles less 8 with T rows of activations, for each of 8 rows of both halves.
            #[target_feature(enable = $features)]
            #[inline]
            fn nibble_dots<const T: usize>(
                sub_block: &[u8; 256],
                x: &[&[BlockQ8]; T],
                i: usize,
                s: usize,
            ) -> [[__m256i; 2]; T] {
                let mut dots = [[_mm256_setzero_si256(); 2]; T];
                for h in 0..2 {
                    let nibbles = nibbles(sub_block, h);
                    for t in 0..T {
                        let eights = _mm256_set1_epi32(-8 * i32::from(x[t][i].sums[s]));
                        let [low, high] = halves(&nibbles, [eights, _mm256_setzero_si256()], &x[t][i], s);
                        dots[t][h] = _mm256_add_epi32(low, high);
                    }
                }
                dots
            }

            /// The integer products of sub-block `s` with T rows of activations: two `i16` for each of 8 rows of both halves.
            #[target_feature(enable = $features)]
            #[inline]
            fn nibble_pairs<const T: usize>(
                sub_block: &[u8; 256],
                x: &[&[BlockQ8]; T],
                i: usize,
                s: usize,
            ) -> [[__m256i; 2]; T] {
                let mut pairs = [[_mm256_setzero_si256(); 2]; T];
                for h in 0..2 {
                    let nibbles = nibbles(sub_block, h);
                    for t in 0..T {
                        let [low, high] = halves(&nibbles, [_mm256_setzero_si256(); 2], &x[t][i], s);
                        pairs[t][h] = _mm256_blend_epi16::<0b10101010>(low, _mm256_slli_epi32::<16>(high));
                    }
                }
                pairs
            }

            /// The sums, begun at `starts`, of the low nibbles' products and of the high ones'.
            #[target_feature(enable = $features)]
            #[inline]
            fn halves(nibbles: &[[__m256i; 2]; 4], starts: [__m256i; 2], x: &BlockQ8, s: usize) -> [__m256i; 2] {
                let xs: &[[[[i8; 4]; 4]; 2]; 8] = bytemuck::cast_ref(&x.qs);
                let mut sums = starts;
                for g in 0..4 {
                    for part in 0..2 {
                        let x = _mm256_set1_epi32(cast(xs[s][part][g]));
                        sums[part] = $dpbusd(sums[part], nibbles[g][part], x);
                    }
                }
                sums
            }

            /// `sum` and the products of pairs, added in their row's lane.
            #[target_feature(enable = $features)]
            #[inline]
            fn add_pairs(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
                $dpwssd(sum, a, b)
            }

            /// Where the sums of 3-bit numbers begin, which are 4 too large.
            #[target_feature(enable = $features)]
            #[inline]
            fn begin_threes(x: &BlockQ8) -> Starts {
                starts::<4>(x)
            }

            /// Where the sums of 6-bit numbers begin, which are 32 too large.
            #[target_feature(enable = $features)]
            #[inline]
            fn begin_sixes(x: &BlockQ8) -> Starts {
                starts::<32>(x)
            }

            /// `sum` and the integer products of 3-bit numbers less 4, each sum times its row's scale.
            #[target_feature(enable = $features)]
            #[inline]
            fn add_threes(sum: __m256i, q: &[__m256i; 4], x: Sixteen<'_>, scale: __m256i) -> __m256i {
                add_sixes(sum, q, x, scale)
            }

            /// `sum` and the integer products of numbers less what the sums begin with, each sum times its row's scale.
            #[target_feature(enable = $features)]
            #[inline]
            fn add_sixes(sum: __m256i, q: &[__m256i; 4], x: Sixteen<'_>, scale: __m256i) -> __m256i {
                let mut dots = _mm256_set1_epi32(x.starts[x.s / 4][x.part][x.s % 4]);
                for (g, q) in q.iter().enumerate() {
                    dots = $dpbusd(dots, *q, _mm256_set1_epi32(x.word(g)));
                }
                _mm256_add_epi32(sum, _mm256_mullo_epi32(dots, scale))
            }
        }
    };
}

vnni!(vex, "avx_vnni", "avx2,f16c,avxvnni", ["avxvnni"], _mm256_dpbusd_avx_epi32, _mm256_dpwssd_avx_epi32);
vnni!(
    evex,
    "avx512_256",
    "avx2,f16c,avx512f,avx512vl,avx512vnni",
    ["avx512f", "avx512vl", "avx512vnni"],
    _mm256_dpbusd_epi32,
    _mm256_dpwssd_epi32
);
