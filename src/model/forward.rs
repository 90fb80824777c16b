//! The forward pass. Reads like MODEL.md: embed, then per layer norm, filter, q k v, rotate, attend, norm, route,
//! experts; then norm and head.

use std::time::Instant;

use rayon::prelude::*;

use super::{
    Layer, Model,
    activations::Activations,
    attention::attend,
    buffer::Buffer,
    feed_forward::FeedForward,
    norm::rms_norm,
    rope::rotate,
    sequence::{Output, Sequence, Want},
    state::State,
};
use crate::{
    error::{Error, Result},
    pager::Pass,
};

/// Places in the forward pass that a [`Probe`] sees. Rows are tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Stage {
    Embedding,
    InputNorm,
    Filter,
    Query,
    Key,
    Value,
    Attention,
    RouterLogits,
    FeedForward,
    Hidden,
    FinalNorm,
}

/// Sees intermediate results as `(stage, layer, rows)`.
pub type Probe<'p> = &'p mut (dyn FnMut(Stage, usize, &[f32]) + Send);

impl Model {
    /// Runs the tokens of every sequence behind those that its state holds, and brings what is wanted of each, in their order.
    ///
    /// The same tokens give the same bits however they are cut into calls, on any number of threads, and whatever other sequences are in
    /// the pass.
    ///
    /// # Errors
    /// Of each sequence by itself: [`Error::Argument`] for no tokens or ids outside the vocabulary, [`Error::ContextFull`] when the state
    /// has no room, [`Error::Cancelled`] when the state's [`Cancel`](super::Cancel) was used, [`Error::Io`] when an expert cannot be
    /// read, [`Error::BadFile`] when the mapped file has been cut off or a part of it could not be read; the state is then as before.
    pub fn forward(&self, sequences: &mut [Sequence<'_>]) -> Vec<Result<Output>> {
        #[cfg(feature = "gpu")]
        let there = self.forward_gpu(sequences);
        #[cfg(not(feature = "gpu"))]
        let there = sequences.iter().map(|_| None).collect::<Vec<_>>();
        let each = sequences.iter_mut().zip(there);
        each.map(|(sequence, there)| there.unwrap_or_else(|| self.alone(sequence))).collect()
    }

    /// [`Model::forward`] of one sequence, with the rows that it brings: logits, [rows, V], or hidden states.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_one(&self, tokens: &[u32], state: &mut State, want: Want) -> Result<Vec<f32>> {
        self.forward(&mut [Sequence { tokens, state, want }]).remove(0).map(Output::into_rows)
    }

    /// One sequence on the CPU.
    fn alone(&self, sequence: &mut Sequence<'_>) -> Result<Output> {
        let Sequence { tokens, state, want } = sequence;
        let rows = self.forward_probed(tokens, state, *want, &mut |_, _, _| {})?;
        Ok(if *want == Want::Nothing { Output::Nothing } else { Output::Rows(rows) })
    }

    /// [`Model::forward_one`] on the CPU, that shows its intermediate results to `probe`.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_probed(
        &self,
        tokens: &[u32],
        state: &mut State,
        want: Want,
        probe: Probe<'_>,
    ) -> Result<Vec<f32>> {
        self.check(tokens, state)?;
        self.call(tokens, state, Instant::now(), |pass, state| self.run(pass, tokens, state, want, probe))
    }

    /// A call of the model, on whatever device `run` uses: it began at `start`, and leaves the state as before when it fails.
    pub(super) fn call<T: Send>(
        &self,
        tokens: &[u32],
        state: &mut State,
        start: Instant,
        run: impl FnOnce(&Pass<'_>, &mut State) -> Result<T> + Send,
    ) -> Result<T> {
        self.check_file()?;
        let pass = self.pager.begin()?;
        // What a pass that failed or panicked has left is dropped.
        state.undo();
        // One entry into the pool for the whole pass: work is then shared without waking a sleeping caller.
        let result = self.compute.enter(tokens.len(), || run(&pass, state));
        if result.is_err() {
            state.undo();
            // What has happened to the file says more than what came of it.
            self.check_file()?;
        } else {
            self.log.add(tokens.len(), start);
        }
        result
    }

    /// The logits [rows, V] of hidden states behind the final norm, [rows, H] ([`State::hidden`], [`Want::Hidden`]). The budget has room for
    /// [`LOGIT_ROWS`](super::LOGIT_ROWS) at once.
    ///
    /// # Errors
    /// [`Error::Argument`] when they have another width than the model; [`Error::BadFile`] as [`Model::forward`].
    pub fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        if hidden.is_empty() || !hidden.len().is_multiple_of(self.config.hidden) {
            let (found, wanted) = (hidden.len(), self.config.hidden);
            return Err(Error::Argument(format!("a hidden state has {wanted} numbers, and not {found}")));
        }
        #[cfg(feature = "gpu")]
        if let Some(logits) = self.logits_gpu(hidden) {
            return logits;
        }
        self.check_file()?;
        let mut rows = Buffer::with_capacity(hidden.len());
        rows.extend_from_slice(hidden);
        let rows = Activations::new(rows, self.config.hidden);
        let product = || self.compute.product(&self.head, &rows);
        let logits = self.compute.enter(rows.rows(), product).into_vec();
        self.check_file()?;
        Ok(logits)
    }

    fn run(
        &self,
        pass: &Pass<'_>,
        tokens: &[u32],
        state: &mut State,
        want: Want,
        probe: Probe<'_>,
    ) -> Result<Vec<f32>> {
        let (config, compute, start) = (&self.config, &self.compute, state.position());
        let angles: Vec<_> = (0..tokens.len()).map(|t| self.rope.at(start + t)).collect();
        let (ends, cancel) = (state.ends(tokens.len()), state.cancel.clone());

        let mut x = self.embed(tokens);
        probe(Stage::Embedding, 0, &x);
        for (l, (layer, memory)) in self.layers.iter().zip(&mut state.layers).enumerate() {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            // Attention: v sees the normed input, q and k see its filtered form.
            let a = rms_norm(&x, &layer.input_norm, config.rms_eps);
            let v = compute.product(&layer.v, &a);
            let (g, filters) = layer.filter.apply(compute, &a, &memory.filter, &ends);
            memory.next = filters;
            let (mut q, mut k) = (compute.product(&layer.q, &g), compute.product(&layer.k, &g));
            let rows =
                q.par_chunks_exact_mut(config.projection).zip(k.par_chunks_exact_mut(config.projection));
            rows.zip(&angles).for_each(|((q, k), angles)| {
                join_and_split(q, k, config.head_dim());
                let heads = [q, k].into_iter().flat_map(|x| x.chunks_exact_mut(config.head_dim()));
                heads.for_each(|head| rotate(head, angles));
            });
            memory.kv.push(&k, &v);
            let attended = attend(compute, &memory.kv, &q);
            let o = compute.product(&layer.o, &attended);
            add(&mut x, &o);
            probe(Stage::InputNorm, l, a.data());
            probe(Stage::Filter, l, g.data());
            probe(Stage::Query, l, &q);
            probe(Stage::Key, l, &k);
            probe(Stage::Value, l, &v);
            probe(Stage::Attention, l, &o);

            // Feed forward: the experts that the router picks, or the one MLP of a dense model.
            let m = rms_norm(&x, &layer.post_norm, config.rms_eps);
            let y = match &layer.feed_forward {
                FeedForward::Dense(mlp) => mlp.apply(compute, &m),
                FeedForward::Moe { router, experts } => {
                    let mut routing = router.route(compute, &m);
                    if let Some(script) = &self.script {
                        script.impose(l, start, &mut routing);
                    }
                    probe(Stage::RouterLogits, l, &routing.logits);
                    let request = experts.request(pass, &routing)?;
                    self.look_ahead(pass, l + 1, &x)?;
                    experts.apply(compute, request.as_ref(), &m, &routing)?
                }
            };
            add(&mut x, &y);
            probe(Stage::FeedForward, l, &y);
            probe(Stage::Hidden, l, &x);
        }
        let row = |end: usize| &x[(end - 1) * config.hidden..end * config.hidden];
        let final_norm = |rows: &[f32]| rms_norm(rows, &self.final_norm, config.rms_eps);
        let last = final_norm(match want {
            Want::Nothing | Want::Last | Want::Best(_) => row(tokens.len()),
            Want::All | Want::Hidden => &x,
        });
        probe(Stage::FinalNorm, 0, last.data());
        let rows = match want {
            Want::Nothing => Vec::new(),
            Want::Last | Want::Best(_) | Want::All => compute.product(&self.head, &last).into_vec(),
            Want::Hidden => last.data().to_vec(),
        };
        // The state goes on only when all that was read was the file.
        self.check_file()?;
        state.advance(&ends, |end| match last.data() {
            last if end == tokens.len() => last[last.len() - config.hidden..].to_vec(),
            _ => final_norm(row(end)).data().to_vec(),
        });
        Ok(rows)
    }

    /// Guesses the experts of a single token in the next layer, by its router and the residual as it is now.
    fn look_ahead(&self, pass: &Pass<'_>, next: usize, x: &Buffer) -> Result<()> {
        let Some(Layer { post_norm, feed_forward: FeedForward::Moe { router, .. }, .. }) =
            self.layers.get(next)
        else {
            return Ok(());
        };
        if !self.look_ahead || x.len() > self.config.hidden {
            return Ok(());
        }
        let m = rms_norm(x, post_norm, self.config.rms_eps);
        pass.guess(next, &router.route(&self.compute, &m).experts())
    }

    pub(super) fn check(&self, tokens: &[u32], state: &State) -> Result<()> {
        if tokens.is_empty() {
            return Err(no_tokens());
        }
        self.check_vocabulary(tokens)?;
        let wanted = state.position().saturating_add(tokens.len());
        if wanted > state.capacity() {
            return Err(Error::ContextFull { capacity: state.capacity(), wanted });
        }
        Ok(())
    }

    /// Whether the model knows all these tokens.
    pub(crate) fn check_vocabulary(&self, tokens: &[u32]) -> Result<()> {
        match tokens.iter().find(|&&id| id as usize >= self.config.vocab) {
            Some(id) => {
                let last = self.config.vocab - 1;
                Err(Error::Argument(format!("token {id} is outside the vocabulary of 0 to {last}")))
            }
            None => Ok(()),
        }
    }

    pub(super) fn embed(&self, tokens: &[u32]) -> Buffer {
        let mut x = Buffer::to_write(tokens.len() * self.config.hidden);
        let rows = tokens.par_iter().zip(x.par_chunks_exact_mut(self.config.hidden));
        rows.for_each(|(&id, x)| self.embedding.dequantize_row(id as usize, x));
        x
    }
}

pub(crate) fn no_tokens() -> Error {
    Error::Argument("there are no tokens to run; give a prompt".into())
}

/// Turns a row of the q and of the k projection into queries and keys: the joined row `q | k` is cut into slices of
/// `head_dim`; head i's query is slice 2i, its key slice 2i + 1.
fn join_and_split(q: &mut [f32], k: &mut [f32], head_dim: usize) {
    let joined = [&*q, &*k].concat();
    let heads = q.chunks_exact_mut(head_dim).zip(k.chunks_exact_mut(head_dim));
    for ((q, k), slices) in heads.zip(joined.chunks_exact(2 * head_dim)) {
        q.copy_from_slice(&slices[..head_dim]);
        k.copy_from_slice(&slices[head_dim..]);
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    x.par_iter_mut().zip(y).with_min_len(1 << 14).for_each(|(x, y)| *x += y);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_take_alternate_slices_of_the_joined_rows() {
        let (mut q, mut k) = (vec![0., 1., 2., 3.], vec![4., 5., 6., 7.]);
        join_and_split(&mut q, &mut k, 1);
        assert_eq!((q, k), (vec![0., 2., 4., 6.], vec![1., 3., 5., 7.]));
    }
}
