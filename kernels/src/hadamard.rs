//! The rotation of keys before they are quantized to 4 bits, and of queries: the Walsh-Hadamard transform, by which a few large numbers become many of usual size.
//!
//! The transform of `n` numbers, a power of two: for `h = n/2, n/4, .., 1`, each pair `(x[i], x[i + h])` whose `i` has no bit of `h` becomes
//! `(x[i] + x[i + h], x[i] - x[i + h])`; then every number is multiplied by `1/sqrt(n)`, rounded to f32. It is orthonormal and its own inverse, but
//! for rounding. No number is a sum of more than two before it is rounded, so the bits are the same whatever vectors compute them.

/// Transforms each block of `width` numbers of `x`.
#[inline(always)]
pub(crate) fn rotate(x: &mut [f32], width: usize) {
    assert!(width.is_power_of_two() && x.len().is_multiple_of(width), "whole blocks of a power of two");
    let scale = 1.0 / (width as f32).sqrt();
    for x in x.chunks_exact_mut(width) {
        let mut h = width / 2;
        while h >= LANES {
            for pair in x.chunks_exact_mut(2 * h) {
                let (a, b) = pair.split_at_mut(h);
                for (a, b) in a.as_chunks_mut::<LANES>().0.iter_mut().zip(b.as_chunks_mut::<LANES>().0) {
                    for k in 0..LANES {
                        (a[k], b[k]) = (a[k] + b[k], a[k] - b[k]);
                    }
                }
            }
            h /= 2;
        }
        let (lanes, few) = x.as_chunks_mut::<LANES>();
        for x in lanes {
            *x = within::<1>(within::<2>(within::<4>(*x)));
            x.iter_mut().for_each(|x| *x *= scale);
        }
        // A block of fewer numbers than there are lanes.
        while h > 0 && !few.is_empty() {
            for pair in few.chunks_exact_mut(2 * h) {
                let (a, b) = pair.split_at_mut(h);
                a.iter_mut().zip(b).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
            }
            h /= 2;
        }
        few.iter_mut().for_each(|x| *x *= scale);
    }
}

/// Numbers of a vector.
const LANES: usize = 8;

/// The pairs that lie `H` apart in one vector. A sign that is multiplied in rounds nothing.
#[inline(always)]
fn within<const H: usize>(x: [f32; LANES]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for k in 0..LANES {
        out[k] = if k & H == 0 { x[k] + x[k | H] } else { x[k & !H] - x[k] };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::encode::encoders;

    /// As the first lines of this file have it.
    fn defined(x: &mut [f32]) {
        let n = x.len();
        let mut h = n / 2;
        while h > 0 {
            for i in (0..n).filter(|i| i & h == 0) {
                (x[i], x[i + h]) = (x[i] + x[i + h], x[i] - x[i + h]);
            }
            h /= 2;
        }
        x.iter_mut().for_each(|x| *x *= 1.0 / (n as f32).sqrt());
    }

    fn numbers(n: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 2_654_435_761) >> 9 & 0xffff) as f32 / 32768.0 - 1.0;
        (0..n).map(|i| if i % 61 == 7 { 100.0 * number(i) } else { number(i) }).collect()
    }

    #[test]
    fn every_rotation_has_the_bits_of_the_definition() {
        for encoders in encoders() {
            for width in (0..11).map(|bits| 1 << bits) {
                let mut found = numbers(3 * width);
                let mut wanted = found.clone();
                (encoders.rotate)(&mut found, width);
                wanted.chunks_exact_mut(width).for_each(defined);
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&found), bits(&wanted), "{}, {width}", encoders.name);
            }
        }
    }

    #[test]
    fn a_rotation_keeps_products_and_is_its_own_inverse() {
        let (a, b) = (numbers(256), numbers(512)[256..].to_vec());
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let (mut ra, mut rb) = (a.clone(), b.clone());
        defined(&mut ra);
        defined(&mut rb);
        assert!((dot(&a, &b) - dot(&ra, &rb)).abs() < 1e-3 * dot(&a, &a));
        let largest = |x: &[f32]| x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        assert!(largest(&ra) < 0.5 * largest(&a), "a large number is spread over all");
        defined(&mut ra);
        assert!(a.iter().zip(&ra).all(|(a, b)| (a - b).abs() < 1e-4));
    }
}
