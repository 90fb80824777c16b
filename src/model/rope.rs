//! Rotary embedding of the leading dims of each head, under the three rounding conventions (MODEL.md).

use half::bf16;

use crate::config::{ModelConfig, RopePrecision};

/// Rounded to bf16 and widened again.
fn bf(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

/// The inverse frequencies of one convention.
#[derive(Clone, Debug)]
pub struct Rope {
    inverse: Vec<f32>,
    precision: RopePrecision,
}

impl Rope {
    /// `base^(-2j / dims)` for `j < dims / 2`, rounded as the convention says.
    pub fn new(dims: usize, base: f32, precision: RopePrecision) -> Self {
        let frequency = |j: usize| 1.0 / base.powf((2 * j) as f32 / dims as f32);
        let round = |f: f32| if precision == RopePrecision::F32 { f } else { bf(f) };
        Self { inverse: (0..dims / 2).map(|j| round(frequency(j))).collect(), precision }
    }

    /// The rotation of `config`'s heads.
    pub fn of(config: &ModelConfig) -> Self {
        Self::new(config.rope_dims, config.rope_base, config.rope_precision)
    }

    /// Dims that rotate.
    pub fn dims(&self) -> usize {
        2 * self.inverse.len()
    }

    /// `(cos, sin)` of every angle at `position`, `dims / 2` pairs.
    pub fn at(&self, position: usize) -> Vec<(f32, f32)> {
        let position = position as f32;
        let pair = |&inverse: &f32| match self.precision {
            RopePrecision::F32 | RopePrecision::Mixed => {
                let angle = position * inverse;
                (angle.cos(), angle.sin())
            }
            RopePrecision::HfBf16 => {
                let angle = bf(bf(position) * inverse);
                (bf(angle.cos()), bf(angle.sin()))
            }
        };
        self.inverse.iter().map(pair).collect()
    }
}

/// Rotates the first `2 * angles.len()` entries of `head` in place: entry `j` pairs with entry `j + dims / 2`
/// (the rotate-half form); the others pass.
pub fn rotate(head: &mut [f32], angles: &[(f32, f32)]) {
    let (low, rest) = head.split_at_mut(angles.len());
    for ((a, b), &(cos, sin)) in low.iter_mut().zip(rest).zip(angles) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_zero_leaves_a_head_alone() {
        for precision in [RopePrecision::Mixed, RopePrecision::F32, RopePrecision::HfBf16] {
            let mut head: Vec<f32> = (0..8).map(|i| i as f32).collect();
            rotate(&mut head, &Rope::new(4, 10000.0, precision).at(0));
            assert_eq!(head, [0., 1., 2., 3., 4., 5., 6., 7.]);
        }
    }

    #[test]
    fn a_quarter_turn_swaps_the_pair() {
        let mut head = [1.0, 2.0, 9.0];
        rotate(&mut head, &[(0.0, 1.0)]);
        assert_eq!(head, [-2.0, 1.0, 9.0]);
    }
}
