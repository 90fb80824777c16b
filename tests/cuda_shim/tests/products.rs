//! Products of panels: the bits of the scalar definition, on every architecture.

mod common;

use bytemuck::Zeroable;
use common::{ARCHITECTURES, Arg, Buffer, Null, Random, assert_same, run, run_on, scalar};
use half::{bf16, f16};
use yuan_cuda::launch;
use yuan_kernels::{
    BlockQ8, BlockQ8x8, DType, PanelQ3K, PanelQ4_0, PanelQ4K, PanelQ6K, PanelQ8_0,
    panel::{Panel, SixBits, ThreeBits},
};

/// `out[t][row]` of a matrix in panels.
fn wanted<P: Panel>(panels: &[P], rows: usize, x: &[P::X], width: usize) -> Vec<f32> {
    let tokens = x.len() / width;
    let mut out = vec![0.0; tokens * rows];
    for (g, panels) in panels.chunks_exact(width).enumerate() {
        let mut acc = vec![[0.0; 16]; tokens];
        P::product(scalar(), panels, x, &mut acc);
        for (t, acc) in acc.iter().enumerate() {
            out[t * rows + 16 * g..][..16].copy_from_slice(acc);
        }
    }
    out
}

fn check<P: Panel>(panels: &[P], rows: usize, x: &[P::X]) {
    let width = panels.len() * 16 / rows;
    let (tokens, cols) = (x.len() / width, 256 * width);
    let (w, blocks) = (Buffer::of(panels), Buffer::of(x));
    let (products, bias) = (wanted(panels, rows, x, width), Random(rows as u64).floats(rows));
    let sums: Vec<f32> = products.iter().zip(bias.iter().cycle()).map(|(p, b)| p + b).collect();
    let bias = Buffer::of(&bias);
    for architecture in ARCHITECTURES {
        for (bias, wanted) in [(&Null as &dyn Arg, &products), (&bias, &sums)] {
            let out = Buffer::fresh(tokens * rows);
            let launch = launch::product(P::DTYPE, rows, cols, tokens);
            run_on(architecture, launch, &[&w, &blocks, bias, &out, &rows, &cols, &tokens])
                .unwrap_or_else(|e| panic!("{e}"));
            let what = format!("{} {rows} x {cols}, {tokens} tokens, {architecture:?}", P::DTYPE.name());
            assert_same(out.get(), wanted, &what);
        }
    }
}

/// Few tokens, odd ones and many, a row of panels that is walked in two rounds, and a part of the true geometry.
fn check_shapes<P: Panel>(random: &mut Random, panel: impl Fn(&mut Random) -> P) {
    let shapes = [(16, 1), (48, 2), (32, 8), (80, 3), (16, 33)];
    for (rows, width) in shapes {
        let panels: Vec<P> = (0..rows / 16 * width).map(|_| panel(random)).collect();
        for tokens in [1, 2, 3, 4, 5, 7, 8, 9, 32, 33, 70] {
            if rows * width * tokens <= 16 * 33 * 9 {
                check(&panels, rows, &random.activations(tokens, width));
            }
        }
    }
}

#[test]
fn q4_k_products_are_those_of_the_definition() {
    check_shapes(&mut Random(1), Random::q4_k);
}

#[test]
fn q4_0_products_are_those_of_the_definition() {
    check_shapes(&mut Random(2), Random::q4_0);
}

#[test]
fn q8_0_products_are_those_of_the_definition() {
    check_shapes(&mut Random(3), Random::q8_0);
}

#[test]
fn q3_k_products_are_those_of_the_definition() {
    check_shapes(&mut Random(9), Random::q3_k);
}

#[test]
fn q6_k_products_are_those_of_the_definition() {
    check_shapes(&mut Random(4), Random::q6_k);
}

/// The largest sums: no step of 8 or 16 bits may saturate.
#[test]
fn extremes_do_not_saturate() {
    let block = |q: i8| BlockQ8 { qs: [q; 256], sums: [32 * i16::from(q); 8], d: 1.0, ..BlockQ8::zeroed() };
    let eight = |q: i8| BlockQ8x8 { qs: [q; 256], starts: [-128 * 32 * i32::from(q); 8], d: [1.0; 8] };
    let (one, two) = (f16::from_f32(1.0), f16::from_f32(2.0));
    let q4_k = |b: u8| PanelQ4K {
        d: [one; 16],
        dmin: [two; 16],
        scales_lo: [b; 64],
        mins_lo: [b; 64],
        hi: [b; 64],
        qs: [b; 2048],
    };
    for tokens in [1, 2, 8, 9] {
        for q in [127, -127] {
            let (x, eights) = (vec![block(q); tokens], vec![eight(q); tokens]);
            for b in [0x00, 0x0f, 0xf0, 0xff] {
                check(&[q4_k(b)], 16, &x);
                check(&[PanelQ4_0 { d: [[two; 16]; 8], qs: [b; 2048] }], 16, &x);
                check(&[PanelQ8_0 { d: [[two; 16]; 8], qs: [b as i8; 4096] }], 16, &eights);
            }
            check(&[PanelQ8_0 { d: [[two; 16]; 8], qs: [-128; 4096] }], 16, &eights);
            for (bits, scales) in [(0x00, 0x00), (0x00, 0xff), (0xff, 0x00), (0xff, 0xff)] {
                let sub_blocks = [ThreeBits { low: [bits; 128], high: [bits; 64] }; 8];
                check(&[PanelQ3K { d: [two; 16], scales: [[scales; 16]; 12], sub_blocks }], 16, &x);
            }
            for (bits, scale) in [(0x00, -128), (0x00, 127), (0xff, -128), (0xff, 127)] {
                let sub_blocks = [SixBits { low: [bits; 256], high: [bits; 128] }; 8];
                check(&[PanelQ6K { d: [two; 16], scales: [[scale; 16]; 16], sub_blocks }], 16, &x);
            }
        }
    }
}

/// A block that was not finite has the scale NaN, and so have its products.
#[test]
fn what_is_not_finite_stays_so() {
    let mut random = Random(5);
    let mut x: Vec<BlockQ8> = random.activations(2, 1);
    x[1].d = f32::NAN;
    let (w, blocks, out) = (Buffer::of(&[random.q4_k()]), Buffer::of(&x), Buffer::fresh(32));
    run(launch::product(DType::Q4_K, 16, 256, 2), &[&w, &blocks, &Null, &out, &16usize, &256usize, &2usize]);
    assert!(
        out.get()[..16].iter().all(|o: &f32| o.is_finite()) && out.get()[16..].iter().all(|o| o.is_nan())
    );
}

#[test]
fn float_products_are_those_of_the_definition() {
    let mut random = Random(6);
    for (rows, cols, tokens) in [(1, 1, 1), (9, 33, 5), (96, 2048, 1), (24, 256, 9)] {
        let (w, x) = (random.floats(rows * cols), random.floats(tokens * cols));
        let halves: Vec<f16> = w.iter().map(|&w| f16::from_f32(w)).collect();
        let brains: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
        let each = |dot: &dyn Fn(usize, &[f32]) -> f32| -> Vec<f32> {
            x.chunks_exact(cols).flat_map(|x| (0..rows).map(|r| dot(r, x)).collect::<Vec<_>>()).collect()
        };
        let row = |r: usize| r * cols..(r + 1) * cols;
        let device = Buffer::of(&x);
        for (dtype, wanted) in [
            (DType::F32, each(&|r, x| (scalar().dot_f32)(&w[row(r)], x))),
            (DType::F16, each(&|r, x| (scalar().dot_f16)(&halves[row(r)], x))),
            (DType::Bf16, each(&|r, x| (scalar().dot_bf16)(&brains[row(r)], x))),
        ] {
            let weights: Buffer<u8> = Buffer::of(match dtype {
                DType::F32 => bytemuck::cast_slice(&w),
                DType::F16 => bytemuck::cast_slice(&halves),
                _ => bytemuck::cast_slice(&brains),
            });
            let bias = random.floats(rows);
            let sums: Vec<f32> = wanted.iter().zip(bias.iter().cycle()).map(|(p, b)| p + b).collect();
            let bias = Buffer::of(&bias);
            for (bias, wanted) in [(&Null as &dyn Arg, &wanted), (&bias, &sums)] {
                let out = Buffer::fresh(tokens * rows);
                run(
                    launch::product(dtype, rows, cols, tokens),
                    &[&weights, &device, bias, &out, &rows, &cols, &tokens],
                );
                assert_same(out.get(), wanted, &format!("{} {rows} x {cols}, {tokens} tokens", dtype.name()));
            }
        }
    }
}

#[test]
fn shapes_that_no_panels_have_are_refused() {
    assert_eq!(launch::product(DType::Q4_K, 24, 256, 1), None);
    assert_eq!(launch::product(DType::Q4_K, 16, 300, 1), None);
    assert_eq!(launch::product(DType::Q6_K, 16, 300, 1), None);
    assert_eq!(launch::product(DType::Q4_K, 0, 256, 1), None);
}
