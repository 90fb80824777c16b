//! What the loop needs of a model.

use crate::{
    error::Result,
    model::{Model, Results, Sequence},
};

/// What runs passes: a model.
pub(super) trait Runner: Send + Sync + 'static {
    /// As [`Model::forward`].
    fn forward(&self, sequences: &mut [Sequence<'_>]) -> Results;
    /// As [`Model::logits`].
    fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>>;
    /// Whether this thread computes for a pass: it must not wait for another.
    fn is_inside(&self) -> bool;
}

impl Runner for Model {
    fn forward(&self, sequences: &mut [Sequence<'_>]) -> Results {
        Model::forward(self, sequences)
    }

    fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        Model::logits(self, hidden)
    }

    fn is_inside(&self) -> bool {
        Model::is_inside(self)
    }
}
