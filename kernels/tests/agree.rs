//! One runner for every table of kernels that this machine has: all of them give the bits of `scalar`, and the
//! quantized products are close to those of the weights they stand for.

use bytemuck::{Pod, Zeroable, cast_slice, pod_read_unaligned};
use half::{bf16, f16};
use yuan_kernels::blocks::QK;
use yuan_kernels::panel::{ActivationBlock, Panel};
use yuan_kernels::{
    BlockQ3K, BlockQ4_0, BlockQ4K, BlockQ6K, BlockQ8, BlockQ8_0, BlockQ8x8, DType, Kernels, PanelQ3K,
    PanelQ4_0, PanelQ4K, PanelQ6K, PanelQ8_0, available, best, by_name, dequantize,
};

/// Lengths of rows: a tail of a superblock, several, none, one of them, and many.
const COLUMNS: [usize; 8] = [0, 32, 64, 224, 256, 288, 480, 2048];

/// xorshift: the same numbers on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn byte(&mut self) -> u8 {
        (self.next() >> 32) as u8
    }

    /// -1..1
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    /// A scale of either sign.
    fn scale(&mut self) -> f16 {
        f16::from_f32(self.float() / 16.0)
    }
}

/// What the bytes of weights are filled with.
#[derive(Clone, Copy, Debug)]
enum Fill {
    Random,
    /// Every byte the same: 0xff is all nibbles 15, 0x80 all weights -128.
    Byte(u8),
}

const FILLS: [Fill; 6] =
    [Fill::Random, Fill::Random, Fill::Byte(0), Fill::Byte(0xff), Fill::Byte(0x80), Fill::Byte(0x7f)];

/// A weight block whose bytes may be anything but whose scales are finite.
trait Weights: Pod {
    const DTYPE: DType;
    type X: ActivationBlock;
    fn dot(kernels: &Kernels) -> fn(&[Self], &[Self::X]) -> f32;
    fn set_scales(&mut self, random: &mut Random);

    fn row(columns: usize, fill: Fill, random: &mut Random) -> Vec<Self> {
        let mut block = || {
            let mut block = Self::zeroed();
            for byte in bytemuck::bytes_of_mut(&mut block) {
                *byte = match fill {
                    Fill::Random => random.byte(),
                    Fill::Byte(byte) => byte,
                };
            }
            block.set_scales(random);
            block
        };
        (0..columns / Self::DTYPE.block_len()).map(|_| block()).collect()
    }
}

macro_rules! weights {
    ($block:ty, $dtype:ident, $x:ty, $dot:ident, $($scale:ident),+) => {
        impl Weights for $block {
            const DTYPE: DType = DType::$dtype;
            type X = $x;
            fn dot(kernels: &Kernels) -> fn(&[Self], &[$x]) -> f32 {
                kernels.$dot
            }
            fn set_scales(&mut self, random: &mut Random) {
                $(self.$scale = random.scale();)+
            }
        }
    };
}
weights!(BlockQ8_0, Q8_0, BlockQ8x8, dot_q8_0, d);
weights!(BlockQ4_0, Q4_0, BlockQ8, dot_q4_0, d);
weights!(BlockQ3K, Q3_K, BlockQ8, dot_q3_k, d);
weights!(BlockQ4K, Q4_K, BlockQ8, dot_q4_k, d, dmin);
weights!(BlockQ6K, Q6_K, BlockQ8, dot_q6_k, d);

fn scalar() -> &'static Kernels {
    by_name("scalar").expect("every machine runs the scalar kernels")
}

fn quantized<X: ActivationBlock>(x: &[f32]) -> Vec<X> {
    let mut out = vec![X::zeroed(); x.len().div_ceil(QK)];
    X::quantize(scalar(), x, &mut out);
    out
}

/// ActivationBlock with all `q` at +127, at -127, alternating, and of random sizes.
fn activations<X: ActivationBlock>(columns: usize, random: &mut Random) -> [Vec<X>; 4] {
    let alternating: Vec<f32> = (0..columns).map(|k| if k % 2 == 0 { 1.0 } else { -1.0 }).collect();
    [vec![1.0; columns], vec![-1.0; columns], alternating, random.floats(columns)].map(|x| quantized(&x))
}

/// All NaNs are one.
fn bits(x: f32) -> u32 {
    if x.is_nan() { u32::MAX } else { x.to_bits() }
}

fn rows_agree<W: Weights>() {
    let random = &mut Random(1);
    for columns in COLUMNS.into_iter().filter(|c| c % W::DTYPE.block_len() == 0) {
        for fill in FILLS {
            let w = W::row(columns, fill, random);
            for x in activations(columns, random) {
                let expected = W::dot(scalar())(&w, &x);
                for kernels in available() {
                    let (name, dtype) = (kernels.name, W::DTYPE);
                    let got = W::dot(kernels)(&w, &x);
                    assert_eq!(bits(got), bits(expected), "{name} {dtype:?}, {columns} columns of {fill:?}");
                }
            }
        }
    }
}

#[test]
fn quantized_rows_agree_bit_for_bit() {
    rows_agree::<BlockQ8_0>();
    rows_agree::<BlockQ4_0>();
    rows_agree::<BlockQ3K>();
    rows_agree::<BlockQ4K>();
    rows_agree::<BlockQ6K>();
}

/// `n` panels of random rows.
fn random_panels<W: Weights, P: Panel>(n: usize, fill: Fill, random: &mut Random) -> (Vec<Vec<W>>, Vec<P>) {
    let rows: Vec<Vec<W>> = (0..16).map(|_| W::row(n * QK, fill, random)).collect();
    let pieces: Vec<&[P::Row]> = rows.iter().map(|row| cast_slice(row)).collect();
    let panels = (0..n).map(|i| P::from_rows(&std::array::from_fn(|r| pieces[r][i]))).collect();
    (rows, panels)
}

fn panels_agree_with_rows<W: Weights, P: Panel<X = W::X>>() {
    let random = &mut Random(2);
    for width in [0, 1, 8] {
        for fill in FILLS {
            let (rows, panels) = random_panels::<W, P>(width, fill, random);
            for x in activations(width * QK, random) {
                let expected: [u32; 16] = std::array::from_fn(|r| bits(W::dot(scalar())(&rows[r], &x)));
                // Asking for weights ahead, beyond the last ones too, changes nothing.
                for (kernels, ahead) in available().flat_map(|k| [0, 64, 1 << 20].map(|ahead| (k, ahead))) {
                    let mut acc = [[0.0; 16]];
                    P::product(&Kernels { ahead, ..*kernels }, &panels, &x, &mut acc);
                    let (name, dtype) = (kernels.name, W::DTYPE);
                    assert_eq!(
                        acc[0].map(bits),
                        expected,
                        "{name} {dtype:?}, {width} panels of {fill:?}, {ahead} ahead"
                    );
                }
            }
        }
    }
}

#[test]
fn a_panel_row_is_sixteen_rows_bit_for_bit() {
    panels_agree_with_rows::<BlockQ8_0, PanelQ8_0>();
    panels_agree_with_rows::<BlockQ4_0, PanelQ4_0>();
    panels_agree_with_rows::<BlockQ3K, PanelQ3K>();
    panels_agree_with_rows::<BlockQ4K, PanelQ4K>();
    panels_agree_with_rows::<BlockQ6K, PanelQ6K>();
}

fn blocks_agree_with_each_row<W: Weights, P: Panel>() {
    let random = &mut Random(8);
    for width in [1, 3] {
        let panels: Vec<P> = random_panels::<W, P>(width, Fill::Random, random).1;
        for rows in 0..=35 {
            let x: Vec<P::X> = (0..rows).flat_map(|_| quantized(&random.floats(width * QK))).collect();
            let start: Vec<[f32; 16]> = (0..rows).map(|_| std::array::from_fn(|_| random.float())).collect();
            let mut alone = start.clone();
            for (t, x) in x.chunks_exact(width).enumerate() {
                P::product(scalar(), &panels, x, &mut alone[t..=t]);
            }
            let all = |acc: &[[f32; 16]]| acc.as_flattened().iter().map(|&a| bits(a)).collect::<Vec<_>>();
            for kernels in available() {
                let mut acc = start.clone();
                P::product(kernels, &panels, &x, &mut acc);
                assert_eq!(all(&acc), all(&alone), "{} {:?}, {rows} rows", kernels.name, W::DTYPE);
            }
        }
    }
}

/// Any number of rows of activations gives each row what it gets alone.
#[test]
fn a_block_of_rows_is_each_row_bit_for_bit() {
    blocks_agree_with_each_row::<BlockQ8_0, PanelQ8_0>();
    blocks_agree_with_each_row::<BlockQ4_0, PanelQ4_0>();
    blocks_agree_with_each_row::<BlockQ3K, PanelQ3K>();
    blocks_agree_with_each_row::<BlockQ4K, PanelQ4K>();
    blocks_agree_with_each_row::<BlockQ6K, PanelQ6K>();
}

#[test]
fn panels_add_to_what_is_there() {
    let random = &mut Random(3);
    let panel =
        |b: &mut Random| PanelQ4K::pack(&std::array::from_fn(|_| BlockQ4K::row(QK, Fill::Random, b)[0]));
    let panels = [panel(random), panel(random), panel(random)];
    let x = quantized(&random.floats(3 * QK));
    for kernels in available() {
        let (mut whole, mut parts) = ([[0.5; 16]], [[0.5; 16]]);
        PanelQ4K::product(kernels, &panels, &x, &mut whole);
        PanelQ4K::product(kernels, &panels[..1], &x[..1], &mut parts);
        PanelQ4K::product(kernels, &panels[1..], &x[1..], &mut parts);
        assert_eq!(whole[0].map(bits), parts[0].map(bits), "{}", kernels.name);
    }
}

/// Lengths around every width of a vector, with a start that is not aligned.
#[test]
fn float_rows_agree_bit_for_bit() {
    let random = &mut Random(4);
    let (w, x) = (random.floats(2049), random.floats(2049));
    let w16: Vec<f16> = w.iter().map(|&w| f16::from_f32(w)).collect();
    let wb16: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
    for n in (0..140).chain([256, 1000, 2048]) {
        for start in [0, 1] {
            let (w, w16, wb16, x) =
                (&w[start..][..n], &w16[start..][..n], &wb16[start..][..n], &x[start..][..n]);
            for kernels in available() {
                let name = kernels.name;
                let dots =
                    |k: &Kernels| [(k.dot_f32)(w, x), (k.dot_f16)(w16, x), (k.dot_bf16)(wb16, x)].map(bits);
                assert_eq!(dots(kernels), dots(scalar()), "dots of {name}, {n} columns");
            }
        }
    }
}

#[test]
fn every_f16_and_bf16_is_read_alike() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let x = [1.0; 1];
    for kernels in available() {
        // In rows of 32 of one number, so that the vector code reads it too.
        for &number in &all {
            let (w16, wb16) = (f16::from_bits(number), bf16::from_bits(number));
            let mut y = [0.0; 8];
            (kernels.mix_f16)(&[1.0], 8, &[w16; 8], &mut y);
            assert_eq!(bits(y[3]), bits(0.0 + w16.to_f32()), "{} f16 {number:#06x}", kernels.name);
            let one = (kernels.dot_bf16)(&[wb16], &x);
            assert_eq!(bits(one), bits(0.0 + wb16.to_f32()), "{} bf16 {number:#06x}", kernels.name);
        }
    }
}

/// Every table makes the same blocks, whatever was there.
fn agree_on<X: ActivationBlock>(x: &[f32]) {
    let expected: Vec<X> = quantized(x);
    for kernels in available() {
        let mut got = vec![pod_read_unaligned::<X>(&vec![7; size_of::<X>()]); x.len().div_ceil(QK)];
        X::quantize(kernels, x, &mut got);
        assert!(cast_slice::<_, u8>(&got) == cast_slice::<_, u8>(&expected), "{} of {x:?}", kernels.name);
    }
}

#[test]
fn quantized_activations_agree_bit_for_bit() {
    let random = &mut Random(5);
    let mut rows: Vec<Vec<f32>> =
        [0, 1, 31, 32, 33, 255, 256, 257, 700, 2048].map(|n| random.floats(n)).into();
    // Ties: the largest is 127, so each x is its own q and a half lies between two of them.
    rows.push((0..256).map(|k| if k == 9 { -127.0 } else { (k as f32 - 128.0) / 2.0 }).collect());
    rows.extend(
        [0.0, -0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45, 4e-37, 3e-37].map(|x| vec![x; 300]),
    );
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut row = random.floats(600);
        row[300] = bad;
        rows.push(row);
    }
    for x in rows {
        agree_on::<BlockQ8>(&x);
        agree_on::<BlockQ8x8>(&x);
        let expected: Vec<BlockQ8> = quantized(&x);
        for (block, x) in expected.iter().zip(x.chunks(QK)) {
            let finite = x.iter().all(|x| x.is_finite());
            assert_eq!(block.d.is_nan(), !finite);
            for s in 0..8 {
                let sum: i32 = block.qs[32 * s..][..32].iter().map(|&q| i32::from(q)).sum();
                assert_eq!(sum, i32::from(block.sums[s]));
            }
            for (&q, &x) in block.qs.iter().zip(x).filter(|_| finite) {
                assert_near(x, q, block.d);
            }
        }
        // The same of each 32, which have a scale of their own.
        for (block, x) in quantized::<BlockQ8x8>(&x).iter().zip(x.chunks(QK)) {
            for (s, qs) in block.qs.chunks_exact(32).enumerate() {
                let x = x.get(32 * s..).unwrap_or_default();
                let finite = x.iter().take(32).all(|x| x.is_finite());
                assert_eq!(block.d[s].is_nan(), !finite);
                assert_eq!(block.starts[s], -128 * qs.iter().map(|&q| i32::from(q)).sum::<i32>());
                for (&q, &x) in qs.iter().zip(x).filter(|_| finite) {
                    assert_near(x, q, block.d[s]);
                }
            }
        }
    }
}

/// `q * d` is `x`, rounded.
fn assert_near(x: f32, q: i8, d: f32) {
    let off = (f64::from(x) - f64::from(q) * f64::from(d)).abs();
    assert!(off <= f64::from(d) * 0.5001 + 4e-37, "{x} as {q} * {d}");
}

#[test]
fn an_activation_that_is_no_number_spoils_its_products() {
    for kernels in available() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = vec![bad];
            x.resize(512, 1.0);
            let (mut blocks, mut eights) = ([BlockQ8::zeroed(); 2], [BlockQ8x8::zeroed(); 2]);
            (kernels.quantize)(&x, &mut blocks);
            (kernels.quantize_x8)(&x, &mut eights);
            let random = &mut Random(6);
            assert!((kernels.dot_q4_k)(&BlockQ4K::row(512, Fill::Random, random), &blocks).is_nan());
            assert!((kernels.dot_q8_0)(&BlockQ8_0::row(512, Fill::Random, random), &eights).is_nan());
        }
    }
}

/// ggml's bar for a product with quantized activations: a normalized mean square error of 5e-4.
fn products_are_close<W: Weights>() {
    let random = &mut Random(7);
    let (mut error, mut square) = (0.0, 0.0);
    for _ in 0..200 {
        let w = W::row(2048, Fill::Random, random);
        let x = random.floats(2048);
        let mut weights = vec![0.0; 2048];
        dequantize(W::DTYPE, cast_slice(&w), &mut weights);
        let exact: f64 = weights.iter().zip(&x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
        let got = f64::from(W::dot(best())(&w, &quantized(&x)));
        error += (got - exact).powi(2);
        square += exact.powi(2);
    }
    let nmse = error / square;
    println!("{:?}: NMSE {nmse:.1e}", W::DTYPE);
    assert!(nmse <= 5e-4, "{:?}: NMSE {nmse}", W::DTYPE);
}

#[test]
fn quantized_products_are_close_to_exact_ones() {
    products_are_close::<BlockQ8_0>();
    products_are_close::<BlockQ4_0>();
    products_are_close::<BlockQ3K>();
    products_are_close::<BlockQ4K>();
    products_are_close::<BlockQ6K>();
}

#[test]
fn a_table_is_found_by_its_name_only() {
    assert!(available().any(|kernels| std::ptr::eq(kernels, best())));
    for kernels in available() {
        assert!(std::ptr::eq(by_name(kernels.name).expect("an available table"), kernels));
    }
    assert!(by_name("abacus").is_none());
}

/// CI names the tables that a machine must have, fastest first.
#[test]
fn the_tables_are_those_that_the_machine_should_have() {
    let names: Vec<_> = available().map(|kernels| kernels.name).collect();
    println!("kernels here: {}", names.join(","));
    assert_eq!(best().name, names[0]);
    if let Ok(expected) = std::env::var("YUAN_EXPECT_KERNELS") {
        assert_eq!(names.join(","), expected);
    }
}

#[test]
#[should_panic(expected = "blocks of activations")]
fn rows_of_different_lengths_are_refused() {
    let w: [BlockQ4K; 2] = pod_read_unaligned(&[0; 288]);
    (best().dot_q4_k)(&w, &[BlockQ8::zeroed()]);
}
