//! Routing that is prescribed, for benchmarks of the pager: the router of random weights chooses evenly and without memory, that of
//! a trained model does neither.

use super::{Model, router::Routing};
use crate::{
    error::{Error, Result},
    pager::trace::Trace,
};

/// The experts that tokens go to, whatever the router says.
#[derive(Clone, Debug)]
pub(super) struct Script {
    /// Of each traced layer the experts of all tokens, `used` a token, one after another.
    layers: Vec<Vec<usize>>,
    used: usize,
    /// Layers of the model.
    of: usize,
}

impl Script {
    /// The tokens of all `traces`, one trace after another, for a model of `layers` layers.
    fn new(traces: &[Trace], layers: usize, experts: usize, used: usize) -> Result<Self> {
        let mut script = Self { layers: Vec::new(), used, of: layers };
        for trace in traces {
            let traced = &trace.model;
            if (traced.experts, traced.used) != (experts, used) {
                return Err(Error::Argument(format!(
                    "a trace of {} of {} experts cannot route a model with {used} of {experts}",
                    traced.used, traced.experts
                )));
            }
            script.layers.resize(script.layers.len().max(traced.layers), Vec::new());
            trace.requests.iter().for_each(|(layer, chosen)| script.layers[*layer].extend(chosen));
        }
        if script.layers.is_empty() || script.layers.iter().any(Vec::is_empty) {
            return Err(Error::Argument("the traces have no tokens for some of their layers".into()));
        }
        Ok(script)
    }

    /// Puts the prescribed experts in place of the chosen ones of the tokens at these positions; their weights stay.
    ///
    /// Layer `l` follows layer `l % n` of the `n` traced ones, `l / n` parts of the traces later, so that no two layers are at the
    /// same token; behind the end they begin again.
    pub(super) fn impose(&self, layer: usize, positions: impl Iterator<Item = usize>, routing: &mut Routing) {
        let n = self.layers.len();
        let experts = &self.layers[layer % n];
        let tokens = experts.len() / self.used;
        let later = layer / n * tokens / self.of.div_ceil(n);
        for (position, chosen) in positions.zip(routing.chosen.chunks_exact_mut(self.used)) {
            let at = (position + later) % tokens;
            let prescribed = &experts[at * self.used..][..self.used];
            chosen.iter_mut().zip(prescribed).for_each(|((expert, _), &wanted)| *expert = wanted);
        }
    }
}

impl Model {
    /// Routes tokens as those of `traces` were, one trace after another. For benchmarks: the text is then nonsense.
    ///
    /// # Errors
    /// [`Error::Argument`] for traces of other numbers of experts, or without tokens.
    pub fn follow(&mut self, traces: &[Trace]) -> Result<()> {
        let config = &self.config;
        self.script = Some(Script::new(traces, config.layers, config.experts, config.experts_used)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pager::trace::Traced;

    fn trace(experts: usize, requests: Vec<(usize, Vec<usize>)>) -> Trace {
        let model = Traced { yuan_trace: 1, layers: 2, experts, used: 2, expert_bytes: 1, fixed_bytes: 1 };
        Trace { model, requests }
    }

    #[test]
    fn layers_follow_the_traced_ones_at_other_tokens() {
        let tokens = |first: usize| (0..4).flat_map(|t| [first + t, 15]).collect::<Vec<_>>();
        let traces = [
            trace(16, vec![(0, tokens(0)), (1, tokens(8))]),
            trace(16, vec![(0, vec![9, 9]), (1, vec![9, 9])]),
        ];
        let script = Script::new(&traces, 4, 16, 2).unwrap();
        let at = |layer: usize, start: usize| {
            let chosen = [(0, 0.75), (1, 0.25)].repeat(2).into();
            let mut routing = Routing { logits: None, used: 2, chosen };
            script.impose(layer, start..start + 2, &mut routing);
            routing.by_token().map(|c| (c[0], c[1].0)).collect::<Vec<_>>()
        };
        assert_eq!(at(0, 3), [((3, 0.75), 15), ((9, 0.75), 9)]);
        assert_eq!(at(1, 4), [((9, 0.75), 9), ((8, 0.75), 15)]);
        assert_eq!(at(2, 0), [((2, 0.75), 15), ((3, 0.75), 15)]);
    }

    #[test]
    fn a_trace_of_another_shape_is_refused() {
        assert!(Script::new(&[trace(8, vec![(0, vec![1, 2]), (1, vec![1, 2])])], 2, 16, 2).is_err());
        assert!(Script::new(&[trace(16, vec![(0, vec![1, 2])])], 2, 16, 2).is_err());
        assert!(Script::new(&[], 2, 16, 2).is_err());
    }
}
