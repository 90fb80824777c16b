//! The rows of a pass: whose tokens they are, and what becomes of sequences that leave it.

use std::{iter, ops::Range};

use smallvec::SmallVec;

use super::{
    activations::Activations,
    compute::Compute,
    filter::FilterState,
    rope::Rope,
    scratch::{Buffer, Scratch},
    sequence::{Output, Results, Sequence},
    state::{KvCache, store},
};
use crate::{
    error::{Error, Result},
    list::List,
    pager::sync::{Mutex, lock},
};

/// The sequences that a pass still runs. Their rows lie one after another, in this order.
#[derive(Debug)]
pub struct Batch<'c, 's> {
    members: SmallVec<[Member<'c, 's>; 1]>,
    /// What has become of sequences, by their places in the call.
    results: Mutex<SmallVec<[Option<Result<Output>>; 1]>>,
}

/// A sequence in a pass.
#[derive(Debug)]
pub struct Member<'c, 's> {
    /// Its place in the call.
    place: usize,
    pub sequence: &'c mut Sequence<'s>,
    /// Its rows.
    pub rows: Range<usize>,
    /// Numbers of its tokens after which a state is wanted; the last is that of all of them.
    pub ends: List<usize>,
    /// Room for the logits that are wanted, [rows, V]. It is of the thread that asked: an allocator may keep what threads of the pool free for
    /// each of them, and one pass runs on another of them than the next.
    pub logits: Vec<f32>,
    /// `(cos, sin)` of each token, one after another (`rope.rs`).
    angles: Buffer<[f32; 2]>,
}

impl Member<'_, '_> {
    /// Adds the rows behind whose final norm something is wanted to `rows`, and says where they are there.
    pub fn wanted(&self, rows: &mut List<usize>) -> Range<usize> {
        let start = rows.len();
        rows.extend(self.sequence.want.rows(self.rows.clone()));
        start..rows.len()
    }
}

impl<'c, 's> Batch<'c, 's> {
    /// No sequences yet, of a call of `n`.
    pub fn new(n: usize) -> Self {
        let results = iter::repeat_with(|| None).take(n).collect();
        Self { members: SmallVec::new(), results: Mutex::new(results) }
    }

    /// The sequence at `place` of the call takes part, in a model of so many tokens.
    pub fn add(
        &mut self,
        place: usize,
        sequence: &'c mut Sequence<'s>,
        rope: &Rope,
        vocab: usize,
        scratch: &Scratch,
    ) {
        let (start, n) = (self.rows(), sequence.tokens.len());
        let position = sequence.state.position();
        let mut angles = scratch.buffer::<[f32; 2]>(n * rope.dims() / 2);
        let of_tokens = (position..position + n).flat_map(|position| rope.at(position));
        angles.iter_mut().zip(of_tokens).for_each(|(to, (cos, sin))| *to = [cos, sin]);
        let ends = sequence.state.ends(n, sequence.drafted);
        let (rows, want) = (start..start + n, sequence.want);
        let logits = match want.logits() {
            true => sequence.state.room(want.rows(rows.clone()).len() * vocab),
            false => Vec::new(),
        };
        self.members.push(Member { place, sequence, rows, ends, logits, angles });
    }

    /// What the sequence at `place` has come to.
    pub fn set(&self, place: usize, result: Result<Output>) {
        lock(&self.results)[place] = Some(result);
    }

    pub fn members(&self) -> &[Member<'c, 's>] {
        &self.members
    }

    pub fn members_mut(&mut self) -> &mut [Member<'c, 's>] {
        &mut self.members
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Rows of all sequences.
    pub fn rows(&self) -> usize {
        self.members.last().map_or(0, |m| m.rows.end)
    }

    /// The tokens of all rows.
    pub fn tokens(&self) -> List<u32> {
        self.members.iter().flat_map(|m| m.sequence.tokens).copied().collect()
    }

    /// The positions of all rows.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        let of = |m: &Member<'_, '_>| m.sequence.state.position()..m.sequence.state.position() + m.rows.len();
        self.members.iter().flat_map(of)
    }

    /// The sequence that a row belongs to.
    fn member(&self, row: usize) -> &Member<'c, 's> {
        &self.members[self.members.partition_point(|m| m.rows.end <= row)]
    }

    /// The rotary angles of a row.
    pub fn angles(&self, row: usize) -> &[[f32; 2]] {
        let member = self.member(row);
        let each = member.angles.len() / member.rows.len();
        &member.angles[(row - member.rows.start) * each..][..each]
    }

    /// Of a row with which a sequence begins, what the filter of layer `l` remembers.
    pub fn before(&self, l: usize, row: usize) -> Option<&FilterState> {
        let member = self.member(row);
        (row == member.rows.start).then_some(&member.sequence.state.layers[l].filter)
    }

    /// The states take what the filter of layer `l` will remember: of its inputs `a` and the outputs `o1` of the first convolution.
    pub fn remember(&mut self, l: usize, a: &Activations, o1: &Activations) {
        for member in &mut self.members {
            let next = &mut member.sequence.state.layers[l].next;
            next.resize_with(member.ends.len(), FilterState::default);
            for (next, end) in next.iter_mut().zip(&member.ends) {
                next.set(member.rows.start + end - 1, a, o1);
            }
        }
    }

    /// The states take the keys and values of layer `l`, [rows, P] each.
    pub fn push(&mut self, compute: &Compute, l: usize, keys: &[f32], values: &[f32]) {
        let width = keys.len() / self.rows();
        let caches = self.members.iter_mut().map(|member| {
            let rows = member.rows.start * width..member.rows.end * width;
            (&mut member.sequence.state.layers[l].kv, &keys[rows.clone()], &values[rows])
        });
        store(compute, keys.len() + values.len(), caches);
    }

    /// The keys and values of layer `l` of each sequence, with its rows, which are the last positions there.
    pub fn caches(&self, l: usize) -> List<(&KvCache, Range<usize>)> {
        self.members.iter().map(|m| (&m.sequence.state.layers[l].kv, m.rows.clone())).collect()
    }

    /// The sequences of `rows` have failed; they leave the pass with the next [`Batch::leave`]. Says whether all have.
    pub fn fail(&self, rows: &[usize], error: &Error) -> bool {
        let mut results = lock(&self.results);
        for &row in rows {
            results[self.member(row).place].get_or_insert_with(|| Err(error.again()));
        }
        self.members.iter().all(|m| results[m.place].is_some())
    }

    /// Sequences that have failed or were cancelled leave the pass, with their rows of `x`, [rows, H].
    pub fn leave(&mut self, compute: &Compute, x: Buffer) -> Buffer {
        let mut results = lock(&self.results);
        for member in self.members.iter().filter(|m| m.sequence.state.cancel.is_cancelled()) {
            results[member.place].get_or_insert(Err(Error::Cancelled));
        }
        let stays = |member: &Member<'_, '_>| results[member.place].is_none();
        if self.members.iter().all(stays) {
            return x;
        }
        let width = x.len() / self.rows().max(1);
        let rows: Vec<usize> =
            self.members.iter().filter(|m| stays(m)).flat_map(|m| m.rows.clone()).collect();
        self.members.iter_mut().filter(|m| !stays(m)).for_each(|m| m.sequence.state.undo());
        self.members.retain(|member| stays(member));
        drop(results);
        let mut start = 0;
        for member in &mut self.members {
            member.rows = start..start + member.rows.len();
            start = member.rows.end;
        }
        compute.scratch.gather(&x, width, &rows)
    }

    /// The pass has ended: those that still take part have these outputs.
    pub fn end(&mut self, outputs: impl Iterator<Item = Result<Output>>) {
        let mut results = lock(&self.results);
        let members = self.members.drain(..);
        members.zip(outputs).for_each(|(member, output)| results[member.place] = Some(output));
    }

    /// Those that still take part have failed.
    pub fn fail_all(&mut self, error: &Error) {
        let mut results = lock(&self.results);
        for member in self.members.drain(..) {
            member.sequence.state.undo();
            results[member.place] = Some(Err(error.again()));
        }
    }

    /// What has become of each sequence of the call.
    pub fn into_results(self) -> Results {
        let results = self.results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        results.into_iter().map(|result| result.expect("a result for every sequence")).collect()
    }
}
