//! Localized filtering: two causal two-tap convolutions, a residual and a norm (MODEL.md, "Localized filter").

use rayon::prelude::*;

use super::{activations::Activations, compute::Compute, matrix::Matrix, norm::rms_norm};

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
#[derive(Clone, Debug, Default, PartialEq)]
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

impl FilterState {
    /// Becomes the state after row `r` of the filter's inputs `a` and of the first convolution's outputs `o1`.
    pub fn set(&mut self, r: usize, a: &Activations, o1: &Activations) {
        for (to, row) in [(&mut self.input, a.row(r)), (&mut self.conv1, o1.row(r))] {
            to.clear();
            to.extend_from_slice(row);
        }
    }
}

impl Filter {
    /// `g = norm(conv2(conv1(a)) + a)` for the T rows of `a`, and the outputs of the first convolution. `before` gives the state before a
    /// row with which a sequence begins, and nothing for a row that stands behind the row before it.
    pub fn apply<'b>(
        &self,
        compute: &Compute,
        a: &Activations,
        before: impl Fn(usize) -> Option<&'b FilterState> + Sync,
    ) -> (Activations, Activations) {
        let o1 = self.conv1.apply(compute, a, |t| before(t).map(|state| &state.input[..]));
        let o2 = self.conv2.apply(compute, &o1, |t| before(t).map(|state| &state.conv1[..]));
        let mut o2 = o2.into_data();
        compute.add(&mut o2, a.data());
        (rms_norm(compute, &o2, &self.norm, 1e-6), o1)
    }
}

impl Conv {
    /// `out[t] = W0 x[t-1] + W1 x[t] + bias`, where `x[t-1]` is what `before` says, or else the row before.
    fn apply<'b>(
        &self,
        compute: &Compute,
        x: &Activations,
        before: impl Fn(usize) -> Option<&'b [f32]> + Sync,
    ) -> Activations {
        let cols = x.cols();
        let mut pairs = compute.scratch.buffer::<f32>(2 * x.data().len());
        compute.each(pairs.par_chunks_exact_mut(2 * cols).enumerate().with_min_len(8), |(t, pair)| {
            let (previous, current) = (before(t).unwrap_or_else(|| x.row(t - 1)), x.row(t));
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
        compute.each(rows, |row| row.iter_mut().zip(&self.bias).for_each(|(o, b)| *o += b));
        Activations::new(out, self.bias.len())
    }
}
