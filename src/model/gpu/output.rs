//! What a pass on a GPU brings: hidden states, logits, or the best of them.

use std::ops::Range;

use bytemuck::cast_slice;
use yuan_cuda::launch::TOP_CHUNK;

use super::{
    Runner,
    layers::gather,
    scratch::{LOGIT_ROWS, RANKED},
};
use crate::{
    error::Result,
    gpu::{
        memory::View,
        ops::{Ops, f32s},
    },
    model::{Model, Output, Want},
};

impl Runner {
    /// What is wanted of each sequence, whose rows are given. The residuals of the pass begin at the byte `x` of its inputs.
    pub fn outputs(&mut self, model: &Model, x: usize, of: &[(Range<usize>, Want)]) -> Result<Vec<Output>> {
        let mut outputs = Vec::with_capacity(of.len());
        // Rows whose logits are wanted, and for which sequence: the head reads its weights once for several of them.
        let mut wanted = Vec::new();
        for (number, (rows, want)) in of.iter().enumerate() {
            outputs.push(match want {
                Want::Nothing => Output::Nothing,
                Want::Hidden => Output::Rows(self.hidden(model, x, rows)?),
                Want::Last | Want::Best(_) | Want::Tail(_) | Want::All => {
                    let rows = want.rows(rows.clone());
                    let room = rows.len() * self.shape.vocab;
                    wanted.extend(rows.map(|row| (row, number)));
                    Output::Rows(Vec::with_capacity(room))
                }
            });
        }
        let most = self.scratch.tokens.min(LOGIT_ROWS);
        for group in wanted.chunks(most) {
            let rows: Vec<usize> = group.iter().map(|(row, _)| *row).collect();
            self.head_of(model, x, &rows)?;
            for (place, (_, number)) in group.iter().enumerate() {
                let best = match of[*number].1 {
                    Want::Best(k) if (1..=RANKED).contains(&k) => self.rank(place, k)?,
                    _ => Vec::new(),
                };
                match &mut outputs[*number] {
                    // Logits that are no numbers are brought, all of them.
                    output if !best.is_empty() && best.iter().all(|(_, logit)| logit.is_finite()) => {
                        *output = Output::Best(best);
                    }
                    Output::Rows(out) => {
                        self.pinned.collect(self.scratch.logits_of(place, &self.shape)?, out)?
                    }
                    Output::Nothing | Output::Best(_) => {}
                }
            }
        }
        Ok(outputs)
    }

    /// The hidden states of some rows behind the final norm.
    fn hidden(&mut self, model: &Model, x: usize, rows: &Range<usize>) -> Result<Vec<f32>> {
        let hidden = f32s(self.shape.hidden);
        let residuals = self.scratch.inputs.part(x + rows.start * hidden..x + rows.end * hidden)?;
        self.final_norm(model, residuals, rows.len())?;
        let mut out = Vec::with_capacity(rows.len() * self.shape.hidden);
        self.pinned.collect(self.scratch.a.data.part(0..rows.len() * hidden)?, &mut out)?;
        Ok(out)
    }

    /// The logits of some of the rows, [rows, V].
    fn head_of(&self, model: &Model, x: usize, rows: &[usize]) -> Result<()> {
        let (s, ops) = (&self.scratch, Ops::new(&self.device));
        let residuals = s.inputs.part(x..s.inputs.size())?;
        gather(ops, residuals, rows, self.shape.hidden, s.o.view())?;
        self.final_norm(model, s.o.view(), rows.len())?;
        self.head(rows.len())
    }

    /// `n` residuals behind the final norm go into `a`.
    fn final_norm(&self, model: &Model, x: View<'_>, n: usize) -> Result<()> {
        let (weight, size) = (self.trunk.final_norm.view(), (n, self.shape.hidden));
        let out = self.scratch.a.of(self.trunk.head.form());
        Ops::new(&self.device).rms_norm(x, View::NONE, weight, out, size, model.config.rms_eps)
    }

    /// The logits of `rows` rows behind the final norm, which lie in `a`.
    pub fn head(&self, rows: usize) -> Result<()> {
        let s = &self.scratch;
        self.trunk.head.product(Ops::new(&self.device), s.a.views(), s.logits.view(), rows)
    }

    /// Adds the logits of so many rows to `out`.
    pub fn collect_logits(&mut self, rows: usize, out: &mut Vec<f32>) -> Result<()> {
        self.pinned.collect(self.scratch.logits.part(0..f32s(rows * self.shape.vocab))?, out)
    }

    /// The `k` best logits of one row: of each chunk of them, then of those, until one chunk is left. Of two places by turns one is read and
    /// the other written.
    fn rank(&mut self, row: usize, k: usize) -> Result<Vec<(u32, f32)>> {
        let (s, ops) = (&self.scratch, Ops::new(&self.device));
        let (mut from, mut left) = ((s.logits_of(row, &self.shape)?, View::NONE), self.shape.vocab);
        for (best, ids) in s.ranked.iter().cycle() {
            let best = (best.view(), ids.view());
            ops.top_k(from, best, (left, k))?;
            let chunks = left.div_ceil(TOP_CHUNK);
            (from, left) = (best, chunks * k);
            if chunks == 1 {
                break;
            }
        }
        let bytes = f32s(k);
        self.pinned.download(0, from.0.part(0..bytes)?)?;
        self.pinned.download(bytes, from.1.part(0..bytes)?)?;
        let (best, ids) = self.pinned.host()?[..2 * bytes].split_at(bytes);
        Ok(cast_slice::<u8, u32>(ids).iter().copied().zip(cast_slice(best).iter().copied()).collect())
    }
}
