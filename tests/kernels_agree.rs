//! Kernels and encoders against ggml (feature `ggml`): the same weights bit for bit, products within ggml's own bar, and blocks
//! that equal ggml's or lose less.

use std::path::PathBuf;

use bytemuck::{Zeroable, cast_slice, pod_collect_to_vec};
use half::{bf16, f16};
use rand_xoshiro::{
    Xoshiro256PlusPlus,
    rand_core::{Rng, SeedableRng},
};
use safetensors::SafeTensors;
use yuan::{
    container::TileLayout,
    model::bench::{Bench, Layer, Trunk},
};
use yuan_ggml::{oracle, rival};
use yuan_kernels::{
    BlockQ8, BlockQ8x8, DType, Kernels, PanelQ3K, PanelQ4_0, PanelQ4K, PanelQ6K, PanelQ8_0, available,
    dequantize,
    encode::{Encoder, best_encoders},
    panel::{ActivationBlock, Panel, panel_bytes},
};

/// The types whose weights are blocks.
const BLOCKS: [DType; 5] = [DType::Q4_0, DType::Q8_0, DType::Q3_K, DType::Q4_K, DType::Q6_K];

/// ggml's bar for a product with quantized activations, as a normalized mean square error.
const BAR: f64 = 5e-4;

struct Random(Xoshiro256PlusPlus);

impl Random {
    fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// In 0..1, neither end included.
    fn uniform(&mut self) -> f64 {
        ((self.0.next_u64() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    fn gaussian(&mut self) -> f32 {
        let (radius, angle) = ((-2.0 * self.uniform().ln()).sqrt(), std::f64::consts::TAU * self.uniform());
        (radius * angle.cos()) as f32
    }

    fn laplace(&mut self) -> f32 {
        let u = self.uniform() - 0.5;
        (-u.signum() * (1.0 - 2.0 * u.abs()).ln()) as f32
    }

    fn gaussians(&mut self, n: usize, deviation: f32) -> Vec<f32> {
        (0..n).map(|_| self.gaussian() * deviation).collect()
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.0.fill_bytes(&mut bytes);
        bytes
    }
}

/// All NaNs are one.
fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect()
}

fn weights_agree(dtype: DType, bytes: &[u8], what: &str) {
    let n = bytes.len() / dtype.block_bytes() * dtype.block_len();
    let (mut ours, mut theirs) = (vec![0.0; n], vec![0.0; n]);
    dequantize(dtype, bytes, &mut ours);
    oracle::dequantize(dtype, bytes, &mut theirs);
    assert!(bits(&ours) == bits(&theirs), "{} of {what} blocks", dtype.name());
}

#[test]
fn weights_equal_those_of_ggml_bit_for_bit() {
    let random = &mut Random::new(1);
    for dtype in BLOCKS {
        let block = dtype.block_bytes();
        weights_agree(dtype, &random.bytes(2000 * block), "random");
        for byte in [0x00, 0x01, 0x0f, 0x3c, 0x7b, 0x7f, 0x80, 0xf0, 0xff] {
            weights_agree(dtype, &vec![byte; 16 * block], &format!("{byte:#04x}"));
        }
        // Every scale of one kind of bits: the fields of a block at their ends, under scales from the smallest to NaN.
        for scale in [
            0x0000, 0x0001, 0x03ff, 0x0400, 0x3c00, 0x7bff, 0x7c00, 0x7e00, 0x8001, 0xbc00, 0xfbff,
            0xfc00_u16,
        ] {
            for quants in [0x00, 0xff, 0x80] {
                let mut bytes = vec![quants; block];
                let [low, high] = scale.to_le_bytes();
                match dtype {
                    DType::Q3_K | DType::Q6_K => bytes[block - 2..].copy_from_slice(&[low, high]),
                    DType::Q4_K => bytes[..4].copy_from_slice(&[low, high, low, high]),
                    _ => bytes[..2].copy_from_slice(&[low, high]),
                }
                weights_agree(dtype, &bytes, &format!("scale {scale:#06x}, quants {quants:#04x}"));
            }
        }
    }
}

#[test]
fn every_half_equals_that_of_ggml() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    weights_agree(DType::F16, &all, "all");
    weights_agree(DType::Bf16, &all, "all");
}

/// A matrix as ggml encodes gaussian weights.
fn matrix(dtype: DType, rows: usize, columns: usize, random: &mut Random) -> Vec<u8> {
    let weights = random.gaussians(rows * columns, 0.02);
    match dtype {
        DType::F32 => pod_collect_to_vec(&weights),
        DType::F16 => weights.iter().flat_map(|&w| f16::from_f32(w).to_le_bytes()).collect(),
        DType::Bf16 => weights.iter().flat_map(|&w| bf16::from_f32(w).to_le_bytes()).collect(),
        _ => oracle::quantize(dtype, &weights, columns),
    }
}

fn dot(kernels: &Kernels, dtype: DType, row: &[u8], x: &[f32]) -> f32 {
    let n = x.len().div_ceil(256);
    let (mut q8, mut eights) = (vec![BlockQ8::zeroed(); n], vec![BlockQ8x8::zeroed(); n]);
    (kernels.quantize)(x, &mut q8);
    (kernels.quantize_x8)(x, &mut eights);
    match dtype {
        DType::F32 => (kernels.dot_f32)(cast_slice(row), x),
        DType::F16 => (kernels.dot_f16)(&pod_collect_to_vec(row), x),
        DType::Bf16 => (kernels.dot_bf16)(&pod_collect_to_vec(row), x),
        DType::Q8_0 => (kernels.dot_q8_0)(&pod_collect_to_vec(row), &eights),
        DType::Q4_0 => (kernels.dot_q4_0)(&pod_collect_to_vec(row), &q8),
        DType::Q3_K => (kernels.dot_q3_k)(&pod_collect_to_vec(row), &q8),
        DType::Q4_K => (kernels.dot_q4_k)(&pod_collect_to_vec(row), &q8),
        DType::Q6_K => (kernels.dot_q6_k)(&pod_collect_to_vec(row), &q8),
    }
}

/// Sixteen rows' products by panels.
fn panel_products<P: Panel>(kernels: &Kernels, rows: &[u8], x: &[f32]) -> [f32; 16] {
    let width = x.len() / 256;
    let mut q8 = vec![P::X::zeroed(); width];
    P::X::quantize(kernels, x, &mut q8);
    let blocks: Vec<P::Row> = pod_collect_to_vec(rows);
    let panel = |b| P::from_rows(&std::array::from_fn(|r| blocks[r * width + b]));
    let mut acc = [[0.0; 16]];
    P::product(kernels, &(0..width).map(panel).collect::<Vec<_>>(), &q8, &mut acc);
    acc[0]
}

/// The sum of the squares of the errors over the sum of the squares.
fn nmse(found: &[f32], exact: &[f64]) -> f64 {
    let error: f64 = found.iter().zip(exact).map(|(&f, e)| (f64::from(f) - e).powi(2)).sum();
    error / exact.iter().map(|e| e * e).sum::<f64>()
}

#[test]
fn products_keep_ggmls_bar() {
    const ROWS: usize = 256;
    let random = &mut Random::new(2);
    println!("NMSE of products of 2048 columns:");
    for dtype in DType::ALL {
        let bytes = matrix(dtype, ROWS, 2048, random);
        let row_bytes = bytes.len() / ROWS;
        let rows = || bytes.chunks_exact(row_bytes);
        let x: Vec<Vec<f32>> = (0..ROWS).map(|_| random.gaussians(2048, 1.0)).collect();
        let exact = |row: &[u8], x: &[f32]| -> f64 {
            let mut w = vec![0.0; 2048];
            dequantize(dtype, row, &mut w);
            w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum()
        };
        let expected: Vec<f64> = rows().zip(&x).map(|(row, x)| exact(row, x)).collect();
        let theirs: Vec<f32> = rows().zip(&x).map(|(row, x)| oracle::vec_dot(dtype, row, x)).collect();
        let theirs = nmse(&theirs, &expected);
        for kernels in available() {
            let ours: Vec<f32> = rows().zip(&x).map(|(row, x)| dot(kernels, dtype, row, x)).collect();
            let ours = nmse(&ours, &expected);
            let name = kernels.name;
            println!("{:5} {name:7} {ours:.2e}, ggml {theirs:.2e}", dtype.name());
            assert!(ours <= BAR, "{} of {name}: NMSE {ours}, ggml's is {theirs}", dtype.name());

            let by_panels = match dtype {
                DType::Q4_0 => panel_products::<PanelQ4_0>,
                DType::Q3_K => panel_products::<PanelQ3K>,
                DType::Q4_K => panel_products::<PanelQ4K>,
                DType::Q6_K => panel_products::<PanelQ6K>,
                DType::Q8_0 => panel_products::<PanelQ8_0>,
                _ => continue,
            };
            let sixteens = || bytes.chunks_exact(16 * row_bytes).zip(&x);
            let panels: Vec<f32> = sixteens().flat_map(|(rows, x)| by_panels(kernels, rows, x)).collect();
            let expected: Vec<f64> = sixteens()
                .flat_map(|(rows, x)| rows.chunks_exact(row_bytes).map(|row| exact(row, x)))
                .collect();
            let ours = nmse(&panels, &expected);
            assert!(ours <= BAR, "panels of {} of {name}: NMSE {ours}", dtype.name());
        }
    }
}

/// Rows of 2048 weights as they come in models, and rows that are hard to encode.
fn rows_to_encode() -> Vec<(&'static str, Vec<f32>)> {
    let random = &mut Random::new(3);
    let n = 64 * 2048;
    let gaussian = random.gaussians(n, 0.02);
    let laplace = (0..n).map(|_| random.laplace() * 0.02).collect();
    let mut outliers = |share: f64, times: f32| -> Vec<f32> {
        (0..n)
            .map(|_| random.gaussian() * if random.uniform() < share { 0.02 * times } else { 0.02 })
            .collect()
    };
    let (rare, common, huge) = (outliers(0.001, 20.0), outliers(0.01, 20.0), outliers(0.01, 200.0));
    let off_centre = (0..n).map(|_| random.gaussian() * 0.02 + 0.03).collect();
    vec![
        ("gaussian", gaussian),
        ("laplace", laplace),
        ("0.1 % twenty times as large", rare),
        ("1 % twenty times as large", common),
        ("1 % two hundred times as large", huge),
        ("off centre", off_centre),
        ("the demo model's experts", demo_experts()),
    ]
}

fn demo_experts() -> Vec<f32> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/demo-model/model.safetensors");
    let file = std::fs::read(path).expect("the demo model");
    let model = SafeTensors::deserialize(&file).expect("the demo model is sound");
    let mut tensors = model.tensors();
    tensors.retain(|(name, _)| name.contains(".experts."));
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    let weights = tensors.iter().flat_map(|(_, tensor)| tensor.data().as_chunks().0);
    weights.map(|w| bf16::from_le_bytes(*w).to_f32()).collect()
}

fn encoded(encode: Encoder, dtype: DType, weights: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; dtype.row_bytes(weights.len()).expect("whole blocks")];
    encode(weights, &mut bytes);
    bytes
}

#[test]
fn small_blocks_are_ggmls_byte_for_byte() {
    let encoders = best_encoders();
    for (name, weights) in rows_to_encode() {
        for (dtype, encode) in [(DType::Q4_0, encoders.q4_0), (DType::Q8_0, encoders.q8_0)] {
            let (ours, theirs) = (encoded(encode, dtype, &weights), oracle::quantize(dtype, &weights, 256));
            let blocks = ours.chunks(dtype.block_bytes()).zip(theirs.chunks(dtype.block_bytes()));
            for (i, (ours, theirs)) in blocks.enumerate() {
                assert_eq!(ours, theirs, "{} of {name}, block {i}", dtype.name());
            }
        }
    }
}

#[test]
fn searched_blocks_lose_no_more_than_ggmls() {
    let encoders = best_encoders();
    println!("root of the mean square error over that of the weights, in percent:");
    for (name, weights) in rows_to_encode() {
        let square: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
        for (dtype, encode) in
            [(DType::Q3_K, encoders.q3_k), (DType::Q4_K, encoders.q4_k), (DType::Q6_K, encoders.q6_k)]
        {
            let error = |bytes: &[u8]| -> f64 {
                let mut out = vec![0.0; weights.len()];
                dequantize(dtype, bytes, &mut out);
                out.iter().zip(&weights).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
            };
            let ours = error(&encoded(encode, dtype, &weights));
            let theirs = error(&oracle::quantize(dtype, &weights, 256));
            let percent = |error: f64| 100.0 * (error / square).sqrt();
            println!("{} {:.4}, ggml {:.4} ({name})", dtype.name(), percent(ours), percent(theirs));
            assert!(ours <= theirs, "{} of {name}: {ours}, ggml {theirs}", dtype.name());
        }
    }
}

/// That benchmarks compare like with like: whole products by ggml's backend, plain and repacked, beside the model's.
#[test]
fn products_of_matrices_agree() {
    let (rows, columns, tokens) = (96, 512, 9);
    let random = &mut Random::new(4);
    let x = random.gaussians(tokens * columns, 1.0);
    let (rival, bench) = (rival::Rival::new(2), Bench::new(2).expect("threads"));
    for dtype in BLOCKS {
        let bytes = matrix(dtype, rows, columns, random);
        let ours = |panels| -> Vec<f64> {
            let trunk = Trunk::new(dtype, rows, columns, panels, &bytes).expect("a matrix");
            bench.product(&trunk, &x).iter().copied().map(f64::from).collect()
        };
        let in_rows = ours(false);
        if panel_bytes(dtype).is_some() {
            assert_eq!(ours(true), in_rows, "{} in panels and in rows", dtype.name());
        }
        for buffer in [rival::Buffer::Plain, rival::Buffer::Repacked] {
            let Some(mut weights) = rival::Weights::new(buffer, dtype, [1, rows, columns], 2) else {
                println!("{}: ggml does not repack it", dtype.name());
                continue;
            };
            (0..weights.count()).for_each(|i| weights.set(i, &bytes));
            let mut products = rival::Products::new(&rival, &weights, 2, tokens);
            products.set_input(&x);
            products.run();
            for i in 0..2 {
                let off = nmse(&products.output(i), &in_rows);
                assert!(off <= BAR, "{} {buffer:?}: NMSE {off}", dtype.name());
            }
        }
    }
}

#[test]
fn layers_of_experts_agree() {
    let (hidden, ffn, experts, used, tokens) = (256, 512, 4, 2, 11);
    let random = &mut Random::new(5);
    let x = random.gaussians(tokens * hidden, 1.0);
    let chosen: Vec<Vec<(usize, f32)>> =
        (0..tokens).map(|t| vec![(t % experts, 0.7), ((t * t + 1 + t) % experts, 0.3)]).collect();
    let (rival, bench) = (rival::Rival::new(2), Bench::new(2).expect("threads"));
    for dtype in BLOCKS {
        let layout = TileLayout::new(hidden, ffn, dtype).expect("a layout");
        let mut all = |rows, columns| -> Vec<Vec<u8>> {
            (0..experts).map(|_| matrix(dtype, rows, columns, random)).collect()
        };
        // Weights of 0.02 leave outputs that are small but not zero.
        let (gate, up, down) = (all(ffn, hidden), all(ffn, hidden), all(hidden, ffn));
        let blobs: Vec<Vec<u8>> =
            (0..experts).map(|e| layout.pack(&[&*gate[e], &*up[e]].concat(), &down[e])).collect();
        let ours =
            bench.experts(&Layer::new(layout, &blobs).expect("a layer"), &x, &chosen).expect("an output");
        let ours: Vec<f64> = ours.iter().copied().map(f64::from).collect();

        for buffer in [rival::Buffer::Plain, rival::Buffer::Repacked] {
            let stacked = |shape, matrices: &[Vec<u8>]| {
                let mut weights = rival::Weights::new(buffer, dtype, shape, 1)?;
                weights.set(0, &matrices.concat());
                Some(weights)
            };
            let (Some(gate), Some(up), Some(down)) = (
                stacked([experts, ffn, hidden], &gate),
                stacked([experts, ffn, hidden], &up),
                stacked([experts, hidden, ffn], &down),
            ) else {
                println!("{}: ggml does not repack it", dtype.name());
                continue;
            };
            let mut layer = rival::Layer::new(&rival, [&gate, &up, &down], tokens, used);
            let ids: Vec<i32> = chosen.iter().flatten().map(|c| c.0 as i32).collect();
            let shares: Vec<f32> = chosen.iter().flatten().map(|c| c.1).collect();
            layer.set_input(&x, &ids, &shares);
            layer.run();
            let off = nmse(&layer.output(), &ours);
            println!("{} {buffer:?}: NMSE {off:.1e}", dtype.name());
            // Both sides have rounded activations twice.
            assert!(off <= 4.0 * BAR, "{} {buffer:?}: NMSE {off}", dtype.name());
        }
    }
}
