//! The types of a checkpoint's tensors where the user leaves them open: those that lose nothing, where there are such.

use yuan_kernels::{DType, tile::TILE_NEURONS};

use super::{Options, Plan, fit, lossless::fits, plan::SourceOf};
use crate::{
    checkpoint::{
        Checkpoint,
        entry::ElementType,
        names::{self, Role, TensorSpec},
    },
    config::RopePrecision,
    error::{Error, Result},
};

/// Tensors that an error names.
const NAMED: usize = 5;

/// What the user asked for. What is left open follows from the checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wishes {
    /// Type of the experts.
    pub experts: Option<DType>,
    /// Type of the other matrices.
    pub dense: Option<DType>,
    /// Rotary convention to record in place of the config's.
    pub rope: Option<RopePrecision>,
    /// Rotary base to record in place of the config's.
    pub rope_base: Option<f32>,
    /// Every weight is to be the checkpoint's.
    pub lossless: bool,
    /// The most bytes of the container: types that are left open are those that lose the least within them (`convert::within_size`).
    pub size: Option<u64>,
}

impl Wishes {
    /// Whether a type is named.
    pub const fn name_types(&self) -> bool {
        self.experts.is_some() || self.dense.is_some()
    }

    /// The types that a checkpoint of floats gets.
    pub fn options(&self) -> Options {
        let default = Options::default();
        Options {
            experts: self.experts.unwrap_or(default.experts),
            dense: self.dense.unwrap_or(default.dense),
            rope: self.rope,
            rope_base: self.rope_base,
        }
    }
}

/// Plans a container of a checkpoint with quantized matrices, or one that is to lose nothing.
///
/// # Errors
/// Those of [`Plan::new`] and of reading; [`Error::Argument`] for tensors that lose something although nothing may be lost.
pub(super) fn plan(checkpoint: &Checkpoint, wishes: &Wishes) -> Result<Plan> {
    let choice = Choice { checkpoint, wishes };
    let options = wishes.options();
    options.validate()?;
    let specs = names::tensors(checkpoint.config());
    let experts = choice.experts(&specs)?;
    // No tiles, where each matrix has a type of its own.
    let options = Options { experts: experts.unwrap_or(DType::F32), ..options };
    let mut plan = Plan::of_types(checkpoint.config().clone(), &options, &|spec, cols| match spec.role {
        Role::ExpertIn { .. } | Role::ExpertOut { .. } => match experts {
            Some(dtype) => Ok(fit(dtype, cols)),
            None => Ok(choice.float(spec)),
        },
        _ => choice.dense(spec, cols),
    })?;
    plan.packed = checkpoint.largest_packed();
    plan.losses =
        plan.items.iter().map(|item| choice.loss(&item.source, item.dtype)).collect::<Result<_>>()?;
    let lost: Vec<String> = plan
        .items
        .iter()
        .zip(&plan.losses)
        .filter_map(|(item, loss)| {
            Some(format!("\n  {}, {}: {}", item.name, item.dtype.name(), loss.as_ref()?))
        })
        .collect();
    if wishes.lossless && !lost.is_empty() {
        let more = match lost.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!("\n  and {more} more"),
        };
        return Err(Error::Argument(format!(
            "nothing is to be lost (--lossless), but {} tensors would not be those of {}:{}{more}\nLeave out --lossless, or the types that lose; \
             with --experts f32 --dense f32 nothing is lost",
            lost.len(),
            checkpoint.folder().display(),
            lost[..lost.len().min(NAMED)].concat(),
        )));
    }
    Ok(plan)
}

struct Choice<'a> {
    checkpoint: &'a Checkpoint,
    wishes: &'a Wishes,
}

impl Choice<'_> {
    /// The type of all experts; `None`: each matrix has that of its floats.
    fn experts(&self, specs: &[TensorSpec]) -> Result<Option<DType>> {
        if self.wishes.experts.is_some() {
            return Ok(self.wishes.experts);
        }
        let (mut widest, mut fit_q4_0) = (0, self.checkpoint.config().hidden.is_multiple_of(TILE_NEURONS));
        let is_expert =
            |spec: &&TensorSpec| matches!(spec.role, Role::ExpertIn { .. } | Role::ExpertOut { .. });
        for spec in specs.iter().filter(is_expert) {
            let facts = self.checkpoint.facts(&spec.hf)?;
            let whole_blocks = DType::Q4_0.row_bytes(spec.shape[1]).is_some();
            fit_q4_0 &= whole_blocks && facts.is_some_and(|facts| fits(&facts, DType::Q4_0).is_ok());
            widest = widest.max(facts.map_or(0, |facts| facts.bits));
        }
        Ok(match (self.wishes.lossless, widest) {
            (_, 4 | 8) if fit_q4_0 => Some(DType::Q4_0),
            (true, 0) => None,
            // What it does not hold is named, and refused.
            (true, _) | (_, 8) => Some(DType::Q8_0),
            _ => Some(Options::default().experts),
        })
    }

    /// The type of a matrix that is no expert.
    fn dense(&self, spec: &TensorSpec, cols: usize) -> Result<DType> {
        let wanted = self.wishes.options().of(spec.role, self.checkpoint.config());
        if self.wishes.dense.is_some() {
            return Ok(fit(wanted, cols));
        }
        if let Some(facts) = self.checkpoint.facts(&spec.hf)? {
            let holds = |dtype: &DType| fits(&facts, *dtype).is_ok() && dtype.row_bytes(cols).is_some();
            let exact = [DType::Q4_0, DType::Q8_0].into_iter().find(holds);
            return Ok(exact.unwrap_or_else(|| fit(wanted, cols)));
        }
        // Of 16 bits there are two types, and one of them loses nothing.
        let float = self.float(spec);
        let is_exact = self.wishes.lossless || (wanted == DType::F16 && float == DType::Bf16);
        Ok(if is_exact { float } else { fit(wanted, cols) })
    }

    /// The type of a tensor's floats in the checkpoint.
    fn float(&self, spec: &TensorSpec) -> DType {
        match self.checkpoint.element(&spec.hf) {
            Some(ElementType::F16) => DType::F16,
            Some(ElementType::Bf16) => DType::Bf16,
            _ => DType::F32,
        }
    }

    /// Why tensors of the checkpoint lose something in `dtype`, if they do.
    fn loss(&self, source: &SourceOf, dtype: DType) -> Result<Option<String>> {
        match source {
            SourceOf::Matrix(name) | SourceOf::Conv(name) => self.loss_of(name, dtype),
            SourceOf::Tiles { w1, w2 } => Ok(self.loss_of(w1, dtype)?.or(self.loss_of(w2, dtype)?)),
        }
    }

    fn loss_of(&self, name: &str, dtype: DType) -> Result<Option<String>> {
        if let Some(facts) = self.checkpoint.facts(name)? {
            return Ok(fits(&facts, dtype).err().map(str::to_owned));
        }
        let exact = match self.checkpoint.element(name) {
            Some(ElementType::F16) => [DType::F16, DType::F32].contains(&dtype),
            Some(ElementType::Bf16) => [DType::Bf16, DType::F32].contains(&dtype),
            _ => dtype == DType::F32,
        };
        let element = || self.checkpoint.element(name).map_or("F32".into(), ToString::to_string);
        Ok((!exact).then(|| format!("the checkpoint has it in {}", element().to_lowercase())))
    }
}
