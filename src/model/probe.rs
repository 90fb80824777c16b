//! What tests and calibration see of a pass. Passes without a probe pay one comparison for each place.

/// Places in the forward pass that a [`Probe`] sees. Rows are tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Stage {
    Embedding,
    InputNorm,
    /// The outputs of the filter's first convolution, which the second takes.
    Convolved,
    Filter,
    Query,
    Key,
    Value,
    /// What attention gives to the output projection.
    Attended,
    Attention,
    /// What the router and the experts take, or the MLP of a dense model.
    PostNorm,
    RouterLogits,
    /// Of an expert: the weights of the tokens that it is chosen for, [n, 1]; behind it come its inputs and all of its neurons.
    Chosen(usize),
    /// Of an expert: the rows of [`Stage::PostNorm`] of its tokens.
    ExpertInput(usize),
    /// What the down projection takes, of an expert (in a dense model of the MLP, as expert 0), from this neuron on: 256 neurons, or all.
    Neurons {
        expert: usize,
        first: usize,
    },
    FeedForward,
    Hidden,
    FinalNorm,
}

/// Sees intermediate results as `(stage, layer, rows)`.
pub type Probe<'p> = &'p mut (dyn FnMut(Stage, usize, &[f32]) + Send);

/// The probe of a pass, if there is one.
pub struct Watch<'p>(Option<Probe<'p>>);

impl<'p> Watch<'p> {
    pub fn new(probe: Option<Probe<'p>>) -> Self {
        Self(probe)
    }

    /// Shows rows of a layer.
    pub fn see(&mut self, stage: Stage, layer: usize, rows: &[f32]) {
        if let Some(probe) = &mut self.0 {
            probe(stage, layer, rows);
        }
    }

    /// The probe for the feed forward part of a layer.
    pub fn at(&mut self, layer: usize) -> WatchAt<'_, 'p> {
        WatchAt { watch: self, layer }
    }
}

/// The probe of a pass in one layer.
pub struct WatchAt<'w, 'p> {
    watch: &'w mut Watch<'p>,
    layer: usize,
}

impl WatchAt<'_, '_> {
    /// Whether anybody looks.
    pub fn is_on(&self) -> bool {
        self.watch.0.is_some()
    }

    /// Shows rows.
    pub fn see(&mut self, stage: Stage, rows: &[f32]) {
        self.watch.see(stage, self.layer, rows);
    }
}
