//! The block encoders: ggml's bytes where its reference is exact, an error no larger than ggml's where it searches, and
//! sane blocks for any weights.

#[path = "common/fixture.rs"]
mod fixture;

use std::{fs, path::Path};

use fixture::fixture;
use proptest::prelude::*;
use safetensors::SafeTensors;
use yuan::quantize::{DType, encode};
use yuan_kernels::dequantize;

const QUANTIZED: [DType; 5] = [DType::Q4_0, DType::Q8_0, DType::Q3_K, DType::Q4_K, DType::Q6_K];

fn encoded(dtype: DType, weights: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; dtype.row_bytes(weights.len()).expect("whole blocks")];
    encode(dtype, weights, &mut bytes);
    bytes
}

fn round_trip(dtype: DType, weights: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; weights.len()];
    dequantize(dtype, &encoded(dtype, weights), &mut out);
    out
}

/// Root of the mean square of the differences, and of the weights.
fn error(dtype: DType, weights: &[f32]) -> (f64, f64) {
    let mean_square = |sum: f64| (sum / weights.len() as f64).sqrt();
    let out = round_trip(dtype, weights);
    let difference = weights.iter().zip(&out).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    (mean_square(difference), mean_square(weights.iter().map(|w| f64::from(*w).powi(2)).sum()))
}

#[test]
fn blocks_equal_those_of_ggml_or_lose_less() {
    let Some(folder) = fixture("quant") else { return };
    let [file, json] = ["quant.safetensors", "quant.json"].map(|name| fs::read(folder.join(name)).unwrap());
    let goldens = SafeTensors::deserialize(&file).expect("fixtures are sound");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("fixtures are sound");
    let matrix = goldens.tensor("matrix").expect("the matrix").data();
    let matrix: Vec<f32> = matrix.as_chunks().0.iter().map(|w| f32::from_le_bytes(*w)).collect();

    for (dtype, name) in [(DType::Q4_0, "Q4_0"), (DType::Q8_0, "Q8_0")] {
        let golden = goldens.tensor(&format!("{name}.bytes")).expect("bytes").data();
        for (i, (found, golden)) in encoded(dtype, &matrix)
            .chunks(dtype.block_bytes())
            .zip(golden.chunks(dtype.block_bytes()))
            .enumerate()
        {
            assert_eq!(found, golden, "{name}, block {i}");
        }
    }
    for (dtype, name) in [(DType::Q3_K, "Q3_K"), (DType::Q4_K, "Q4_K"), (DType::Q6_K, "Q6_K")] {
        let ggml = json["types"][name]["rmse"].as_f64().expect("an rmse");
        // Of some types the goldens have the first rows only.
        let golden = goldens.tensor(&format!("{name}.bytes")).expect("bytes").data();
        let weights = golden.len() / dtype.block_bytes() * dtype.block_len();
        let (rmse, _) = error(dtype, &matrix[..weights]);
        println!("{name}: rmse {rmse:.6}, ggml {ggml:.6}");
        assert!(rmse <= ggml, "{name}: rmse {rmse}, ggml's is {ggml}");
    }
}

#[test]
fn experts_of_the_demo_model_lose_no_more_than_with_ggml() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-model");
    let file = fs::read(folder.join("model.safetensors")).unwrap();
    let model = SafeTensors::deserialize(&file).expect("the demo model is sound");
    let mut weights = Vec::new();
    for (name, tensor) in model.tensors() {
        if name.contains(".experts.") {
            weights
                .extend(tensor.data().as_chunks().0.iter().map(|w| half::bf16::from_le_bytes(*w).to_f32()));
        }
    }
    // Percent, from the model's README.
    for (dtype, ggml) in [(DType::Q4_0, 8.58), (DType::Q4_K, 7.13), (DType::Q8_0, 0.53)] {
        let (difference, size) = error(dtype, &weights);
        let percent = 100.0 * difference / size;
        println!("{}: {percent:.4} %, ggml {ggml} %", dtype.name());
        assert!(percent < ggml + 0.005, "{}: {percent} %, ggml {ggml} %", dtype.name());
    }
}

#[test]
fn floats_round_to_even_and_saturate() {
    let (tie, above) = (1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0);
    let found = round_trip(DType::F16, &[tie, above, 1e9, -70_000.0, 65_519.0, 0.0]);
    assert_eq!(found, [1.0, 1.0 + 2.0 / 1024.0, 65_504.0, -65_504.0, 65_504.0, 0.0]);
    let (tie, above) = (1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0);
    let largest = half::bf16::MAX.to_f32();
    assert_eq!(
        round_trip(DType::Bf16, &[tie, above, f32::MAX, f32::MIN]),
        [1.0, 1.0 + 2.0 / 128.0, largest, -largest]
    );
    assert_eq!(round_trip(DType::F32, &[f32::MAX, 1e-40]), [f32::MAX, 1e-40]);
}

#[test]
fn zeros_stay_zeros() {
    for dtype in QUANTIZED {
        assert!(round_trip(dtype, &[0.0; 256]).iter().all(|&w| w == 0.0), "{dtype:?}");
        assert!(round_trip(dtype, &[-0.0; 256]).iter().all(|&w| w == 0.0), "{dtype:?}");
    }
}

#[test]
fn a_constant_row_is_nearly_exact() {
    for constant in [1.0, -1.0, 0.013, -0.37, 2000.0] {
        for dtype in QUANTIZED {
            for w in round_trip(dtype, &[constant; 256]) {
                // f16 scales have 11 bits; the small one of Q6_K steps by 2^-24, which its codes and quants multiply.
                let allowed = (constant.abs() * 1e-3).max(1e-4);
                assert!((w - constant).abs() < allowed, "{dtype:?}: {constant} became {w}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "bytes of 32 q4_k weights")]
fn a_broken_block_is_refused() {
    encode(DType::Q4_K, &[0.0; 32], &mut [0; 18]);
}

/// Rows of 256 weights of every magnitude, alike or mixed, with zeros, ties and extremes among them.
fn rows() -> impl Strategy<Value = Vec<f32>> {
    let finite = prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO;
    let ordinary = (-1.0_f32..1.0, -40_i32..38).prop_flat_map(|(centre, exponent)| {
        let scale = 10_f32.powi(exponent);
        prop::collection::vec((centre - 1.0..centre + 1.0).prop_map(move |w| w * scale), 256)
    });
    let extreme =
        prop::sample::select(vec![0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, -1e-45, 1.0, -65_504.0]);
    prop_oneof![ordinary, prop::collection::vec(finite, 256), prop::collection::vec(extreme, 256)]
}

proptest! {
    #[test]
    fn any_finite_row_gives_finite_weights(row in rows()) {
        for dtype in QUANTIZED.into_iter().chain([DType::F16, DType::Bf16]) {
            let out = round_trip(dtype, &row);
            prop_assert!(out.iter().all(|w| w.is_finite()), "{:?}", dtype);
            // Weights stay in the range of the row, widened for the rounding: by half a step, of which the codes of three bits have four from zero to their
            // end, so at most by a seventh of the range (4 s <= range + s / 2).
            let range = row.iter().chain(&[0.0]).fold(0.0_f32, |a, w| a.max(w.abs()));
            let widened = if dtype == DType::Q3_K { range * (8.0 / 7.0 + 1e-3) } else { range * 1.1 };
            for w in out {
                prop_assert!(w.abs() <= widened + 1e-5, "{:?}: {} in a row within {}", dtype, w, range);
            }
        }
    }

    #[test]
    fn small_blocks_stay_within_half_a_step(
        row in prop::collection::vec(-1.0_f32..1.0, 32),
        exponent in -1_i32..5,
    ) {
        let row: Vec<f32> = row.iter().map(|w| w * 10_f32.powi(exponent)).collect();
        let largest = row.iter().copied().fold(0.0_f32, |a, w| if w.abs() > a.abs() { w } else { a });
        for (dtype, steps) in [(DType::Q8_0, 127.0), (DType::Q4_0, -8.0)] {
            let step = largest / steps;
            for (w, out) in row.iter().zip(round_trip(dtype, &row)) {
                // Q4_0 has no 8: what lies opposite the largest weight may be a whole step away. f16 rounds the step.
                let cut = dtype == DType::Q4_0 && w / step > 7.5;
                let allowed = step.abs() * if cut { 1.0 } else { 0.5 } + largest.abs() / 2048.0 + 1e-6;
                prop_assert!((w - out).abs() <= allowed, "{:?}: {} became {}, step {}", dtype, w, out, step);
            }
        }
    }

    #[test]
    fn searched_blocks_lose_less_than_plain_ones(row in prop::collection::vec(-1.0_f32..1.0, 256)) {
        // Q4_K has more bits than Q4_0 and Q3_K, and Q6_K more than Q4_K.
        let [q4_0, q3_k, q4_k, q6_k] =
            [DType::Q4_0, DType::Q3_K, DType::Q4_K, DType::Q6_K].map(|dtype| error(dtype, &row).0);
        prop_assert!(q4_k < q4_0 && q4_k < q3_k && q6_k < q4_k, "{} {} {} {}", q4_0, q3_k, q4_k, q6_k);
    }
}
