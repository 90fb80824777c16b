//! Rotary embedding of the leading dims of each head, under the three rounding conventions (MODEL.md). Sines and powers are the crate `libm`'s, since those of std are the
//! system's, whose last bits differ: between glibc and musl, and within glibc between CPUs.

use std::f64::consts::TAU;

use half::bf16;

use crate::config::{ModelConfig, RopePrecision, Yarn};

/// Full turns within the original context from which on YaRN leaves a frequency alone, and up to which it stretches it by the whole factor.
const YARN_TURNS: (f64, f64) = (32.0, 1.0);

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
    /// `base^(-2j / dims)` for `j < dims / 2`, stretched by `yarn` and rounded as the convention says.
    pub fn new(dims: usize, base: f32, precision: RopePrecision, yarn: Option<Yarn>) -> Self {
        let base = f64::from(base);
        let frequency = |j: usize| libm::pow(base, -((2 * j) as f64) / dims as f64);
        let stretch = yarn.map(|yarn| stretch(dims, base, yarn));
        let stretched = |j: usize| stretch.as_ref().map_or(1.0, |stretch| stretch(j));
        let round = |f: f32| if precision == RopePrecision::F32 { f } else { bf(f) };
        let inverse = (0..dims / 2).map(|j| round((frequency(j) / stretched(j)) as f32));
        Self { inverse: inverse.collect(), precision }
    }

    /// The rotation of `config`'s heads.
    pub fn of(config: &ModelConfig) -> Self {
        Self::new(config.rope_dims, config.rope_base, config.rope_precision, config.yarn)
    }

    /// The frequencies, in radians for each position.
    pub fn frequencies(&self) -> &[f32] {
        &self.inverse
    }

    /// Dims that rotate.
    pub fn dims(&self) -> usize {
        2 * self.inverse.len()
    }

    /// `(cos, sin)` of every angle at `position`, `dims / 2` pairs.
    pub fn at(&self, position: usize) -> impl Iterator<Item = (f32, f32)> {
        let position = position as f32;
        let pair = move |&inverse: &f32| match self.precision {
            RopePrecision::F32 | RopePrecision::Mixed => {
                let angle = position * inverse;
                cos_sin(angle)
            }
            RopePrecision::HfBf16 => {
                let angle = bf(bf(position) * inverse);
                let (cos, sin) = cos_sin(angle);
                (bf(cos), bf(sin))
            }
        };
        self.inverse.iter().map(pair)
    }
}

/// The cosine and the sine, rounded once: the same on every machine.
fn cos_sin(angle: f32) -> (f32, f32) {
    let angle = f64::from(angle);
    (libm::cos(angle) as f32, libm::sin(angle) as f32)
}

/// By what YaRN divides frequency `j`: 1 where it makes many turns in the original context, the factor where it makes none, and between them what
/// Yuan 3.0 has, which is `(1 - keep) factor + keep`. (Elsewhere the frequency is multiplied by `(1 - keep) / factor + keep`.)
fn stretch(dims: usize, base: f64, yarn: Yarn) -> impl Fn(usize) -> f64 {
    let turns =
        |turns: f64| dims as f64 * libm::log(yarn.original as f64 / (turns * TAU)) / (2.0 * libm::log(base));
    let low = turns(YARN_TURNS.0).floor().max(0.0);
    let high = turns(YARN_TURNS.1).ceil().min(dims as f64 - 1.0);
    let high = if high == low { high + 0.001 } else { high };
    move |j| {
        let keep = 1.0 - ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 - keep) * f64::from(yarn.factor) + keep
    }
}

/// Rotates the first `2 * angles.len()` entries of `head` in place: entry `j` pairs with entry `j + dims / 2`
/// (the rotate-half form); the others pass.
pub fn rotate(head: &mut [f32], angles: &[[f32; 2]]) {
    let (low, rest) = head.split_at_mut(angles.len());
    for ((a, b), &[cos, sin]) in low.iter_mut().zip(rest).zip(angles) {
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
            let angles: Vec<_> = Rope::new(4, 10000.0, precision, None).at(0).map(<[f32; 2]>::from).collect();
            rotate(&mut head, &angles);
            assert_eq!(head, [0., 1., 2., 3., 4., 5., 6., 7.]);
        }
    }

    #[test]
    fn a_quarter_turn_swaps_the_pair() {
        let mut head = [1.0, 2.0, 9.0];
        rotate(&mut head, &[[0.0, 1.0]]);
        assert_eq!(head, [-2.0, 1.0, 9.0]);
    }
}
