//! The forward pass. Reads like MODEL.md: embed, then per layer norm, filter, q k v, rotate, attend, norm, route,
//! experts; then norm and head.

use std::{mem::take, ops::Range, time::Instant};

use rayon::prelude::*;
use smallvec::SmallVec;

use super::{
    Layer, Model,
    activations::Activations,
    attention::attend,
    batch::Batch,
    compute::Compute,
    feed_forward::FeedForward,
    norm::rms_norm,
    phases::Phase,
    probe::{Probe, Stage, Watch},
    rope::rotate,
    scratch::Buffer,
    sequence::{Output, Results, Sequence, Want},
    state::State,
};
use crate::{
    error::{Error, Result},
    list::List,
    pager::{
        Pass,
        sync::{Mutex, lock},
    },
};

impl Model {
    /// Runs the tokens of every sequence behind those that its state holds, in one pass, and brings what is wanted of each, in their order.
    ///
    /// The same tokens give the same bits however they are cut into calls, on any number of threads, and whatever other sequences are in
    /// the pass. Where an expert cannot be read, the sequences that it was for fail, and no others.
    ///
    /// # Errors
    /// Of each sequence by itself: [`Error::Argument`] for no tokens, nothing but drafts, ids outside the vocabulary or a call from a [`Probe`], [`Error::ContextFull`] when the state
    /// has no room, [`Error::Cancelled`] when the state's [`Cancel`](super::Cancel) was used, [`Error::Io`] when an expert cannot be
    /// read, [`Error::BadFile`] when the mapped file has been cut off, a part of it could not be read, or the weights are damaged so that what
    /// is wanted, or the last hidden state, is not finite; the state is then as before.
    pub fn forward(&self, sequences: &mut [Sequence<'_>]) -> Results {
        #[cfg(feature = "gpu")]
        if self.gpu().is_some() {
            return self.beside_gpu(sequences);
        }
        self.together(sequences.iter_mut(), None)
    }

    /// A pass on the GPU of those sequences that it can run, and one on the CPU of all others.
    #[cfg(feature = "gpu")]
    fn beside_gpu(&self, sequences: &mut [Sequence<'_>]) -> Results {
        let there = self.forward_gpu(sequences);
        let others = sequences.iter_mut().zip(&there).filter(|(_, there)| there.is_none());
        let others: Vec<_> = others.map(|(sequence, _)| sequence).collect();
        let mut here = self.together(others.into_iter(), None).into_iter();
        let result = |there: Option<_>| there.or_else(|| here.next()).expect("a result of every sequence");
        there.into_iter().map(result).collect()
    }

    /// [`Model::forward`] of one sequence, with the rows that it brings: logits, [rows, V], or hidden states.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_one(&self, tokens: &[u32], state: &mut State, want: Want) -> Result<Vec<f32>> {
        self.forward(&mut [Sequence { tokens, drafted: 0, state, want }]).remove(0).map(Output::into_rows)
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
        self.forward_watched(&mut [Sequence { tokens, drafted: 0, state, want }], probe)
            .remove(0)
            .map(Output::into_rows)
    }

    /// [`Model::forward`] on the CPU, that shows its intermediate results to `probe`: the rows of all sequences, in their order, while none has failed or was
    /// cancelled.
    pub fn forward_watched(&self, sequences: &mut [Sequence<'_>], probe: Probe<'_>) -> Results {
        self.together(sequences.iter_mut(), Some(probe))
    }

    /// A pass on the CPU.
    fn together<'c, 's: 'c>(
        &self,
        sequences: impl ExactSizeIterator<Item = &'c mut Sequence<'s>>,
        probe: Option<Probe<'_>>,
    ) -> Results {
        let called = Instant::now();
        let mut batch = Batch::new(sequences.len());
        for (place, sequence) in sequences.enumerate() {
            // What a pass that failed or panicked has left is dropped.
            sequence.state.undo();
            let n = sequence.tokens.len();
            match self.check(sequence).and_then(|()| sequence.state.reserve(n, sequence.drafted)) {
                Ok(()) => batch.add(place, sequence, &self.rope, self.config.vocab, &self.compute.scratch),
                Err(error) => batch.set(place, Err(error)),
            }
        }
        if !batch.is_empty() {
            let (start, rows) = (Instant::now(), batch.rows());
            let sequences = batch.members().len();
            let certain = rows - batch.members().iter().map(|m| m.sequence.drafted).sum::<usize>();
            let run = |pass: &Pass<'_>| {
                let _recorded = self.compute.phases.pass(rows, called);
                self.run(pass, &mut batch, Watch::new(probe))
            };
            match self.in_pass(rows, run) {
                Ok(()) => self.log.add(certain, sequences, start),
                Err(error) => batch.fail_all(&error),
            }
        }
        let mut results = batch.into_results();
        self.blame_file(&mut results);
        results
    }

    /// What has happened to the file says more than what came of it.
    pub(super) fn blame_file(&self, results: &mut [Result<Output>]) {
        if results.iter().any(Result::is_err)
            && let Err(lost) = self.check_file()
        {
            results.iter_mut().filter(|r| r.is_err()).for_each(|r| *r = Err(lost.again()));
        }
    }

    /// Does `run` in the threads for so many rows, once every other pass has ended.
    pub(super) fn in_pass<T: Send>(
        &self,
        rows: usize,
        run: impl FnOnce(&Pass<'_>) -> Result<T> + Send,
    ) -> Result<T> {
        self.check_file()?;
        let pass = self.pager.begin();
        // One entry into the pool for the whole pass: work is then shared without waking a sleeping caller.
        self.compute.enter(rows, || run(&pass))
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
            let logits = logits?;
            return self.check_finite(&logits).map(|()| logits);
        }
        self.check_file()?;
        let rows = Activations::new(self.compute.scratch.copy(hidden), self.config.hidden);
        let mut logits = vec![0.0; rows.rows() * self.config.vocab];
        self.compute.enter(rows.rows(), || self.compute.product_into(&self.head, &rows, &mut logits));
        self.check_file()?;
        self.check_finite(&logits).map(|()| logits)
    }

    fn run(&self, pass: &Pass<'_>, batch: &mut Batch<'_, '_>, mut watch: Watch<'_>) -> Result<()> {
        let (config, compute) = (&self.config, &self.compute);
        let norm = |x: &[f32], weight: &[f32]| rms_norm(compute, x, weight, config.rms_eps);

        compute.phase(Phase::Embedding);
        let mut x = self.embed(&batch.tokens())?;
        watch.see(Stage::Embedding, 0, &x);
        for (l, layer) in self.layers.iter().enumerate() {
            x = batch.leave(compute, x);
            if batch.is_empty() {
                return Ok(());
            }
            // Attention: v sees the normed input, q and k see its filtered form.
            compute.phase(Phase::Norm);
            let a = norm(&x, &layer.input_norm);
            compute.phase(Phase::Qkv);
            let v = compute.product(&layer.v, &a);
            compute.phase(Phase::Filter);
            let (g, o1) = layer.filter.apply(compute, &a, |row| batch.before(l, row));
            batch.remember(l, &a, &o1);
            compute.phase(Phase::Qkv);
            let [mut q, mut k] = compute.products([&layer.q, &layer.k], &g);
            compute.phase(Phase::Store);
            let rows =
                q.par_chunks_exact_mut(config.projection).zip(k.par_chunks_exact_mut(config.projection));
            compute.each(rows.enumerate(), |(row, (q, k))| {
                join_and_split(compute, q, k, config.head_dim());
                let heads = [q, k].into_iter().flat_map(|x| x.chunks_exact_mut(config.head_dim()));
                heads.for_each(|head| rotate(head, batch.angles(row)));
            });
            batch.push(compute, l, &k, &v);
            compute.phase(Phase::Attention);
            let attended = attend(compute, &batch.caches(l), &q);
            compute.phase(Phase::Output);
            let o = compute.product(&layer.o, &attended);
            compute.add(&mut x, &o);
            watch.see(Stage::InputNorm, l, a.data());
            watch.see(Stage::Convolved, l, o1.data());
            watch.see(Stage::Filter, l, g.data());
            watch.see(Stage::Query, l, &q);
            watch.see(Stage::Key, l, &k);
            watch.see(Stage::Value, l, &v);
            watch.see(Stage::Attended, l, attended.data());
            watch.see(Stage::Attention, l, &o);

            // Feed forward: the experts that the router picks, or the one MLP of a dense model.
            compute.phase(Phase::Norm);
            let m = norm(&x, &layer.post_norm);
            watch.see(Stage::PostNorm, l, m.data());
            let y = match &layer.feed_forward {
                FeedForward::Dense(mlp) => {
                    compute.phase(Phase::Experts);
                    mlp.apply(compute, &m, &mut watch.at(l))
                }
                FeedForward::Moe { router, experts } => {
                    compute.phase(Phase::Router);
                    let mut routing = router.route(compute, &m);
                    if let Some(script) = &self.script {
                        script.impose(l, batch.positions(), &mut routing);
                    }
                    watch.see(Stage::RouterLogits, l, routing.logits.as_deref().unwrap_or_default());
                    let request = experts.request(pass, &routing)?;
                    self.look_ahead(pass, l + 1, &x)?;
                    let lost = |rows: &[usize], error: &Error| batch.fail(rows, error);
                    experts.apply(compute, request.as_ref(), &m, &routing, &lost, &mut watch.at(l))?
                }
            };
            compute.phase(Phase::Sum);
            compute.add(&mut x, &y);
            watch.see(Stage::FeedForward, l, &y);
            watch.see(Stage::Hidden, l, &x);
        }
        x = batch.leave(compute, x);

        compute.phase(Phase::Logits);
        // Behind the final norm: the last row of each sequence, or more of them where they are wanted.
        let mut rows = List::new();
        let wanted: List<Range<usize>> = batch.members().iter().map(|m| m.wanted(&mut rows)).collect();
        let last = norm(&compute.scratch.gather(&x, config.hidden, &rows), &self.final_norm);
        watch.see(Stage::FinalNorm, 0, last.data());
        self.wanted_logits(batch, &wanted, &last);
        compute.phase(Phase::End);
        // The states go on only when all that was read was the file.
        self.check_file()?;
        let mut outputs = SmallVec::<[_; 1]>::new();
        for (member, wanted) in batch.members_mut().iter_mut().zip(wanted) {
            let hidden = &last.data()[wanted.start * config.hidden..wanted.end * config.hidden];
            let output = match member.sequence.want {
                Want::Nothing => Output::Nothing,
                Want::Hidden => Output::Rows(hidden.to_vec()),
                Want::Last | Want::Best(_) | Want::Tail(_) | Want::All => {
                    Output::Rows(take(&mut member.logits))
                }
            };
            let finite = self.check_finite(if let Output::Rows(rows) = &output { rows } else { hidden });
            let (first, tokens) = (member.rows.start, member.rows.len());
            let row = |end: usize| &x[(first + end - 1) * config.hidden..][..config.hidden];
            match finite {
                Ok(()) => member.sequence.state.advance(&member.ends, member.sequence.drafted, |end, to| {
                    to.clear();
                    match end == tokens {
                        true => to.extend_from_slice(&hidden[hidden.len() - config.hidden..]),
                        false => to.extend_from_slice(norm(row(end), &self.final_norm).data()),
                    }
                }),
                Err(_) => member.sequence.state.undo(),
            }
            outputs.push(finite.map(|()| output));
        }
        batch.end(outputs.into_iter());
        Ok(())
    }

    /// The logits of those sequences that want some; of `last` the rows `wanted` are theirs.
    fn wanted_logits(&self, batch: &mut Batch<'_, '_>, wanted: &[Range<usize>], last: &Activations) {
        let members = batch.members_mut().iter_mut().zip(wanted);
        let (mut members, parts): (List<_>, List<_>) =
            members.filter(|(m, _)| m.sequence.want.logits()).map(|(m, w)| (m, w.clone())).unzip();
        let rows: List<usize> = parts.into_iter().flatten().collect();
        if rows.is_empty() {
            return;
        }
        let gathered = last.gather(&self.compute, &rows);
        if let [member] = members.as_mut_slice() {
            return self.compute.product_into(&self.head, &gathered, &mut member.logits);
        }
        let all = self.compute.product(&self.head, &gathered);
        let mut rest = &all[..];
        let parts = members.into_iter().map(|member| {
            let part;
            (part, rest) = rest.split_at(member.logits.len());
            (&mut member.logits, part)
        });
        self.compute.in_turn(parts, |(logits, part)| logits.copy_from_slice(part));
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
        let m = rms_norm(&self.compute, x, post_norm, self.config.rms_eps);
        pass.guess(next, &router.route(&self.compute, &m).experts())
    }

    pub(super) fn check(&self, sequence: &Sequence<'_>) -> Result<()> {
        let Sequence { tokens, drafted, ref state, .. } = *sequence;
        if self.is_inside() {
            let problem =
                "a model was called from within a pass of its own; call it on a thread that shows no results";
            return Err(Error::Argument(problem.into()));
        }
        if tokens.is_empty() {
            return Err(no_tokens());
        }
        if drafted >= tokens.len() {
            let problem = format!("{drafted} drafts of {} tokens leave none that is certain", tokens.len());
            return Err(Error::Argument(problem));
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

    pub(super) fn embed(&self, tokens: &[u32]) -> Result<Buffer> {
        let mut x = self.compute.scratch.buffer::<f32>(tokens.len() * self.config.hidden);
        let rows = tokens.par_iter().zip(x.par_chunks_exact_mut(self.config.hidden));
        let problem = Mutex::new(None);
        self.compute.each(rows, |(&id, x)| {
            if let Err(error) = self.embedding.row(id, x) {
                *lock(&problem) = Some(error);
            }
        });
        let problem = lock(&problem).take();
        problem.map_or(Ok(x), Err)
    }
}

pub(crate) fn no_tokens() -> Error {
    Error::Argument("there are no tokens to run; give a prompt".into())
}

/// Turns a row of the q and of the k projection into queries and keys: the joined row `q | k` is cut into slices of
/// `head_dim`; head i's query is slice 2i, its key slice 2i + 1.
fn join_and_split(compute: &Compute, q: &mut [f32], k: &mut [f32], head_dim: usize) {
    let mut joined = compute.scratch.buffer(q.len() + k.len());
    let (first, second) = joined.split_at_mut(q.len());
    first.copy_from_slice(q);
    second.copy_from_slice(k);
    let heads = q.chunks_exact_mut(head_dim).zip(k.chunks_exact_mut(head_dim));
    for ((q, k), slices) in heads.zip(joined.chunks_exact(2 * head_dim)) {
        q.copy_from_slice(&slices[..head_dim]);
        k.copy_from_slice(&slices[head_dim..]);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{compute::Arithmetic, threads::Threads},
        *,
    };

    #[test]
    fn heads_take_alternate_slices_of_the_joined_rows() {
        let (mut q, mut k) = (vec![0., 1., 2., 3.], vec![4., 5., 6., 7.]);
        let compute = Compute::new(Threads::new(1, 1).unwrap(), Arithmetic::Integer, None).unwrap();
        join_and_split(&compute, &mut q, &mut k, 1);
        assert_eq!((q, k), (vec![0., 2., 4., 6.], vec![1., 3., 5., 7.]));
    }
}
