//! The encoders of every instruction set give the same bytes.

use proptest::prelude::*;
use yuan_kernels::encode::{ByImportance, Columns, Encoder, Encoders, best_encoders, encoders};
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

fn by_importance(e: &Encoders) -> [(DType, &ByImportance); 5] {
    [
        (DType::Q4_0, &e.q4_0_by_importance),
        (DType::Q8_0, &e.q8_0_by_importance),
        (DType::Q3_K, &e.q3_k_by_importance),
        (DType::Q4_K, &e.q4_k_by_importance),
        (DType::Q6_K, &e.q6_k_by_importance),
    ]
}

/// Importance of 256 columns, and what their errors ask of each other, as triangles of second moments have it.
fn inputs() -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
    (prop::collection::vec(1e-3_f32..10.0, 256), prop::collection::vec(-0.2_f32..0.2, 256 * 256))
}

/// What errors of 256 columns cost together, by what they are worth and what is above the diagonal of `factor`.
fn costs(worth: &[f32], factor: &[f32]) -> Vec<f32> {
    let unit = |i: usize, k: usize| match k.cmp(&i) {
        std::cmp::Ordering::Less => 0.0,
        std::cmp::Ordering::Equal => 1.0,
        std::cmp::Ordering::Greater => factor[i * 256 + k],
    };
    let cost = |i: usize, j: usize| (i.max(j)..256).map(|k| unit(i, k) * worth[k] * unit(j, k)).sum::<f32>();
    (0..256 * 256).map(|at| cost(at / 256, at % 256)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn by_importance_every_instruction_set_gives_the_same_bytes(row in rows(), (importance, factor) in inputs()) {
        // What extreme weights lose may be no number, whose bits are nobody's concern.
        let row: Vec<f32> = row[..256].iter().map(|w| w.clamp(-1e18, 1e18)).collect();
        let row = &row[..];
        let cost = costs(&importance, &factor);
        let of = |table: &Encoders| {
            by_importance(table).map(|(dtype, way)| {
                let mut out = vec![vec![0; dtype.row_bytes(256).unwrap()]; 2];
                (way.weighted)(row, &importance, &mut out[0]);
                let (mut moved, mut errors) = (row.to_vec(), vec![0.0; 256]);
                let columns = Columns { worth: &importance, factor: &factor, stride: 256, cost: &cost };
                (way.feedback)(row, &mut moved, &columns, &mut errors, &mut out[1]);
                let mut sums = moved.clone();
                (table.accumulate)(&errors, 64, &factor, 64, &mut sums, 60);
                (dtype.name(), out, sums.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            })
        };
        let baseline = of(encoders().last().expect("the baseline"));
        for table in encoders() {
            for ((name, bytes, sums), (_, wanted, wanted_sums)) in of(table).into_iter().zip(&baseline) {
                prop_assert!(bytes == *wanted, "{} {name}", table.name);
                prop_assert!(sums == *wanted_sums, "{} {name}: sums", table.name);
            }
        }
    }
}

/// What the encoders weigh is what they lose less of.
#[test]
fn important_columns_lose_less() {
    let weights: Vec<f32> = (0..4096).map(|i| ((i * i) as f32).sin() * (1.0 + (i % 7) as f32)).collect();
    let importance: Vec<f32> = (0..4096).map(|i| if i % 3 == 0 { 30.0 } else { 0.1 }).collect();
    let lost = |dtype, bytes: &[u8]| {
        let mut found = vec![0.0; weights.len()];
        dequantize(dtype, bytes, &mut found);
        let each = weights.iter().zip(&found).zip(&importance);
        each.map(|((w, f), importance)| importance * (w - f) * (w - f)).sum::<f32>()
    };
    for ((dtype, plain), (_, way)) in all(best_encoders()).into_iter().zip(by_importance(best_encoders())) {
        let mut bytes = encoded(dtype, plain, &weights);
        let before = lost(dtype, &bytes);
        (way.weighted)(&weights, &importance, &mut bytes);
        let after = lost(dtype, &bytes);
        println!("{}: {before} {after}", dtype.name());
        assert!(after < 0.95 * before, "{}: {before} {after}", dtype.name());
    }
}

/// Without a factor, and with even importance, feedback is the nearest value on a grid of the least error.
#[test]
fn feedback_of_nothing_loses_as_little_as_the_plain_encoders() {
    let weights: Vec<f32> = (0..256).map(|i| ((i * i) as f32).sin()).collect();
    for ((dtype, plain), (_, way)) in all(best_encoders()).into_iter().zip(by_importance(best_encoders())) {
        let (mut moved, mut errors) = (weights.clone(), vec![0.0; 256]);
        let mut out = vec![0; dtype.row_bytes(256).unwrap()];
        let (worth, factor) = ([1.0; 256], [0.0; 256 * 256]);
        let cost = costs(&worth, &factor);
        let columns = Columns { worth: &worth, factor: &factor, stride: 256, cost: &cost };
        (way.feedback)(&weights, &mut moved, &columns, &mut errors, &mut out);
        let mut found = vec![0.0; 256];
        dequantize(dtype, &out, &mut found);
        let square = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>();
        let off: Vec<f32> = weights.iter().zip(&found).zip(&errors).map(|((w, f), e)| w - f - e).collect();
        assert!(square(&off) <= 1e-6 * square(&weights), "{}: the errors that it tells", dtype.name());
        let mut nearest = vec![0.0; 256];
        dequantize(dtype, &encoded(dtype, plain, &weights), &mut nearest);
        nearest.iter_mut().zip(&weights).for_each(|(n, w)| *n -= w);
        assert!(square(&errors) <= 1.001 * square(&nearest), "{}", dtype.name());
        assert_eq!(moved, weights);
    }
}
