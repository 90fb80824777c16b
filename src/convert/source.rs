//! A container as a source of weights, for encoding them in other types.

use std::{collections::HashMap, ops::Range};

use crate::{
    checkpoint::names::{self, Role, TensorSpec},
    container::{Container, ConvLayout, TensorView},
    error::{Error, Result},
    quantize::Weights,
};

/// The weights of a container under their Hugging Face names.
pub(super) struct WeightsOf<'a> {
    container: &'a Container,
    specs: HashMap<String, TensorSpec>,
}

impl<'a> WeightsOf<'a> {
    /// # Errors
    /// [`Error::Unsupported`] when matrices are quantized already: encoding them again would lose more than either
    /// type does by itself.
    pub fn new(container: &'a Container) -> Result<Self> {
        let specs = names::tensors(container.config());
        for spec in &specs {
            let quantized = match container.tensor(&spec.gguf) {
                None => Some("neuron tiles"),
                Some(view) => view.dtype.is_quantized().then(|| view.dtype.name()),
            };
            if let Some(kind) = quantized {
                return Err(Error::Unsupported {
                    path: container.path().into(),
                    what: format!("quantizing {}, which is {kind} already, again", spec.gguf),
                    remedy:
                        "give the checkpoint or a float GGUF file; without --experts and --dense a file is \
                             repacked as it is"
                            .into(),
                });
            }
        }
        let specs = specs.into_iter().map(|spec| (spec.hf.clone(), spec)).collect();
        Ok(Self { container, specs })
    }

    fn view(&self, name: &str) -> Result<(TensorView, ConvLayout)> {
        let missing = || Error::Argument(format!("{} has no tensor {name}", self.container.path().display()));
        let spec = self.specs.get(name).ok_or_else(missing)?;
        match spec.role {
            Role::Conv => self.container.conv(spec.gguf.trim_end_matches(".weight")),
            _ => Ok((self.container.tensor(&spec.gguf).ok_or_else(missing)?, ConvLayout::Interleaved)),
        }
    }
}

impl Weights for WeightsOf<'_> {
    fn read_f32(&self, name: &str, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let (view, layout) = self.view(name)?;
        if range.end > view.rows * view.cols {
            return Err(Error::Argument(format!("tensor {name} has no elements {range:?}")));
        }
        let mut row = vec![0.0; view.cols];
        for r in range.start / view.cols..range.end.div_ceil(view.cols) {
            let bytes = view.bytes.len() / view.rows;
            yuan_kernels::dequantize(view.dtype, &view.bytes[r * bytes..][..bytes], &mut row);
            if layout == ConvLayout::Split {
                row = interleave(&row);
            }
            let first = r * view.cols;
            out.extend(&row[range.start.max(first) - first..range.end.min(first + view.cols) - first]);
        }
        self.container.check_file()
    }
}

/// The taps of one row of a convolution: from all previous, all current to `previous, current` input by input.
pub(super) fn interleave<T: Copy>(row: &[T]) -> Vec<T> {
    let (previous, current) = row.split_at(row.len() / 2);
    previous.iter().zip(current).flat_map(|(p, c)| [*p, *c]).collect()
}

/// The inverse of [`interleave`].
pub(super) fn split_taps<T: Copy>(row: &[T]) -> Vec<T> {
    row.iter().step_by(2).chain(row.iter().skip(1).step_by(2)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_split_and_interleave() {
        assert_eq!(split_taps(&[1, 10, 2, 20, 3, 30]), [1, 2, 3, 10, 20, 30]);
        assert_eq!(interleave(&[1, 2, 3, 10, 20, 30]), [1, 10, 2, 20, 3, 30]);
    }
}
