//! What the user may choose about the types of a container.

use yuan_kernels::DType;

use crate::{
    checkpoint::names::Role,
    config::{ModelConfig, RopePrecision},
    error::{Error, Result},
};

/// Types of the weights and overrides of the config.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Experts: `q3_k`, `q4_k`, `q4_0`, `q6_k` or `q8_0` as neuron tiles; `f16`, `bf16` or `f32` as rows, for checking.
    pub experts: DType,
    /// Head, attention, filter and dense MLP; the embedding too, unless [`Options::embedding`] says otherwise.
    pub dense: DType,
    /// Rotary convention to record in place of the config's.
    pub rope: Option<RopePrecision>,
    /// Rotary base to record in place of the config's.
    pub rope_base: Option<f32>,
}

impl Default for Options {
    fn default() -> Self {
        Self { experts: DType::Q4_K, dense: DType::Q8_0, rope: None, rope_base: None }
    }
}

impl Options {
    /// # Errors
    /// [`Error::Argument`] that names a type which is not built for dense matrices, or a base that is no base.
    pub fn validate(&self) -> Result<()> {
        use DType::{Bf16, F16, F32, Q4_K, Q6_K, Q8_0};
        if !matches!(self.dense, Q8_0 | Q6_K | Q4_K | F16 | Bf16 | F32) {
            let name = self.dense.name();
            return Err(Error::Argument(format!(
                "dense matrices in {name} are not built; choose q8_0, q6_k, q4_k, f16, bf16 or f32"
            )));
        }
        match self.rope_base {
            Some(base) if !(base >= 1.0 && base.is_finite()) => Err(Error::Argument(format!(
                "a rotary base of {base} makes no sense; published ones are 10000 and 40890, and 1000000 for Yuan 3.0"
            ))),
            _ => Ok(()),
        }
    }

    /// The type that is wanted of a matrix of this role.
    pub(super) fn of(&self, role: Role, config: &ModelConfig) -> DType {
        match role {
            Role::ExpertIn { .. } | Role::ExpertOut { .. } => self.experts,
            Role::Embedding => self.embedding(config),
            _ => self.dense,
        }
    }

    /// The type of the embedding: at least 16 bits, since a token reads one row of it, so that its bits cost no speed. An embedding that is the head, too,
    /// is read as a whole, and has the type of the other matrices.
    pub fn embedding(&self, config: &ModelConfig) -> DType {
        if self.dense.is_quantized() && !config.tied_embeddings { DType::F16 } else { self.dense }
    }

    /// Puts what is chosen of the rotary embedding into `config`.
    ///
    /// # Errors
    /// [`Error::Argument`] when the model has no such.
    pub(crate) fn set_rope(&self, config: &mut ModelConfig) -> Result<()> {
        config.rope_base = self.rope_base.unwrap_or(config.rope_base);
        if let Some(rope) = self.rope {
            *config = config.clone().with_rope(rope).map_err(Error::Argument)?;
        }
        Ok(())
    }
}

/// The type that a row of `cols` takes when `dtype` is wanted: K types need a multiple of 256 and give way to `q8_0`, small
/// blocks need a multiple of 32 and give way to `f16`.
pub fn fit(dtype: DType, cols: usize) -> DType {
    match dtype.row_bytes(cols) {
        Some(_) => dtype,
        None if dtype.block_len() > DType::Q8_0.block_len() => fit(DType::Q8_0, cols),
        None => DType::F16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_do_not_fit_fall_back() {
        assert_eq!(fit(DType::Q4_K, 2048), DType::Q4_K);
        assert_eq!(fit(DType::Q4_K, 128), DType::Q8_0);
        assert_eq!(fit(DType::Q8_0, 40), DType::F16);
        assert_eq!(fit(DType::F32, 7), DType::F32);
    }

    #[test]
    fn an_embedding_that_is_no_head_has_sixteen_bits() {
        let of = |dense, tied_embeddings| {
            let config = ModelConfig { tied_embeddings, ..crate::quantize::synth::tiny() };
            Options { dense, ..Options::default() }.embedding(&config)
        };
        assert_eq!([DType::Q8_0, DType::Q4_K].map(|dense| of(dense, false)), [DType::F16; 2]);
        assert_eq!([DType::Bf16, DType::F32].map(|dense| of(dense, false)), [DType::Bf16, DType::F32]);
        assert_eq!(of(DType::Q8_0, true), DType::Q8_0);
    }

    #[test]
    fn unbuilt_types_are_refused_by_name() {
        let error = Options { dense: DType::Q4_0, ..Options::default() }.validate().unwrap_err();
        assert!(error.to_string().contains("q4_0"));
        assert!(Options { rope_base: Some(0.0), ..Options::default() }.validate().is_err());
    }
}
