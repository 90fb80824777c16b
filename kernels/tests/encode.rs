//! The encoders of every instruction set give the same bytes.

use proptest::prelude::*;
use yuan_kernels::encode::{Encoder, Encoders, best_encoders, encoders};
use yuan_kernels::{DType, dequantize};

fn all(e: &Encoders) -> [(DType, Encoder); 5] {
    [
        (DType::Q4_0, e.q4_0),
        (DType::Q8_0, e.q8_0),
        (DType::Q3_K, e.q3_k),
        (DType::Q4_K, e.q4_k),
        (DType::Q6_K, e.q6_k),
    ]
}

fn encoded(dtype: DType, encode: Encoder, weights: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; dtype.row_bytes(weights.len()).expect("whole blocks")];
    encode(weights, &mut bytes);
    bytes
}

/// Rows of several blocks: of one magnitude, of any finite numbers, and of extremes.
fn rows() -> impl Strategy<Value = Vec<f32>> {
    let ordinary = (-30_i32..30).prop_flat_map(|exponent| {
        let scale = 10_f32.powi(exponent);
        prop::collection::vec((-1.0_f32..1.0).prop_map(move |w| w * scale), 768)
    });
    let finite = prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO;
    let extreme = prop::sample::select(vec![0.0, -0.0, f32::MAX, f32::MIN, 1e-45, 1.0, 0.5, -8.0, 127.0]);
    prop_oneof![ordinary, prop::collection::vec(finite, 256), prop::collection::vec(extreme, 256)]
}

proptest! {
    #[test]
    fn every_instruction_set_gives_the_same_bytes(row in rows()) {
        let baseline = encoders().last().expect("the baseline");
        for table in encoders() {
            for ((dtype, encode), (_, expected)) in all(table).into_iter().zip(all(baseline)) {
                let (found, expected) = (encoded(dtype, encode, &row), encoded(dtype, expected, &row));
                prop_assert!(found == expected, "{} {}", table.name, dtype.name());
            }
        }
    }

    #[test]
    fn a_block_does_not_depend_on_its_neighbours(row in rows()) {
        for (dtype, encode) in all(best_encoders()) {
            let apart: Vec<u8> = row.chunks(256).flat_map(|block| encoded(dtype, encode, block)).collect();
            prop_assert!(encoded(dtype, encode, &row) == apart, "{}", dtype.name());
        }
    }
}

/// A block's own weights, encoded once more, give nearly themselves.
#[test]
fn encoding_twice_changes_little() {
    let weights: Vec<f32> = (0..1024).map(|i| ((i * i) as f32).sin()).collect();
    for (dtype, encode) in all(best_encoders()) {
        let mut once = vec![0.0; weights.len()];
        dequantize(dtype, &encoded(dtype, encode, &weights), &mut once);
        let mut twice = vec![0.0; weights.len()];
        dequantize(dtype, &encoded(dtype, encode, &once), &mut twice);
        let square = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        assert!(square(&once, &twice) <= 0.2 * square(&weights, &once), "{}", dtype.name());
    }
}

#[test]
#[should_panic(expected = "bytes of 33 weights")]
fn a_broken_block_is_refused() {
    (best_encoders().q8_0)(&[0.0; 33], &mut [0; 34]);
}
