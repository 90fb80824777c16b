//! `e^x` from additions and multiplications alone. The standard library's is the system's, whose last bit differs from machine
//! to machine, and so would a choice.

/// `e^x` for `x <= 0`, within a few units of the last place; 0 where it is below 1e-300, and for what is no number. Without a branch or a
/// division: a choice may want it of all of 135,040 tokens.
#[inline]
pub fn exp(x: f64) -> f64 {
    // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, the first short enough that n times it is exact.
    const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    // Numbers of this size have no fraction, and n in their last bits.
    const WHOLE: f64 = 1.5 * (1u64 << 52) as f64;
    let shifted = x * std::f64::consts::LOG2_E + WHOLE;
    let n = shifted - WHOLE;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let series = SERIES.iter().rev().fold(0.0, |sum, c| c + sum * r);
    // 2^n, where -996 <= n <= 0.
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    if x >= -690.0 { series * power } else { 0.0 }
}

/// 1 / k! for k up to 13: the next term of e^r is below 1e-17.
const SERIES: [f64; 14] = {
    let (mut series, mut k) = ([1.0; 14], 1);
    while k < series.len() {
        series[k] = series[k - 1] / k as f64;
        k += 1;
    }
    series
};

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

    const BITS: u64 = 16_164_500_875_296_898_306;
}
