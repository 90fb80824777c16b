//! Localized filtering: two causal two-tap convolutions, a residual and a norm (MODEL.md, "Localized filter").

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
        o2.iter_mut().zip(a.data()).for_each(|(o, a)| *o += a);
        let after =
            |end: &usize| FilterState { input: a.row(end - 1).to_vec(), conv1: o1.row(end - 1).to_vec() };
        (rms_norm(&o2, &self.norm, 1e-6), ends.iter().map(after).collect())
    }
}

impl Conv {
    /// `out[t] = W0 x[t-1] + W1 x[t] + bias`, where `x[-1]` is `last`.
    fn apply(&self, compute: &Compute, x: &Activations, last: &[f32]) -> Activations {
        let mut pairs = Buffer::with_capacity(2 * x.data().len());
        let mut previous = last;
        for current in x.data().chunks_exact(x.cols()) {
            match self.taps {
                Taps::Split => {
                    pairs.extend_from_slice(previous);
                    pairs.extend_from_slice(current);
                }
                Taps::Interleaved => pairs.extend(previous.iter().zip(current).flat_map(|(p, c)| [*p, *c])),
            }
            previous = current;
        }
        let mut out = compute.product(&self.weight, &Activations::new(pairs, 2 * x.cols()));
        for row in out.chunks_exact_mut(self.bias.len()) {
            row.iter_mut().zip(&self.bias).for_each(|(o, b)| *o += b);
        }
        Activations::new(out, self.bias.len())
    }
}
