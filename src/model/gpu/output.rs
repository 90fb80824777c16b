//! What a call on a GPU brings: hidden states, logits, or the best of them.

use std::ops::Range;

use bytemuck::cast_slice;
use yuan_cuda::launch::TOP_CHUNK;

use super::{
    Runner,
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
    /// What is wanted of the `n` tokens of a call.
    pub fn output(&mut self, model: &Model, n: usize, want: Want) -> Result<Output> {
        match want {
            Want::Nothing => Ok(Output::Nothing),
            Want::Best(k) if (1..=RANKED).contains(&k) => self.best(model, n, k),
            _ => self.rows(model, n, want).map(Output::Rows),
        }
    }

    /// The wanted logits [rows, V] or hidden states of the `n` tokens of a call.
    fn rows(&mut self, model: &Model, n: usize, want: Want) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        match want {
            Want::Nothing => {}
            Want::Hidden => {
                self.final_norm(model, n, 0..n)?;
                let hidden = self.scratch.a.data.part(0..f32s(n * self.shape.hidden))?;
                self.pinned.collect(hidden, &mut out)?;
            }
            Want::Last | Want::Best(_) | Want::All => {
                let first = if want == Want::All { 0 } else { n - 1 };
                out.reserve((n - first) * self.shape.vocab);
                for t in (first..n).step_by(LOGIT_ROWS) {
                    let rows = t..n.min(t + LOGIT_ROWS);
                    self.final_norm(model, n, rows.clone())?;
                    self.head(rows.len())?;
                    self.collect_logits(rows.len(), &mut out)?;
                }
            }
        }
        model.check_finite(&out)?;
        Ok(out)
    }

    /// The `k` best logits of the last of the `n` tokens of a call, or all of them where there are fewer.
    fn best(&mut self, model: &Model, n: usize, k: usize) -> Result<Output> {
        self.final_norm(model, n, n - 1..n)?;
        self.head(1)?;
        let best = self.rank(k)?;
        if best.iter().all(|(_, logit)| logit.is_finite()) {
            return Ok(Output::Best(best));
        }
        // The ranking puts what is no number first, and infinity behind the last of a small vocabulary.
        let mut all = Vec::with_capacity(self.shape.vocab);
        self.collect_logits(1, &mut all)?;
        model.check_finite(&all)?;
        Ok(Output::Rows(all))
    }

    /// The residuals of some of the `n` tokens of a call, behind the final norm, go into `a`.
    fn final_norm(&self, model: &Model, n: usize, rows: Range<usize>) -> Result<()> {
        let (s, hidden) = (&self.scratch, self.shape.hidden);
        let x = |t: usize| self.shape.inputs(n).x + f32s(t * hidden);
        let (weight, size) = (self.trunk.final_norm.view(), (rows.len(), hidden));
        let x = s.inputs.part(x(rows.start)..x(rows.end))?;
        Ops::new(&self.device).rms_norm(x, View::NONE, weight, s.a.views(), size, model.config.rms_eps)
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
    fn rank(&mut self, k: usize) -> Result<Vec<(u32, f32)>> {
        let (s, ops) = (&self.scratch, Ops::new(&self.device));
        let (mut from, mut left) = ((s.logits.view(), View::NONE), self.shape.vocab);
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
