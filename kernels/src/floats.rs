//! The operations on floats over vectors of eight: the rows of quantization, products of rows in floats, SwiGLU and attention, once for AVX2 and NEON.
//!
//! Scores: the four vectors of a query's 32 lanes stay in registers; two queries share a key that is widened once.
//! Mixing: two vectors of each of four queries' sums stay in registers while some positions pass, which are in the nearest cache.
//!
//! What differs is in each set's `vector.rs` and `quantize.rs`. A macro joins the two and not a trait: a function that is compiled for some instructions cannot
//! be generic over them.

/// The functions of `scalar` from `quantize` to `dot_bf16` and from `swiglu` to `mix_q4_0`, with the instructions `$features`, where the operations of a
/// `vector.rs` and the blocks of a `quantize.rs` are in scope.
macro_rules! floats {
    ($features:literal) => {
        use bytemuck::cast;
        use half::{bf16, f16};

        use crate::blocks::{BlockQ4_0, BlockQ8, BlockQ8_0, BlockQ8x8, QK};
        use crate::scalar::{
            self, EXP_SERIES, LN_2_LOWER, LN_2_UPPER, WEIGHT_LEAST, add_to_lanes, all_scores, exp, sum_lanes,
            weight,
        };

        #[target_feature(enable = $features)]
        pub(super) fn quantize(x: &[f32], out: &mut [BlockQ8]) {
            each_block(x, out, |x, out| quantize_block(x, out));
        }

        #[target_feature(enable = $features)]
        pub(super) fn quantize_x8(x: &[f32], out: &mut [BlockQ8x8]) {
            each_block(x, out, |x, out| quantize_eight(x, out));
        }

        /// A row of activations by blocks, of which the last one is filled up with zeros.
        #[target_feature(enable = $features)]
        #[inline]
        fn each_block<B>(x: &[f32], out: &mut [B], block: impl Fn(&[f32; QK], &mut B)) {
            assert_eq!(x.len().div_ceil(QK), out.len(), "blocks of activations");
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

        #[target_feature(enable = $features)]
        pub(super) fn dot_f32(w: &[f32], x: &[f32]) -> f32 {
            dots(w, [x], |w: [f32; 8]| cast(w), |w| w)[0]
        }

        #[target_feature(enable = $features)]
        pub(super) fn dot_f16(w: &[f16], x: &[f32]) -> f32 {
            dots(w, [x], |w: [f16; 8]| of_f16(w), f16::to_f32)[0]
        }

        #[target_feature(enable = $features)]
        pub(super) fn dot_bf16(w: &[bf16], x: &[f32]) -> f32 {
            dots(w, [x], |w: [bf16; 8]| of_bf16(w), bf16::to_f32)[0]
        }

        /// One row of weights, or one key, with `T` rows of activations, each in the lanes of a single one.
        #[target_feature(enable = $features)]
        #[inline]
        fn dots<W: Copy, const T: usize>(
            w: &[W],
            x: [&[f32]; T],
            eight: impl Fn([W; 8]) -> Eight,
            one: impl Fn(W) -> f32,
        ) -> [f32; T] {
            let (whole, tail) = w.as_chunks::<32>();
            let mut xs = [&[][..]; T];
            for t in 0..T {
                assert_eq!(w.len(), x[t].len(), "columns");
                xs[t] = &x[t].as_chunks::<32>().0[..whole.len()];
            }
            let mut lanes = [[splat(0.0); 4]; T];
            for (i, w) in whole.iter().enumerate() {
                prefetch(w, 4096);
                for (v, w) in w.as_chunks::<8>().0.iter().enumerate() {
                    let w = eight(*w);
                    for t in 0..T {
                        lanes[t][v] = add(lanes[t][v], mul(w, cast(xs[t][i].as_chunks::<8>().0[v])));
                    }
                }
            }
            let mut out = [0.0; T];
            for t in 0..T {
                if tail.is_empty() {
                    out[t] = sum_32(lanes[t]);
                } else {
                    let mut lanes = cast(lanes[t]);
                    add_to_lanes(&mut lanes, tail, &x[t][32 * whole.len()..], &one);
                    out[t] = sum_lanes(lanes);
                }
            }
            out
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn exp_8(x: Eight) -> Eight {
            let x = within_exp(x);
            let n = round(mul(x, splat(std::f32::consts::LOG2_E)));
            let r = sub(sub(x, mul(n, splat(LN_2_UPPER))), mul(n, splat(LN_2_LOWER)));
            let mut series = splat(EXP_SERIES[0]);
            for factor in &EXP_SERIES[1..] {
                series = add(mul(series, r), splat(*factor));
            }
            mul(series, two_to_the(n))
        }

        #[target_feature(enable = $features)]
        pub(super) fn swiglu(gate: &mut [f32], up: &[f32]) {
            assert_eq!(gate.len(), up.len(), "neurons");
            let ((gate, gate_tail), (up, up_tail)) = (gate.as_chunks_mut::<8>(), up.as_chunks::<8>());
            for (gate, up) in gate.iter_mut().zip(up) {
                let x = cast(*gate);
                let silu = div(x, add(splat(1.0), exp_8(minus(x))));
                *gate = cast(mul(silu, cast(*up)));
            }
            for (gate, up) in gate_tail.iter_mut().zip(up_tail) {
                *gate = *gate / (1.0 + exp(-*gate)) * up;
            }
        }

        #[target_feature(enable = $features)]
        pub(super) fn exps(x: &mut [f32]) {
            let (whole, tail) = x.as_chunks_mut::<8>();
            whole.iter_mut().for_each(|x| *x = cast(exp_8(cast(*x))));
            tail.iter_mut().for_each(|x| *x = exp(*x));
        }

        #[target_feature(enable = $features)]
        pub(super) fn exp_sum(x: &mut [f32], max: f32) -> f32 {
            let mut lanes = [splat(0.0); 4];
            let (whole, tail) = x.as_chunks_mut::<32>();
            for x in whole {
                for (lane, x) in lanes.iter_mut().zip(x.as_chunks_mut::<8>().0) {
                    let score = sub(cast(*x), splat(max));
                    let power = zero_below(score, WEIGHT_LEAST, exp_8(score));
                    *x = cast(power);
                    *lane = add(*lane, power);
                }
            }
            let mut lanes: [f32; 32] = cast(lanes);
            for (lane, x) in lanes.iter_mut().zip(tail) {
                *x = weight(*x - max);
                *lane += *x;
            }
            sum_lanes(lanes)
        }

        #[target_feature(enable = $features)]
        pub(crate) fn scores_f32(q: &[f32], dim: usize, keys: &[f32], scores: &mut [f32]) {
            let pair = |key: &[f32], q: [&[f32]; 2]| dots(key, q, |w: [f32; 8]| cast(w), |w| w);
            let one = |key: &[f32], q: [&[f32]; 1]| dots(key, q, |w: [f32; 8]| cast(w), |w| w);
            all_scores(q, dim, keys, scores, pair, one);
        }

        #[target_feature(enable = $features)]
        pub(crate) fn scores_f16(q: &[f32], dim: usize, keys: &[f16], scores: &mut [f32]) {
            let pair = |key: &[f16], q: [&[f32]; 2]| dots(key, q, |w: [f16; 8]| of_f16(w), f16::to_f32);
            let one = |key: &[f16], q: [&[f32]; 1]| dots(key, q, |w: [f16; 8]| of_f16(w), f16::to_f32);
            all_scores(q, dim, keys, scores, pair, one);
        }

        #[target_feature(enable = $features)]
        pub(crate) fn mix_f32(p: &[f32], dim: usize, values: &[f32], y: &mut [f32]) {
            mix(p, dim, values, y, |w: [f32; 8]| cast(w), |w| w);
        }

        #[target_feature(enable = $features)]
        pub(crate) fn mix_f16(p: &[f32], dim: usize, values: &[f16], y: &mut [f32]) {
            mix(p, dim, values, y, |w: [f16; 8]| of_f16(w), f16::to_f32);
        }

        #[target_feature(enable = $features)]
        pub(crate) fn mix_q8_0(p: &[f32], dim: usize, values: &[BlockQ8_0], y: &mut [f32]) {
            if dim > 32 * NEAR_BLOCKS {
                return scalar::mix_q8_0(p, dim, values, y);
            }
            mix_blocks(p, dim, values, y, |block| (block.d, quants_q8_0(block)));
        }

        #[target_feature(enable = $features)]
        pub(crate) fn mix_q4_0(p: &[f32], dim: usize, values: &[BlockQ4_0], y: &mut [f32]) {
            if dim > 32 * NEAR_BLOCKS {
                return scalar::mix_q4_0(p, dim, values, y);
            }
            mix_blocks(p, dim, values, y, |block| (block.d, quants_q4_0(block)));
        }

        /// Positions whose values pass while they are in the nearest cache.
        const NEAR: usize = 16;

        /// Queries by four and alone, dims by sixteen, by eight and alone.
        #[target_feature(enable = $features)]
        #[inline]
        fn mix<W: Copy>(
            p: &[f32],
            dim: usize,
            values: &[W],
            y: &mut [f32],
            eight: impl Fn([W; 8]) -> Eight,
            one: impl Fn(W) -> f32,
        ) {
            let (queries, positions) = (y.len() / dim, values.len() / dim);
            assert_eq!(queries * positions, p.len(), "weights of positions");
            let (whole, by_16, by_8, by_64) = (queries / 4 * 4, dim / 16 * 16, dim / 8 * 8, dim / 64 * 64);
            for (first, near) in (0..positions).step_by(NEAR).zip(values.chunks(NEAR * dim)) {
                for t in (0..whole).step_by(4) {
                    let mut weights = [&[][..]; 4];
                    for i in 0..4 {
                        weights[i] = &p[(t + i) * positions + first..][..near.len() / dim];
                    }
                    let y = &mut y[t * dim..][..4 * dim];
                    for k in (0..by_16).step_by(16) {
                        mix_block::<W, 4, 2>(weights, dim, near, y, k, &eight);
                    }
                    for k in (by_16..by_8).step_by(8) {
                        mix_block::<W, 4, 1>(weights, dim, near, y, k, &eight);
                    }
                }
            }
            // One query alone is bound by memory: its values pass once, without coming back for the sums.
            for t in whole..queries {
                let (weights, y) = ([&p[t * positions..][..positions]], &mut y[t * dim..][..dim]);
                for k in (0..by_64).step_by(64) {
                    mix_block::<W, 1, 8>(weights, dim, values, y, k, &eight);
                }
                for k in (by_64..by_8).step_by(8) {
                    mix_block::<W, 1, 1>(weights, dim, values, y, k, &eight);
                }
            }
            for t in 0..queries {
                for k in by_8..dim {
                    for i in 0..positions {
                        y[t * dim + k] += p[t * positions + i] * one(values[i * dim + k]);
                    }
                }
            }
        }

        /// Dims `k..k + 8 V` of `T` queries.
        #[target_feature(enable = $features)]
        #[inline]
        fn mix_block<W: Copy, const T: usize, const V: usize>(
            p: [&[f32]; T],
            dim: usize,
            values: &[W],
            y: &mut [f32],
            k: usize,
            eight: &impl Fn([W; 8]) -> Eight,
        ) {
            let at = |i: usize, v: usize| i * dim + k + 8 * v;
            let mut sums = [[splat(0.0); V]; T];
            for i in 0..T {
                for v in 0..V {
                    sums[i][v] = cast::<[f32; 8], _>(*y[at(i, v)..].first_chunk().expect("eight sums"));
                }
            }
            for (position, values) in values.chunks_exact(dim).enumerate() {
                let values = values[k..][..8 * V].as_chunks::<8>().0;
                let mut here = [splat(0.0); V];
                for (v, here) in here.iter_mut().enumerate() {
                    *here = eight(values[v]);
                    if T == 1 && v % 2 == 0 {
                        prefetch(&values[v], 4096);
                    }
                }
                for i in 0..T {
                    let p = splat(p[i][position]);
                    for v in 0..V {
                        sums[i][v] = add(sums[i][v], mul(p, here[v]));
                    }
                }
            }
            for i in 0..T {
                for v in 0..V {
                    *y[at(i, v)..].first_chunk_mut().expect("eight sums") = cast::<_, [f32; 8]>(sums[i][v]);
                }
            }
        }

        /// Blocks that pass together, and are widened once for all queries.
        const NEAR_BLOCKS: usize = 128;

        /// Queries pass by fours over quants that are widened once for all of them; what is left of them goes alone. A position's weight times the block's
        /// scale is one factor; scales and factors are by block and position.
        #[target_feature(enable = $features)]
        #[inline]
        fn mix_blocks<B>(
            p: &[f32],
            dim: usize,
            values: &[B],
            y: &mut [f32],
            quants: impl Fn(&B) -> (f16, [Eights; 4]),
        ) {
            assert_eq!(dim % 32, 0, "whole blocks");
            let (queries, blocks) = (y.len() / dim, dim / 32);
            let positions = values.len() / blocks;
            assert_eq!(queries * positions, p.len(), "weights of positions");
            let (whole, together) = (queries / 4 * 4, NEAR_BLOCKS / blocks);
            let mut near = [[0.0; 32]; NEAR_BLOCKS];
            let (mut scales, mut factors) = ([0.0; NEAR_BLOCKS], [[0.0; NEAR_BLOCKS]; 4]);
            for (first, values) in (0..positions).step_by(together).zip(values.chunks(together * blocks)) {
                let n = values.len() / blocks;
                for (i, values) in values.chunks_exact(blocks).enumerate() {
                    for (b, block) in values.iter().enumerate() {
                        scales[b * n + i] = to_f32(quants(block).0);
                    }
                }
                let weights = |t: usize| &p[t * positions + first..][..n];
                if whole > 0 {
                    widen(values, &mut near, &quants);
                }
                let widened = near[..values.len()].as_flattened();
                for t in (0..whole).step_by(4) {
                    for (i, factors) in factors.iter_mut().enumerate() {
                        scale(weights(t + i), &scales[..n * blocks], factors);
                    }
                    let y = &mut y[t * dim..][..4 * dim];
                    for k in (0..dim).step_by(16) {
                        let of_block = factors.each_ref().map(|factors| &factors[k / 32 * n..][..n]);
                        mix_block::<f32, 4, 2>(of_block, dim, widened, y, k, &|w: [f32; 8]| cast(w));
                    }
                }
                for t in whole..queries {
                    scale(weights(t), &scales[..n * blocks], &mut factors[0]);
                    mix_near(&factors[0], values, &mut y[t * dim..][..dim], &quants);
                }
            }
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn widen<B>(
            values: &[B],
            near: &mut [[f32; 32]; NEAR_BLOCKS],
            quants: &impl Fn(&B) -> (f16, [Eights; 4]),
        ) {
            for (block, near) in values.iter().zip(near) {
                let q = quants(block).1;
                let near = near.as_chunks_mut::<8>().0;
                for v in 0..4 {
                    near[v] = cast(of_i32(q[v]));
                }
            }
        }

        /// The weights of some positions times the scales of each block in turn.
        #[target_feature(enable = $features)]
        #[inline]
        fn scale(weights: &[f32], scales: &[f32], factors: &mut [f32; NEAR_BLOCKS]) {
            let n = weights.len();
            for (scales, factors) in scales.chunks_exact(n).zip(factors.chunks_exact_mut(n)) {
                for ((factor, weight), scale) in factors.iter_mut().zip(weights).zip(scales) {
                    *factor = weight * scale;
                }
            }
        }

        /// Adds the values `near` to the sums of one query, of which those of a block stay in registers.
        #[target_feature(enable = $features)]
        #[inline]
        fn mix_near<B>(
            factors: &[f32],
            near: &[B],
            y: &mut [f32],
            quants: &impl Fn(&B) -> (f16, [Eights; 4]),
        ) {
            let blocks = y.len() / 32;
            let n = near.len() / blocks;
            for (b, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let mut sums: [Eight; 4] = cast(*y);
                for (values, factor) in near.chunks_exact(blocks).zip(&factors[b * n..][..n]) {
                    prefetch(&values[b], size_of_val(near));
                    let (factor, q) = (splat(*factor), quants(&values[b]).1);
                    for v in 0..4 {
                        sums[v] = add(sums[v], mul(factor, of_i32(q[v])));
                    }
                }
                *y = cast(sums);
            }
        }
    };
}
