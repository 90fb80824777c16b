//! SwiGLU and attention: every table gives the bits of `scalar`, and `scalar` is what the names say.

use half::f16;
use yuan_kernels::{BlockQ4_0, BlockQ8_0, DType, Kernels, available, by_name, dequantize};

/// xorshift: the same numbers on every run.
struct Random(u64);

impl Random {
    fn float(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, n: usize, size: f32) -> Vec<f32> {
        (0..n).map(|_| size * self.float()).collect()
    }
}

fn scalar() -> &'static Kernels {
    by_name("scalar").expect("every machine runs the scalar kernels")
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect()
}

const EXTREMES: [f32; 10] =
    [0.0, -0.0, 1.0, -87.5, 88.5, 1e30, -1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];

#[test]
fn exponentials_are_close_and_agree() {
    let random = &mut Random(1);
    for n in [0, 1, 7, 8, 31, 32, 33, 300] {
        let x: Vec<f32> = random.floats(n, 80.0).into_iter().chain(EXTREMES).collect();
        let of = |k: &Kernels| {
            let mut x = x.clone();
            let sum = (k.exp_sum)(&mut x, 3.0);
            (bits(&[sum]), bits(&x), x)
        };
        let expected = of(scalar());
        let one_by_one: Vec<f32> = x.iter().map(|x| yuan_kernels::exp(*x)).collect();
        for k in available() {
            let mut powers = x.clone();
            (k.exps)(&mut powers);
            assert_eq!(bits(&powers), bits(&one_by_one), "{}, {n}", k.name);
            let (sum, powers, _) = of(k);
            assert_eq!((sum, powers), (expected.0.clone(), expected.1.clone()), "{}, {n}", k.name);
        }
        for (x, power) in x.iter().zip(expected.2).filter(|(x, _)| (-80.0..80.0).contains(*x)) {
            if x - 3.0 < -60.0 {
                assert_eq!(power, 0.0, "e^({x} - 3) is nothing beside e^0");
                continue;
            }
            let exact = f64::from(x - 3.0).exp();
            assert!((f64::from(power) / exact - 1.0).abs() < 3e-7, "e^({x} - 3) is {power}, not {exact}");
        }
    }
}

#[test]
fn swiglu_is_close_and_agrees() {
    let random = &mut Random(2);
    for n in [0, 1, 8, 9, 256, 300] {
        let gate: Vec<f32> = random.floats(n, 20.0).into_iter().chain(EXTREMES).collect();
        let up = random.floats(gate.len(), 2.0);
        let of = |k: &Kernels| {
            let mut gate = gate.clone();
            (k.swiglu)(&mut gate, &up);
            gate
        };
        let expected = of(scalar());
        for k in available() {
            assert_eq!(bits(&of(k)), bits(&expected), "{}, {n}", k.name);
        }
        for ((gate, up), got) in gate.iter().zip(&up).zip(expected).take(n) {
            let exact = f64::from(*gate) / (1.0 + f64::from(-gate).exp()) * f64::from(*up);
            assert!((f64::from(got) - exact).abs() <= 1e-6 * exact.abs() + 1e-12, "{gate}, {up}: {got}");
        }
    }
}

/// Queries, positions and dims around every width of a vector.
fn shapes() -> impl Iterator<Item = (usize, usize, usize)> {
    let dims = [1, 8, 24, 32, 64, 72, 128, 256, 288, 512];
    (0..10).flat_map(move |queries| {
        [0, 1, 3, 37, 64].into_iter().flat_map(move |n| dims.map(|dim| (queries, n, dim)))
    })
}

#[test]
fn scores_agree_bit_for_bit() {
    let random = &mut Random(3);
    for (queries, n, dim) in shapes().chain([(5, 3, 4128)]) {
        let (q, keys) = (random.floats(queries * dim, 1.0), random.floats(n * dim, 1.0));
        let halves: Vec<f16> = keys.iter().map(|&k| f16::from_f32(k)).collect();
        let of = |k: &Kernels| {
            let mut scores = vec![0.0; 2 * queries * n];
            let (a, b) = scores.split_at_mut(queries * n);
            (k.scores_f32)(&q, dim, &keys, a);
            (k.scores_f16)(&q, dim, &halves, b);
            bits(&scores)
        };
        let dots = q.chunks_exact(dim).flat_map(|q| keys.chunks_exact(dim).map(|k| (scalar().dot_f32)(k, q)));
        assert_eq!(of(scalar())[..queries * n], bits(&dots.collect::<Vec<_>>()), "a score is a dot product");
        for k in available() {
            assert_eq!(of(k), of(scalar()), "{}, {queries} x {n} x {dim}", k.name);
        }
    }
}

#[test]
fn mixed_values_agree_bit_for_bit() {
    let random = &mut Random(4);
    for (queries, n, dim) in shapes().chain([(5, 3, 4128)]) {
        let (p, values) = (random.floats(queries * n, 1.0), random.floats(n * dim, 1.0));
        let halves: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
        let y = random.floats(queries * dim, 1.0);
        let of = |k: &Kernels| {
            let mut y = [y.clone(), y.clone()];
            (k.mix_f32)(&p, dim, &values, &mut y[0]);
            (k.mix_f16)(&p, dim, &halves, &mut y[1]);
            y.map(|y| bits(&y))
        };
        for k in available() {
            assert_eq!(of(k), of(scalar()), "{}, {queries} x {n} x {dim}", k.name);
        }
    }
}

#[test]
fn quantized_values_mix_as_their_floats_do() {
    let random = &mut Random(5);
    // Heads of 4128 are more than any table keeps at hand.
    for (queries, n, dim) in shapes().chain([(5, 3, 4128)]).filter(|s| s.2 % 32 == 0) {
        let p = random.floats(queries * n, 1.0);
        let mut scale = || f16::from_f32(random.float());
        let q8: Vec<BlockQ8_0> = (0..n * dim / 32)
            .map(|b| BlockQ8_0 { d: scale(), qs: std::array::from_fn(|k| (b * 37 + k * 11) as i8) })
            .collect();
        let q4: Vec<BlockQ4_0> = (0..n * dim / 32)
            .map(|b| BlockQ4_0 { d: scale(), qs: std::array::from_fn(|k| (b * 37 + k * 11) as u8) })
            .collect();
        let y = random.floats(queries * dim, 1.0);
        let of = |k: &Kernels| {
            let mut y = [y.clone(), y.clone()];
            (k.mix_q8_0)(&p, dim, &q8, &mut y[0]);
            (k.mix_q4_0)(&p, dim, &q4, &mut y[1]);
            y
        };
        let expected = of(scalar());
        for k in available() {
            assert_eq!(
                of(k).map(|y| bits(&y)),
                expected.clone().map(|y| bits(&y)),
                "{}, {queries} x {n} x {dim}",
                k.name
            );
        }
        for (dtype, bytes, got) in [
            (DType::Q8_0, bytemuck::cast_slice::<_, u8>(&q8), &expected[0]),
            (DType::Q4_0, bytemuck::cast_slice(&q4), &expected[1]),
        ] {
            let (mut values, mut y) = (vec![0.0; n * dim], y.clone());
            dequantize(dtype, bytes, &mut values);
            (scalar().mix_f32)(&p, dim, &values, &mut y);
            let close = y.iter().zip(got).all(|(a, b)| (a - b).abs() <= 1e-3 * (1.0 + a.abs()));
            assert!(close, "{dtype:?}, {queries} x {n} x {dim}");
        }
    }
}
