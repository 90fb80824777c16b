//! Damaged weights show in what a model computes with them: logits or hidden states that are infinite or not numbers. Only what leaves a call is
//! looked at, which is little beside the work of making it.

use super::Model;
use crate::error::{Error, Result};

impl Model {
    /// Checks logits or hidden states before they leave a call.
    ///
    /// # Errors
    /// [`Error::BadFile`] when one of them is infinite or not a number.
    pub(super) fn check_finite(&self, values: &[f32]) -> Result<()> {
        if all_finite(values) {
            return Ok(());
        }
        Err(Error::BadFile {
            path: self.path.clone(),
            place: "the weights".into(),
            problem: "the model's results are infinite or not numbers, so some weights are damaged".into(),
            remedy: "find out which with `yuan-quant verify`, then copy or convert the file again",
        })
    }
}

/// Values that are checked without a branch between them, so that the compiler checks several at once.
const PIECE: usize = 1024;

/// Whether every value is a finite number.
fn all_finite(values: &[f32]) -> bool {
    let exponent = f32::INFINITY.to_bits();
    let is_odd = |v: &f32| u32::from(v.to_bits() & exponent == exponent);
    values.chunks(PIECE).all(|piece| piece.iter().fold(0, |odd, v| odd | is_odd(v)) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_that_is_not_finite_is_found_anywhere() {
        let mut values: Vec<f32> = (0..2 * PIECE + 77).map(|i| (i as f32 - 900.0) * 1e30).collect();
        values[5] = f32::MAX;
        (values[6], values[7]) = (-0.0, f32::MIN_POSITIVE / 2.0);
        assert!(all_finite(&values) && all_finite(&[]));
        for odd in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7F80_0001)] {
            for at in [0, PIECE - 1, PIECE, values.len() - 1] {
                let before = std::mem::replace(&mut values[at], odd);
                assert!(!all_finite(&values), "{odd} at {at}");
                values[at] = before;
            }
        }
    }
}
