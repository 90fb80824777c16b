//! Which sequences of a call go through the GPU together, and which do not find room there.

use std::{
    mem,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use yuan_cuda::launch::FEW;

use super::{Gpu, Runner, mirror, pages::PageShape, part::Part, scratch::SEQUENCES};
use crate::{
    error::{Error, Result},
    model::{Model, Output, Sequence},
    pager::{Pass, sync::lock},
};

/// A sequence of a call, by its number there.
type Numbered<'c, 's> = (usize, &'c mut Sequence<'s>);

impl Model {
    /// [`Model::forward`] on the GPU, where there is one. A sequence has no result there that is to run on the CPU: it has another type of keys and values than
    /// the kernels know, or the GPU has no memory for it.
    pub(in crate::model) fn forward_gpu(
        &self,
        sequences: &mut [Sequence<'_>],
    ) -> Vec<Option<Result<Output>>> {
        let mut results: Vec<_> = sequences.iter().map(|_| None).collect();
        let Some(gpu) = self.gpu() else { return results };
        let mut waiting = Vec::new();
        for (number, sequence) in sequences.iter_mut().enumerate() {
            if mirror::dtype(sequence.state.kv_type()).is_none() {
                continue;
            }
            match self.prepare(sequence) {
                Ok(()) => waiting.push((number, sequence)),
                Err(error) => results[number] = Some(Err(error)),
            }
        }
        if waiting.is_empty() {
            return results;
        }
        let mut runner = lock(&gpu.runner);
        while !waiting.is_empty() {
            self.some(gpu, &mut runner, &mut waiting, &mut results);
        }
        results
    }

    /// Runs as many of those that wait as go together, or takes the first off the GPU.
    fn some<'c, 's>(
        &self,
        gpu: &Gpu,
        runner: &mut Runner,
        waiting: &mut Vec<Numbered<'c, 's>>,
        results: &mut [Option<Result<Output>>],
    ) {
        let mut chosen: Vec<(Numbered<'c, 's>, Arc<()>)> = Vec::new();
        let mut rows = 0;
        let kv = waiting[0].1.state.kv_type();
        let Some(dtype) = mirror::dtype(kv) else { return waiting.clear() };
        let page = PageShape::new(&runner.shape, dtype);
        for (number, sequence) in mem::take(waiting) {
            let n = sequence.tokens.len();
            let beside = chosen.len() < SEQUENCES && rows + n <= runner.scratch.tokens;
            if sequence.state.kv_type() != kv || !(chosen.is_empty() || beside) {
                waiting.push((number, sequence));
                continue;
            }
            let busy: Vec<Arc<()>> = chosen.iter().map(|(_, owner)| owner.clone()).collect();
            let positions = sequence.state.position() + n;
            match runner.pages.acquire(&mut sequence.state.mirror, positions, &page, &busy) {
                Ok(Some(owner)) => {
                    rows += n;
                    chosen.push(((number, sequence), owner));
                }
                // In a pass of its own it may find room.
                Ok(None) if !chosen.is_empty() => waiting.push((number, sequence)),
                Ok(None) => gpu.tell_full("its keys and values are more than there is room for"),
                Err(error) => results[number] = Some(Err(error)),
            }
        }
        if chosen.is_empty() {
            return;
        }
        chosen.sort_by_key(|((_, sequence), _)| sequence.tokens.len() > FEW);
        let (mut chosen, owners): (Vec<_>, Vec<_>) = chosen.into_iter().unzip();
        self.beside(gpu, runner, &page, &mut chosen, &owners, results);
    }

    /// One pass, whose error is that of each sequence, but for what may concern some of them only.
    fn beside(
        &self,
        gpu: &Gpu,
        runner: &mut Runner,
        page: &PageShape,
        chosen: &mut [Numbered<'_, '_>],
        owners: &[Arc<()>],
        results: &mut [Option<Result<Output>>],
    ) {
        let error = match self.pass(runner, page, chosen, owners) {
            Ok(outputs) => {
                for ((number, _), output) in chosen.iter().zip(outputs) {
                    results[*number] = Some(output);
                }
                return;
            }
            Err(error) => error,
        };
        match error {
            Error::Memory(why) => gpu.tell_full(&why),
            error @ Error::Gpu { .. } => {
                chosen.iter().for_each(|(number, _)| results[*number] = Some(Err(error.again())));
            }
            error if chosen.len() == 1 => results[chosen[0].0] = Some(Err(error)),
            _ => {
                // An expert that cannot be read fails those that need it.
                for (one, owner) in chosen.iter_mut().zip(owners) {
                    match self.prepare(one.1) {
                        Ok(()) => {
                            let (one, owner) = (std::slice::from_mut(one), std::slice::from_ref(owner));
                            self.beside(gpu, runner, page, one, owner, results);
                        }
                        Err(error) => results[one.0] = Some(Err(error)),
                    }
                }
            }
        }
    }

    /// Drops what a pass that failed or panicked has left, and makes room on the host.
    fn prepare(&self, sequence: &mut Sequence<'_>) -> Result<()> {
        sequence.state.undo();
        self.check(sequence)?;
        sequence.state.reserve(sequence.tokens.len(), sequence.drafted)
    }

    /// One pass of sequences that are prepared. The states of those that have not succeeded are as before.
    fn pass(
        &self,
        runner: &mut Runner,
        page: &PageShape,
        chosen: &mut [Numbered<'_, '_>],
        owners: &[Arc<()>],
    ) -> Result<Vec<Result<Output>>> {
        let start = Instant::now();
        let mut sequences: Vec<&mut Sequence<'_>> = chosen.iter_mut().map(|(_, s)| &mut **s).collect();
        let parts = Part::all(&sequences, owners);
        let rows = Part::size(&parts).rows;
        let certain = rows - sequences.iter().map(|s| s.drafted).sum::<usize>();
        let run = |pass: &Pass<'_>| runner.forward(self, pass, page, &mut sequences, &parts);
        let mut results = self.in_pass(rows, run);
        match &mut results {
            Ok(results) => {
                let failed = sequences.iter_mut().zip(&*results).filter(|(_, result)| result.is_err());
                failed.for_each(|(sequence, _)| sequence.state.undo());
                self.log.add(certain, parts.len(), start);
                self.blame_file(results);
            }
            Err(_) => {
                sequences.iter_mut().for_each(|sequence| sequence.state.undo());
                // What has happened to the file says more than what came of it.
                self.check_file()?;
            }
        }
        results
    }
}

impl Gpu {
    /// Says once that calls go to the CPU for want of memory.
    pub(super) fn tell_full(&self, why: &str) {
        if !self.told_full.swap(true, Relaxed) {
            tracing::warn!(
                "a call runs on the CPU, since the GPU has no memory for it ({why}); so may later ones"
            );
        }
    }
}
