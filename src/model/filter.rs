//! Localized filtering: two causal two-tap convolutions, a residual and a norm (MODEL.md, "Localized filter").

use rayon::prelude::*;

use super::{activations::Activations, buffer::Buffer, compute::Compute, matrix::Matrix, norm::rms_norm};

/// How a convolution's weights lie in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taps {
    /// All inputs' weights for the previous step, then all for the current one: our containers.
    Split,
    /// `previous, current` input by input: Hugging Face and the authors' GGUF files.
    Interleaved,
}

/// One convolution [in -> out] with a kernel of two steps.
#[derive(Clone, Debug)]
pub struct Conv {
    /// [out, 2 * in].
    pub weight: Matrix,
    /// Order of a row's weights.
    pub taps: Taps,
    /// [out].
    pub bias: Vec<f32>,
}

/// Weights of the filter of one layer.
#[derive(Clone, Debug)]
pub struct Filter {
    /// H -> H/2.
    pub conv1: Conv,
    /// H/2 -> H.
    pub conv2: Conv,
    /// [H]; its epsilon is always 1e-6.
    pub norm: Vec<f32>,
}

/// What the filter remembers between calls: the last input of each convolution, zero before the first token.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterState {
    /// `a[t-1]`, [H].
    pub input: Vec<f32>,
    /// `o1[t-1]`, [H/2].
    pub conv1: Vec<f32>,
}

impl FilterState {
    /// The state before the first token: zero, not the bias.
    pub fn new(hidden: usize) -> Self {
        Self { input: vec![0.0; hidden], conv1: vec![0.0; hidden / 2] }
    }
}

impl Filter {
    /// `g = norm(conv2(conv1(a)) + a)` for the T rows of `a` behind `state`, and the states after each of `ends` rows
    /// (1 to T).
    pub fn apply(
        &self,
        compute: &Compute,
        a: &Activations,
        state: &FilterState,
        ends: &[usize],
    ) -> (Activations, Vec<FilterState>) {
        let o1 = self.conv1.apply(compute, a, &state.input);
        let mut o2 = self.conv2.apply(compute, &o1, &state.conv1).into_data();
        o2.par_iter_mut().zip(a.data()).with_min_len(1 << 14).for_each(|(o, a)| *o += a);
        let after =
            |end: &usize| FilterState { input: a.row(end - 1).to_vec(), conv1: o1.row(end - 1).to_vec() };
        (rms_norm(&o2, &self.norm, 1e-6), ends.iter().map(after).collect())
    }
}

impl Conv {
    /// `out[t] = W0 x[t-1] + W1 x[t] + bias`, where `x[-1]` is `last`.
    fn apply(&self, compute: &Compute, x: &Activations, last: &[f32]) -> Activations {
        let cols = x.cols();
        let mut pairs = Buffer::to_write(2 * x.data().len());
        pairs.par_chunks_exact_mut(2 * cols).enumerate().with_min_len(8).for_each(|(t, pair)| {
            let (previous, current) = (if t == 0 { last } else { x.row(t - 1) }, x.row(t));
            match self.taps {
                Taps::Split => {
                    pair[..cols].copy_from_slice(previous);
                    pair[cols..].copy_from_slice(current);
                }
                Taps::Interleaved => {
                    let (pairs, _) = pair.as_chunks_mut::<2>();
                    pairs.iter_mut().zip(previous.iter().zip(current)).for_each(|(o, (p, c))| *o = [*p, *c]);
                }
            }
        });
        let mut out = compute.product(&self.weight, &Activations::new(pairs, 2 * cols));
        let rows = out.par_chunks_exact_mut(self.bias.len()).with_min_len(8);
        rows.for_each(|row| row.iter_mut().zip(&self.bias).for_each(|(o, b)| *o += b));
        Activations::new(out, self.bias.len())
    }
}
