//! `e^x` from additions and multiplications alone. The standard library's is the system's, whose last bit differs from machine
//! to machine, and so would a choice.

/// `e^x` for `x <= 0`, within a few units of the last place; 0 where it is below 1e-300, and for what is no number.
pub fn exp(x: f64) -> f64 {
    if x.is_nan() || x < -690.0 {
        return 0.0;
    }
    // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, the first short enough that n times it is exact.
    const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let n = (x * std::f64::consts::LOG2_E).round();
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // The series of e^r up to r^13 / 13!, whose next term is below 1e-17.
    let series = (1..=13).rev().fold(1.0, |sum, k| 1.0 + sum * r / f64::from(k));
    // 2^n, where -996 <= n <= 0.
    series * f64::from_bits(((1023 + n as i64) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn it_is_the_exponential() {
        for i in 0..200_000 {
            let x = -f64::from(i) * 0.001_737;
            let (found, wanted) = (exp(x), x.exp());
            assert!((found - wanted).abs() <= 4.0 * f64::EPSILON * wanted, "e^{x}: {found} and {wanted}");
        }
        assert_eq!([exp(0.0), exp(-1e9), exp(f64::NEG_INFINITY), exp(f64::NAN)], [1.0, 0.0, 0.0, 0.0]);
    }

    /// These bits are the same on every machine: that is what the function is for.
    #[test]
    fn its_bits_are_these() {
        let mut hash = 0u64;
        for i in 0..100_000 {
            hash = (hash.rotate_left(5) ^ exp(-f64::from(i) * 0.0063).to_bits())
                .wrapping_mul(0x2545_F491_4F6C_DD1D);
        }
        assert_eq!(hash, BITS);
    }

    const BITS: u64 = 7_114_695_328_610_145_809;
}
