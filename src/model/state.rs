//! What a model remembers of the tokens so far.

use super::{
    filter::FilterState,
    kv::{KvCache, KvType},
};
use crate::{
    config::ModelConfig,
    error::{Error, Result},
};

/// The memory of one sequence: a KV cache and the filter's last inputs for every layer.
#[derive(Clone, Debug)]
pub struct State {
    /// By layer.
    pub layers: Vec<LayerState>,
    position: usize,
    capacity: usize,
}

/// The memory of one layer.
#[derive(Clone, Debug)]
pub struct LayerState {
    /// Keys and values of all positions so far.
    pub kv: KvCache,
    /// The filter's last inputs.
    pub filter: FilterState,
}

/// The part of a state that a call overwrites: all filters.
pub(super) struct Mark {
    filters: Vec<FilterState>,
}

impl State {
    /// An empty state with room for `capacity` tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] when that is more memory than can be addressed, or the type's blocks do not divide a head.
    pub fn new(config: &ModelConfig, capacity: usize, kv: KvType) -> Result<Self> {
        let bytes = Self::kv_bytes(config, kv).checked_mul(capacity);
        if bytes.is_none_or(|b| b > 1 << 46) {
            return Err(Error::Argument(format!(
                "a context of {capacity} tokens is too large; ask for less"
            )));
        }
        if !config.head_dim().is_multiple_of(kv.block_len()) {
            let (dim, name) = (config.head_dim(), kv.name());
            return Err(Error::Argument(format!(
                "heads of {dim} have no key-value cache in {name}; choose f16"
            )));
        }
        let layer = |_| LayerState {
            kv: KvCache::new(config.heads, config.head_dim(), capacity, kv),
            filter: FilterState::new(config.hidden),
        };
        Ok(Self { layers: (0..config.layers).map(layer).collect(), position: 0, capacity })
    }

    /// Bytes of keys and values that one token takes in all layers.
    pub fn kv_bytes(config: &ModelConfig, kv: KvType) -> usize {
        2 * config.layers * kv.bytes(config.projection)
    }

    /// Tokens so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Tokens that there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// What a call that fails is taken back to.
    pub(super) fn mark(&self) -> Mark {
        Mark { filters: self.layers.iter().map(|l| l.filter.clone()).collect() }
    }

    /// Takes back all that happened since `mark`, which no finished call lies behind.
    pub(super) fn rewind(&mut self, mark: Mark) {
        for (layer, filter) in self.layers.iter_mut().zip(mark.filters) {
            layer.kv.truncate(self.position);
            layer.filter = filter;
        }
    }

    pub(super) fn advance(&mut self, tokens: usize) {
        self.position += tokens;
    }
}
