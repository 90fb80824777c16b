//! What the experts of a model do: who chose them, and where they are.

use super::Engine;

/// Where an expert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the drive, to be read when it is chosen.
    Drive,
    /// In memory.
    Memory,
    /// On a GPU; it may be in memory as well.
    Gpu,
}

/// All experts of a model at one moment. Lists go by `layer * per_layer + expert`; they are empty where a model's experts are not in tiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Layers.
    pub layers: usize,
    /// Experts of a layer.
    pub per_layer: usize,
    /// Experts that a token chooses in each layer.
    pub per_token: usize,
    /// Tokens that have chosen each expert since the model was opened. A count never falls. What a pass had chosen before it was cancelled
    /// or failed counts, too, and what drafts had that were refused.
    pub chosen: Vec<u64>,
    /// Where each is. Of mapped experts those count as in memory that were brought in once: the system may have dropped them since, and does not say.
    pub places: Vec<Place>,
}

impl Engine {
    /// What the experts do now. It may be asked for while passes run, which it does not hold up.
    pub fn experts(&self) -> Experts {
        let (model, config) = (self.model(), self.model().config());
        let chosen = model.pager().usage().uses;
        let on_gpu = model.experts_on_gpu();
        let place = |(at, in_memory): (usize, bool)| match (on_gpu.get(at), in_memory) {
            (Some(true), _) => Place::Gpu,
            (_, true) => Place::Memory,
            (_, false) => Place::Drive,
        };
        let places: Vec<_> = model.pager().in_memory().into_iter().enumerate().map(place).collect();
        let layers = if places.is_empty() { 0 } else { config.layers };
        Experts { layers, per_layer: config.experts, per_token: config.experts_used, chosen, places }
    }
}
