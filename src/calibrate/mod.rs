//! Calibration: text goes through a model, and what its matrices are multiplied with is summed up, for conversions by importance.

mod routing;
mod sums;
mod work;
mod write;

use std::ops::Range;

use sums::Sums;
pub use work::{Work, calibrate};
pub use write::{Writing, write};

use crate::{
    checkpoint::names,
    config::ModelConfig,
    container::imatrix::Imatrix,
    error::Result,
    model::{KvType, Model, Sequence, Want, WideRouter},
};

/// Second moments of what the experts of a layer take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moments {
    /// Of all experts' gates and ups together; of the down of each by itself.
    ByLayer,
    /// Of each expert by itself, every token weighed by the square of the expert's weight for it.
    ByExpert,
}

/// What is summed up of the inputs of a model's matrices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The sums of squares, of all layers.
    pub squares: bool,
    /// The second moments, of these layers; the head counts as the one behind the last.
    pub layers: Range<usize>,
    /// Which second moments.
    pub moments: Moments,
}

/// A calibration that is under way.
#[derive(Debug)]
pub struct Calibration<'m> {
    model: &'m Model,
    sums: Sums,
    /// Of each layer, where it has one.
    routers: Vec<Option<WideRouter>>,
}

impl<'m> Calibration<'m> {
    /// Begins with nothing, or goes on with the sums of another run of the same model.
    pub fn new(model: &'m Model, before: Imatrix) -> Self {
        let routers = (0..model.config().layers).map(|layer| model.router(layer)).collect();
        Self { model, sums: Sums::new(model.config(), before), routers }
    }

    /// Runs some pieces of text in one pass, each by itself from an empty state, and adds what is wanted of them.
    ///
    /// # Errors
    /// Those of [`Model::forward`]; the sums are then worth nothing any more.
    pub fn run(&mut self, pieces: &[&[u32]], kv: KvType, wanted: &Wanted) -> Result<()> {
        let states = pieces.iter().map(|piece| self.model.state(piece.len(), kv));
        let mut states = states.collect::<Result<Vec<_>>>()?;
        let sequences = pieces.iter().zip(&mut states);
        let mut sequences: Vec<Sequence<'_>> = sequences
            .map(|(tokens, state)| Sequence { tokens, drafted: 0, state, want: Want::Hidden })
            .collect();
        let mut ends = Vec::new();
        pieces.iter().for_each(|piece| ends.push(ends.last().unwrap_or(&0) + piece.len()));
        let mut pass = self.sums.pass(&ends, wanted, &self.routers);
        let results = self.model.forward_watched(&mut sequences, &mut |stage, layer, rows| {
            pass.see(stage, layer, rows);
        });
        results.into_iter().try_for_each(|result| result.map(drop))
    }

    /// The sums, to note something in.
    fn sums_mut(&mut self) -> &mut Imatrix {
        self.sums.imatrix_mut()
    }

    /// The sums, when all is done.
    pub fn into_sums(self) -> Imatrix {
        self.sums.into_imatrix()
    }
}

/// Bytes of the second moments of the inputs of each layer, and of the head.
pub fn moments_bytes(config: &ModelConfig, moments: Moments) -> (u64, u64) {
    let (mut layer, mut head) = (0, 0);
    for spec in names::tensors(config) {
        let Some((name, 0)) = names::importance(&spec, config) else { continue };
        let shape = sums::shape(&name, config, moments, spec.shape[1..].iter().product());
        let bytes = shape.map_or(0, |(width, blocks, n)| (width * width * blocks * n * 4) as u64);
        match name.strip_prefix("blk.0.") {
            Some(_) => layer += bytes,
            None if name.starts_with("blk.") => {}
            None => head += bytes,
        }
    }
    if config.experts > 0 {
        let shape = sums::shape(&names::routing(0), config, moments, config.hidden);
        layer += shape.map_or(0, |(width, blocks, n)| (width * width * blocks * n * 4) as u64);
    }
    (layer, head)
}
