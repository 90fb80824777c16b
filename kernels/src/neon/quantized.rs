//! The products of quantized weights, once for every way to multiply bytes.

/// The block function of panels whose `$bits` and `$scales` `[[i8; 16]; 16]` these are.
macro_rules! sixteens {
    ($features:literal, $half_dots:ident, $block:ident($panel:ty), $bits:ident, $here:ident => $scales:expr) => {
        /// The same for panels that have a scale for each 16 columns and row.
        #[target_feature(enable = $features)]
        #[inline]
        fn $block<const T: usize, const V: usize>(
            panels: &[$panel],
            x: [&[BlockQ8]; T],
            acc: &mut [[f32; 16]; T],
        ) {
            let acc: &mut [[[f32; 4]; 4]; T] = bytemuck::cast_mut(acc);
            for (i, $here) in panels.iter().enumerate() {
                let x: [&BlockQ8; T] = std::array::from_fn(|t| &x[t][i]);
                let scales: &[[i8; 16]; 16] = $scales;
                for group in 0..4 / V {
                    let mut sum = [[vdupq_n_s32(0); V]; T];
                    for s in 0..8 {
                        for v in 0..V {
                            let q = group * V + v;
                            let weights = $bits::<T>(&$here.sub_blocks[s], q);
                            for part in 0..2 {
                                let scale = row_scales(&scales[2 * s + part], q);
                                for t in 0..T {
                                    let dots = $half_dots(vdupq_n_s32(0), &weights, &x[t].qs, s, part);
                                    sum[t][v] = vmlaq_s32(sum[t][v], dots, scale);
                                }
                            }
                        }
                    }
                    for v in 0..V {
                        let q = group * V + v;
                        let d = widen_rows(&$here.d, q);
                        for t in 0..T {
                            let part = vmulq_f32(d, vcvtq_f32_s32(sum[t][v]));
                            acc[t][q] = cast(vaddq_f32(cast(acc[t][q]), vmulq_n_f32(part, x[t].d)));
                        }
                    }
                }
            }
        }
    };
}

/// The functions of `scalar` from `dot_q8_0` to `panels_q6_k`, with the instructions `$features`. `$dot` adds the
/// products of 16 weights and 16 activations to 4 sums; `$dots` adds those of 4 rows of a sub-block to a sum for each
/// row, and so does `$dots_8` where the weights have 8 bits; `$half_dots` adds those of half a sub-block.
macro_rules! quantized {
    ($features:literal, $dot:ident, $dots:ident, $dots_8:ident, $half_dots:ident) => {
        #[target_feature(enable = $features)]
        fn dot_q8_0(w: &[BlockQ8_0], x: &[BlockQ8x8]) -> f32 {
            assert_eq!(w.len().div_ceil(8), x.len(), "blocks of activations");
            let (whole, tail) = w.as_chunks::<8>();
            let mut acc = 0.0;
            for (w, x) in whole.iter().zip(x) {
                let xs: &[[[i8; 16]; 2]; 8] = bytemuck::cast_ref(&x.qs);
                let mut sums = [vdupq_n_s32(0); 8];
                for s in 0..8 {
                    prefetch(&w[s], 4096);
                    let ws: &[[i8; 16]; 2] = bytemuck::cast_ref(&w[s].qs);
                    for i in 0..2 {
                        sums[s] = $dot(sums[s], cast(ws[i]), cast(xs[s][i]));
                    }
                }
                let d = [w[0].d, w[1].d, w[2].d, w[3].d, w[4].d, w[5].d, w[6].d, w[7].d];
                let (products, x_d) = (scaled(d, sum_each(sums)), cast::<_, [float32x4_t; 2]>(x.d));
                acc += in_order([vmulq_f32(products[0], x_d[0]), vmulq_f32(products[1], x_d[1])]);
            }
            if !tail.is_empty() {
                acc += part_q8_0(tail, &x[whole.len()]);
            }
            acc
        }

        #[target_feature(enable = $features)]
        fn dot_q4_0(w: &[BlockQ4_0], x: &[BlockQ8]) -> f32 {
            assert_eq!(w.len().div_ceil(8), x.len(), "blocks of activations");
            let (whole, tail) = w.as_chunks::<8>();
            let mut acc = 0.0;
            for (w, x) in whole.iter().zip(x) {
                let xs: &[[[i8; 16]; 2]; 8] = bytemuck::cast_ref(&x.qs);
                let mut sums = [vdupq_n_s32(0); 8];
                for s in 0..8 {
                    prefetch(&w[s], 4096);
                    let bytes = cast(w[s].qs);
                    let low = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
                    let high = vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes));
                    sums[s] = $dot($dot(sums[s], low, cast(xs[s][0])), high, cast(xs[s][1]));
                }
                let [low, high] = sum_each(sums);
                let x_sums = cast(x.sums);
                let sums = [
                    vsubq_s32(low, vshll_n_s16::<3>(vget_low_s16(x_sums))),
                    vsubq_s32(high, vshll_high_n_s16::<3>(x_sums)),
                ];
                let d = [w[0].d, w[1].d, w[2].d, w[3].d, w[4].d, w[5].d, w[6].d, w[7].d];
                acc += scaled_sum(d, sums) * x.d;
            }
            if !tail.is_empty() {
                acc += part_q4_0(tail, &x[whole.len()]);
            }
            acc
        }

        #[target_feature(enable = $features)]
        fn dot_q3_k(w: &[BlockQ3K], x: &[BlockQ8]) -> f32 {
            assert_eq!(w.len(), x.len(), "blocks of activations");
            let mut acc = 0.0;
            for (w, x) in w.iter().zip(x) {
                let qs: &[[[u8; 16]; 2]; 2] = bytemuck::cast_ref(&w.qs);
                let third: [uint8x16_t; 2] = cast(w.hmask);
                let xs: &[[[i8; 16]; 2]; 8] = bytemuck::cast_ref(&x.qs);
                let scales: [int8x8_t; 2] = cast(w.unpack_scales());
                prefetch(w, 4096);
                let mut sum = vdupq_n_s32(0);
                for half in 0..2 {
                    let mut sums = [vdupq_n_s32(0); 8];
                    for s in 0..8 {
                        // Sixteen `8 half + s`: columns `16 i` of the 32 that share a bit of `hmask`.
                        let (j, i) = (4 * half + s / 2, s % 2);
                        let low = vshlq_u8(cast(qs[half][i]), vdupq_n_s8(-2 * (j as i8 % 4)));
                        let high = vshlq_u8(third[i], vdupq_n_s8(2 - j as i8));
                        let q = vorrq_u8(vandq_u8(low, vdupq_n_u8(3)), vandq_u8(high, vdupq_n_u8(4)));
                        let q = vsubq_s8(vreinterpretq_s8_u8(q), vdupq_n_s8(4));
                        sums[s] = $dot(sums[s], q, cast(xs[j][i]));
                    }
                    sum = scale_each(sum, sums, vmovl_s8(scales[half]));
                }
                acc += to_f32(w.d) * vaddvq_s32(sum) as f32 * x.d;
            }
            acc
        }

        #[target_feature(enable = $features)]
        fn dot_q4_k(w: &[BlockQ4K], x: &[BlockQ8]) -> f32 {
            assert_eq!(w.len(), x.len(), "blocks of activations");
            let low = vdupq_n_u8(15);
            let mut acc = 0.0;
            for (w, x) in w.iter().zip(x) {
                let qs: &[[[u8; 16]; 2]; 4] = bytemuck::cast_ref(&w.qs);
                let xs: &[[[[i8; 16]; 2]; 2]; 4] = bytemuck::cast_ref(&x.qs);
                let (scales, mins) = w.unpack_scales();
                let [scales, mins] = [scales, mins].map(|bytes| vreinterpretq_s16_u16(vmovl_u8(cast(bytes))));
                let mut sums = [vdupq_n_s32(0); 8];
                for (p, bytes) in qs.iter().enumerate() {
                    prefetch(bytes, 4096);
                    for i in 0..2 {
                        let bytes = cast(bytes[i]);
                        let even = vreinterpretq_s8_u8(vandq_u8(bytes, low));
                        let odd = vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes));
                        sums[2 * p] = $dot(sums[2 * p], even, cast(xs[p][0][i]));
                        sums[2 * p + 1] = $dot(sums[2 * p + 1], odd, cast(xs[p][1][i]));
                    }
                }
                let sum = scale_each(vdupq_n_s32(0), sums, scales);
                let x_sums = cast(x.sums);
                let min_sum = vmlal_high_s16(vmull_s16(vget_low_s16(mins), vget_low_s16(x_sums)), mins, x_sums);
                let (sum, min_sum) = (vaddvq_s32(sum), vaddvq_s32(min_sum));
                let [d, dmin] = [w.d, w.dmin].map(|d| to_f32(d));
                acc += (d * sum as f32 - dmin * min_sum as f32) * x.d;
            }
            acc
        }

        #[target_feature(enable = $features)]
        fn dot_q6_k(w: &[BlockQ6K], x: &[BlockQ8]) -> f32 {
            assert_eq!(w.len(), x.len(), "blocks of activations");
            let (low, high) = (vdupq_n_u8(15), vdupq_n_u8(0x30));
            let mut acc = 0.0;
            for (w, x) in w.iter().zip(x) {
                let ql: &[[[[u8; 16]; 2]; 2]; 2] = bytemuck::cast_ref(&w.ql);
                let qh: &[[[u8; 16]; 2]; 2] = bytemuck::cast_ref(&w.qh);
                let xs: &[[[[i8; 16]; 2]; 4]; 2] = bytemuck::cast_ref(&x.qs);
                let scales: [int8x8_t; 2] = cast(w.scales);
                let mut sum = vdupq_n_s32(0);
                for half in 0..2 {
                    prefetch(&ql[half], 4096);
                    prefetch(&qh[half], 4096);
                    let mut sums = [vdupq_n_s32(0); 8];
                    for i in 0..2 {
                        let (a, b, h) = (cast(ql[half][0][i]), cast(ql[half][1][i]), cast(qh[half][i]));
                        let lows = [vandq_u8(a, low), vandq_u8(b, low), vshrq_n_u8::<4>(a), vshrq_n_u8::<4>(b)];
                        let highs = [vshlq_n_u8::<4>(h), vshlq_n_u8::<2>(h), h, vshrq_n_u8::<2>(h)];
                        for part in 0..4 {
                            let q = vreinterpretq_s8_u8(vorrq_u8(lows[part], vandq_u8(highs[part], high)));
                            let q = vsubq_s8(q, vdupq_n_s8(32));
                            let s = 2 * part + i;
                            sums[s] = $dot(sums[s], q, cast(xs[half][part][i]));
                        }
                    }
                    sum = scale_each(sum, sums, vmovl_s8(scales[half]));
                }
                acc += to_f32(w.d) * vaddvq_s32(sum) as f32 * x.d;
            }
            acc
        }

        #[target_feature(enable = $features)]
        fn panels_q8_0(panels: &[PanelQ8_0], x: &[BlockQ8x8], acc: &mut [[f32; 16]]) {
            in_blocks!(panels, x, acc, 4 => block_q8_0::<4, 1>, 2 => block_q8_0::<2, 1>, 1 => block_q8_0::<1, 4>);
        }

        #[target_feature(enable = $features)]
        fn panels_q4_0(panels: &[PanelQ4_0], x: &[BlockQ8], acc: &mut [[f32; 16]]) {
            in_blocks!(panels, x, acc, 4 => block_q4_0::<4, 1>, 2 => block_q4_0::<2, 1>, 1 => block_q4_0::<1, 4>);
        }

        #[target_feature(enable = $features)]
        fn panels_q3_k(panels: &[PanelQ3K], x: &[BlockQ8], acc: &mut [[f32; 16]]) {
            in_blocks!(panels, x, acc, 4 => block_q3_k::<4, 1>, 2 => block_q3_k::<2, 1>, 1 => block_q3_k::<1, 4>);
        }

        #[target_feature(enable = $features)]
        fn panels_q4_k(panels: &[PanelQ4K], x: &[BlockQ8], acc: &mut [[f32; 16]]) {
            in_blocks!(panels, x, acc, 4 => block_q4_k::<4, 1>, 2 => block_q4_k::<2, 1>, 1 => block_q4_k::<1, 4>);
        }

        #[target_feature(enable = $features)]
        fn panels_q6_k(panels: &[PanelQ6K], x: &[BlockQ8], acc: &mut [[f32; 16]]) {
            in_blocks!(panels, x, acc, 4 => block_q6_k::<4, 1>, 2 => block_q6_k::<2, 1>, 1 => block_q6_k::<1, 4>);
        }

        /// `T` rows of activations pass `V` quarters of the panel's rows at a time.
        #[target_feature(enable = $features)]
        #[inline]
        pub(super) fn block_q8_0<const T: usize, const V: usize>(
            panels: &[PanelQ8_0],
            x: [&[BlockQ8x8]; T],
            acc: &mut [[f32; 16]; T],
        ) {
            let acc: &mut [[[f32; 4]; 4]; T] = bytemuck::cast_mut(acc);
            for (i, panel) in panels.iter().enumerate() {
                let x: [&BlockQ8x8; T] = std::array::from_fn(|t| &x[t][i]);
                for group in 0..4 / V {
                    let mut part = [[vdupq_n_f32(0.0); V]; T];
                    for s in 0..8 {
                        for v in 0..V {
                            let q = group * V + v;
                            let d = widen_rows(&panel.d[s], q);
                            let weights = weights::<T>(&panel.qs, s, q);
                            for t in 0..T {
                                let dot = vmulq_f32(d, vcvtq_f32_s32($dots_8(vdupq_n_s32(0), &weights, &x[t].qs, s)));
                                part[t][v] = vaddq_f32(part[t][v], vmulq_n_f32(dot, x[t].d[s]));
                            }
                        }
                    }
                    for t in 0..T {
                        for v in 0..V {
                            let q = group * V + v;
                            acc[t][q] = cast(vaddq_f32(cast(acc[t][q]), part[t][v]));
                        }
                    }
                }
            }
        }

        /// The same for `Q4_0`.
        #[target_feature(enable = $features)]
        #[inline]
        pub(super) fn block_q4_0<const T: usize, const V: usize>(
            panels: &[PanelQ4_0],
            x: [&[BlockQ8]; T],
            acc: &mut [[f32; 16]; T],
        ) {
            let acc: &mut [[[f32; 4]; 4]; T] = bytemuck::cast_mut(acc);
            for (i, panel) in panels.iter().enumerate() {
                let x: [&BlockQ8; T] = std::array::from_fn(|t| &x[t][i]);
                let mut starts = [[0; 8]; T];
                for t in 0..T {
                    starts[t] = minus_eights(x[t].sums);
                }
                for group in 0..4 / V {
                    let mut part = [[vdupq_n_f32(0.0); V]; T];
                    for s in 0..8 {
                        for v in 0..V {
                            let q = group * V + v;
                            let d = widen_rows(&panel.d[s], q);
                            let nibbles = nibbles::<T>(sub_block(&panel.qs, s), q);
                            for t in 0..T {
                                let dots = $dots(vdupq_n_s32(starts[t][s]), &nibbles, &x[t].qs, s);
                                part[t][v] = vaddq_f32(part[t][v], vmulq_f32(d, vcvtq_f32_s32(dots)));
                            }
                        }
                    }
                    for t in 0..T {
                        for v in 0..V {
                            let q = group * V + v;
                            let part = vmulq_n_f32(part[t][v], x[t].d);
                            acc[t][q] = cast(vaddq_f32(cast(acc[t][q]), part));
                        }
                    }
                }
            }
        }

        /// The same for `Q4_K`.
        #[target_feature(enable = $features)]
        #[inline]
        pub(super) fn block_q4_k<const T: usize, const V: usize>(
            panels: &[PanelQ4K],
            x: [&[BlockQ8]; T],
            acc: &mut [[f32; 16]; T],
        ) {
            let acc: &mut [[[f32; 4]; 4]; T] = bytemuck::cast_mut(acc);
            for (i, panel) in panels.iter().enumerate() {
                let x: [&BlockQ8; T] = std::array::from_fn(|t| &x[t][i]);
                let (scales, mins) = unpack_scales(panel);
                let mins = widen_mins(mins);
                for group in 0..4 / V {
                    let mut sum = [[vdupq_n_s32(0); V]; T];
                    for s in 0..8 {
                        for v in 0..V {
                            let q = group * V + v;
                            let scale = vreinterpretq_s32_u8(vqtbl1q_u8(scales[s], cast(ROWS[q])));
                            let nibbles = nibbles::<T>(sub_block(&panel.qs, s), q);
                            for t in 0..T {
                                let dots = $dots(vdupq_n_s32(0), &nibbles, &x[t].qs, s);
                                sum[t][v] = vmlaq_s32(sum[t][v], dots, scale);
                            }
                        }
                    }
                    for v in 0..V {
                        let q = group * V + v;
                        let (d, dmin) = (widen_rows(&panel.d, q), widen_rows(&panel.dmin, q));
                        for t in 0..T {
                            let part = part_q4_k([d, dmin], sum[t][v], min_dots(&mins, q, x[t]));
                            acc[t][q] = cast(vaddq_f32(cast(acc[t][q]), vmulq_n_f32(part, x[t].d)));
                        }
                    }
                }
            }
        }

        sixteens!($features, $half_dots, block_q3_k(PanelQ3K), three_bits, panel => &unpack_scales_q3_k(panel));
        sixteens!($features, $half_dots, block_q6_k(PanelQ6K), six_bits, panel => &panel.scales);
    };
}
