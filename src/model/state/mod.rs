//! What a model remembers of the tokens so far.

use std::{
    collections::VecDeque,
    mem::{swap, take},
    sync::Arc,
};

mod history;
mod kv;
mod kv_type;
mod page;
mod pool;
mod saved;
mod scores;
mod shelf;
mod store;

pub use history::{History, Snapshot};
pub use kv::{KvCache, SPAN};
pub(crate) use kv_type::UNROTATED_Q4_0;
pub use kv_type::{KvType, Stored};
pub use pool::{Lease, Pool, PoolUse};
pub(crate) use saved::Extent;
pub use store::store;

use super::{cancel::Cancel, filter::FilterState};
use crate::{
    config::ModelConfig,
    error::{Error, Result},
    limits::{MOST_DRAFTED, check_context},
    list::List,
};
use page::STEP;
use pool::Member;
use shelf::Block;

/// The memory of one sequence: a KV cache and the filter's last inputs for every layer.
#[derive(Clone, Debug)]
pub struct State {
    /// By layer.
    pub layers: Vec<LayerState>,
    /// Stops a call between two layers, and leaves the state as before the call.
    pub cancel: Cancel,
    pub(super) position: usize,
    pub(super) hidden: Vec<f32>,
    pub(super) history: History,
    /// Positions that are to be marked when they are reached.
    wanted: Vec<usize>,
    capacity: usize,
    kv: KvType,
    pool: Member,
    spare: Spare,
    room: Room,
    /// Of a snapshot.
    snapshot_bytes: u64,
    /// After each of the drafts that the last pass has run behind this state, and nothing has become of yet.
    drafts: VecDeque<Arc<Snapshot>>,
    /// Full pages that other sequences can find.
    shared: usize,
    /// Whether a part of it was read from a file. Nobody else gets that: nothing says that it is what the model makes of the tokens.
    pub(super) foreign: bool,
    /// Keys and values once more, on a GPU.
    #[cfg(feature = "gpu")]
    pub(super) mirror: super::gpu::Mirror,
}

/// Bytes for the snapshots of the pass that runs.
#[derive(Debug, Default)]
struct Spare(Option<Lease>);

/// No pass runs on a copy.
impl Clone for Spare {
    fn clone(&self) -> Self {
        Self(None)
    }
}

/// Memory that logits lay in and will lie in again: fresh memory costs the system more to clear than most of what a token computes with it.
#[derive(Debug, Default)]
struct Room(Vec<f32>);

/// What it holds means nothing.
impl Clone for Room {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// The memory of one layer.
#[derive(Clone, Debug)]
pub struct LayerState {
    /// Keys and values of all positions so far.
    pub kv: KvCache,
    /// The filter's last inputs.
    pub filter: FilterState,
    /// What [`LayerState::filter`] becomes when the pass that is running succeeds, after the filters of the snapshots. Between passes it means nothing.
    pub(super) next: Vec<FilterState>,
}

impl State {
    /// An empty state for `capacity` tokens at most, that belongs to no model's pool ([`Model::state`](super::Model::state)): it takes memory as it
    /// fills, and nobody counts it.
    ///
    /// # Errors
    /// [`Error::Memory`] when that is more than can be addressed; [`Error::Argument`] for more than [`MOST_CONTEXT`](crate::limits::MOST_CONTEXT)
    /// tokens, or when the type's blocks do not divide a head.
    pub fn new(config: &ModelConfig, capacity: usize, kv: KvType) -> Result<Self> {
        Self::of_pool(config, capacity, kv, Pool::new(u64::MAX, config.layers))
    }

    /// [`State::new`] out of a pool.
    pub(super) fn of_pool(
        config: &ModelConfig,
        capacity: usize,
        kv: KvType,
        pool: Arc<Pool>,
    ) -> Result<Self> {
        check_size(Self::kv_bytes(config, kv), capacity)?;
        if !config.head_dim().is_multiple_of(kv.block_len()) {
            let (dim, name) = (config.head_dim(), kv.name());
            return Err(Error::Argument(format!(
                "heads of {dim} have no key-value cache in {name}; choose f16"
            )));
        }
        let layer = |_| LayerState {
            kv: KvCache::new(config.heads, config.head_dim(), kv),
            filter: FilterState::new(config.hidden),
            next: Vec::new(),
        };
        Ok(Self {
            layers: (0..config.layers).map(layer).collect(),
            cancel: Cancel::new(),
            position: 0,
            hidden: Vec::new(),
            history: History::new(),
            wanted: Vec::new(),
            capacity,
            kv,
            pool: Member::of(pool),
            spare: Spare::default(),
            room: Room::default(),
            snapshot_bytes: Self::snapshot_bytes(config) as u64,
            drafts: VecDeque::new(),
            shared: 0,
            foreign: false,
            #[cfg(feature = "gpu")]
            mirror: Default::default(),
        })
    }

    /// Bytes of keys and values that one token takes in all layers.
    pub fn kv_bytes(config: &ModelConfig, kv: KvType) -> usize {
        config.layers * kv.bytes(config.projection)
    }

    /// Bytes that a sequence of `context` tokens takes at most: keys and values, and snapshots of earlier positions.
    pub fn bytes(config: &ModelConfig, kv: KvType, context: usize) -> u64 {
        let step = (STEP * Self::kv_bytes(config, kv)) as u64;
        let pages = step.saturating_mul(context.div_ceil(STEP) as u64);
        let most = History::most(context).saturating_add(MOST_DRAFTED) as u64;
        let snapshots = (Self::snapshot_bytes(config) as u64).saturating_mul(most);
        pages.saturating_add(snapshots)
    }

    /// Bytes of one snapshot: the filter's last inputs of all layers, and a hidden state.
    pub(super) fn snapshot_bytes(config: &ModelConfig) -> usize {
        4 * (config.layers * (config.hidden + config.hidden / 2) + config.hidden)
    }

    /// Tokens so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Tokens that there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes room for `capacity` tokens, at least those that there are.
    ///
    /// # Errors
    /// As [`State::new`]; the room is then as before.
    pub fn resize(&mut self, capacity: usize) -> Result<()> {
        let capacity = capacity.max(self.position);
        let kv = &self.layers.first().ok_or_else(|| too_large(capacity))?.kv;
        check_size(self.layers.len() * self.kv.bytes(kv.heads() * kv.head_dim()), capacity)?;
        self.capacity = capacity;
        Ok(())
    }

    /// Makes pages for the next `tokens`, of which the last are `drafted`, before they are run, and takes what their snapshots need.
    pub(crate) fn reserve(&mut self, tokens: usize, drafted: usize) -> Result<()> {
        let end = self.position + tokens;
        self.spare = Spare::default();
        let snapshots = History::due(self.position, tokens - drafted) + drafted;
        let snapshots = snapshots as u64 * self.snapshot_bytes;
        let wanted = |state: &Self| state.layers.iter().map(|l| l.kv.missing(end)).sum::<u64>() + snapshots;
        let mut lease = self.pool.take(wanted(self));
        if lease.is_none() && self.forget_last() {
            lease = self.pool.take(wanted(self));
        }
        let Some(mut lease) = lease else {
            return Err(self.pool.is_full(wanted(self), end, self.leased()));
        };
        let reserved = self.layers.iter_mut().try_for_each(|layer| layer.kv.reserve(end, &mut lease));
        if reserved.is_none() {
            self.undo();
            let what =
                format!("the system has no memory for the keys and values of {end} tokens; ask for less");
            return Err(Error::Memory(what));
        }
        self.spare = Spare(Some(lease));
        Ok(())
    }

    /// Has the page that is written next for itself, if only the shelf has it, too: it need not be copied then.
    fn forget_last(&self) -> bool {
        let last = self.layers.first().and_then(|l| l.kv.last());
        last.is_some_and(|page| Arc::strong_count(page) == 2 && self.pool.shelf.forget(page))
    }

    /// Drops what sequences have left for the beginning of `tokens` and no other needs.
    pub(crate) fn erase(&self, tokens: &[u32]) {
        self.pool.shelf.erase(self.kv, tokens);
    }

    /// Takes the pages that sequences have left for the beginning of `tokens`, where they reach farther than this state, which holds the first of
    /// these tokens. Returns how many tokens they bring.
    pub(crate) fn adopt(&mut self, tokens: &[u32]) -> usize {
        let before = self.position;
        if tokens.len() / STEP * STEP <= before {
            return 0;
        }
        let blocks = self.pool.shelf.find(self.kv, tokens);
        let end = STEP * blocks.iter().map(|block| block.snapshots.len()).sum::<usize>();
        let Some(last) = blocks.last().and_then(|block| block.snapshots.last()).filter(|_| end > before)
        else {
            return 0;
        };
        self.drafts.clear();
        if self.foreign {
            self.history = History::new();
            #[cfg(feature = "gpu")]
            self.mirror.truncate(0);
        }
        for (l, layer) in self.layers.iter_mut().enumerate() {
            layer.kv.set_pages(blocks.iter().map(|block| block.pages[l].clone()), end);
        }
        let snapshots = blocks.iter().flat_map(|block| &block.snapshots).enumerate();
        snapshots.for_each(|(i, s)| self.history.add((i + 1) * STEP, s.clone()));
        self.go_to(end, last);
        (self.shared, self.foreign) = (end / SPAN, false);
        end - before
    }

    /// Lets other sequences find the full pages of this state, whose first tokens are `tokens`.
    pub(crate) fn share(&mut self, tokens: &[u32]) {
        let full = self.position / SPAN;
        if self.foreign || full <= self.shared {
            return;
        }
        let Some(mut blocks) = self.blocks(full * SPAN) else { return };
        self.pool.shelf.put(self.kv, tokens, &mut blocks);
        for (i, block) in blocks.iter().enumerate() {
            self.layers.iter_mut().zip(&block.pages).for_each(|(layer, page)| layer.kv.replace(i, page));
            let snapshots = block.snapshots.iter().enumerate();
            snapshots.for_each(|(n, s)| self.history.add(i * SPAN + (n + 1) * STEP, s.clone()));
        }
        self.shared = full;
    }

    /// Leaves all that it has computed to other sequences, to the last regular position. Its first tokens are `tokens`.
    pub(crate) fn leave(&self, tokens: &[u32]) {
        let end = self.position.min(tokens.len()) / STEP * STEP;
        if self.foreign || end <= self.shared * SPAN {
            return;
        }
        if let Some(mut blocks) = self.blocks(end) {
            self.pool.shelf.put(self.kv, tokens, &mut blocks);
        }
    }

    /// What it has of the positions up to `end`, a regular one, where there was memory for all snapshots.
    fn blocks(&self, end: usize) -> Option<Vec<Block>> {
        let block = |start: usize| {
            let last = end.min(start + SPAN);
            let snapshots = (start + STEP..=last).step_by(STEP).map(|at| self.history.at(at).cloned());
            Some(Block {
                pages: self.layers.iter().map(|l| l.kv.page(start / SPAN).clone()).collect(),
                snapshots: snapshots.collect::<Option<_>>()?,
            })
        };
        (0..end).step_by(SPAN).map(block).collect()
    }

    /// Bytes of the pool that it has.
    fn leased(&self) -> u64 {
        let pages: u64 = self.layers.iter().map(|l| l.kv.leased()).sum();
        pages + self.history.iter().map(|(_, s)| s.lease.bytes()).sum::<u64>()
    }

    /// The type of keys and values.
    pub fn kv_type(&self) -> KvType {
        self.kv
    }

    /// Whether a part of it was read from a file.
    pub(crate) fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// The last token's hidden state behind the final norm, \[H\]; empty before the first token.
    pub fn hidden(&self) -> &[f32] {
        &self.hidden
    }

    /// The next pass writes its logits where these `rows` of an earlier one are, which nobody needs any more.
    pub fn reuse(&mut self, rows: Vec<f32>) {
        self.room = Room(rows);
    }

    /// Room for `n` logits, with arbitrary contents.
    pub(super) fn room(&mut self, n: usize) -> Vec<f32> {
        let mut room = take(&mut self.room).0;
        // Not what many rows took, for one.
        if room.capacity() < n || room.capacity() > 2 * n {
            return vec![0.0; n];
        }
        room.resize(n, 0.0);
        room
    }

    /// Goes back to `position`, or as far before it as there is a snapshot, and returns the position that was reached. The
    /// tokens from there on are to be run again, and give the same bits.
    pub fn rewind(&mut self, position: usize) -> usize {
        if position >= self.position {
            return self.position;
        }
        let snapshot = self.history.at_or_before(position).map(|(p, s)| (p, s.clone()));
        let reached = snapshot.as_ref().map_or(0, |(p, _)| *p);
        match snapshot {
            Some((_, snapshot)) => self.go_to(reached, &snapshot),
            None => {
                self.position = 0;
                self.hidden.clear();
                for layer in &mut self.layers {
                    layer.filter = FilterState::new(layer.filter.input.len());
                }
            }
        }
        self.history.truncate(reached);
        self.shared = self.shared.min(reached / SPAN);
        self.foreign &= reached > 0;
        self.undo();
        reached
    }

    /// Is at `position`, whose keys and values it has.
    fn go_to(&mut self, position: usize, snapshot: &Snapshot) {
        self.position = position;
        self.hidden.clone_from(&snapshot.hidden);
        let filters = self.layers.iter_mut().zip(&snapshot.filters);
        filters.for_each(|(layer, filter)| layer.filter.clone_from(filter));
    }

    /// Takes a snapshot here, so that [`State::rewind`] can come back to this very position. The last sixteen are kept, beside
    /// those that are taken at regular distances. Where the pool has no room for it, there is none.
    pub fn mark(&mut self) {
        if self.position > 0 {
            self.wanted = vec![self.position];
            self.add_here();
        }
    }

    /// As [`State::mark`], at later `positions`, when the model has run so many tokens. Only the last such wish counts.
    pub fn mark_at(&mut self, positions: impl IntoIterator<Item = usize>) {
        self.wanted = positions.into_iter().collect();
    }

    /// The numbers of tokens, of `tokens` that are run next and end with so many `drafted`, after which a state is wanted; `tokens` is the last.
    pub(super) fn ends(&self, tokens: usize, drafted: usize) -> List<usize> {
        let mut ends = History::ends(self.position, tokens);
        let wanted = self.wanted.iter().filter_map(|p| p.checked_sub(self.position));
        ends.extend(wanted.filter(|&n| n > 0 && n < tokens));
        ends.extend(tokens - drafted..tokens);
        ends.sort_unstable();
        ends.dedup();
        ends
    }

    /// Ends a pass: every layer has its keys, values and next filters. `hidden` puts the hidden state after so many tokens, of which the last `drafted`
    /// are held back, in place of another one.
    pub(super) fn advance(&mut self, ends: &[usize], drafted: usize, hidden: impl Fn(usize, &mut Vec<f32>)) {
        let start = self.position;
        let certain = ends.last().expect("a pass has tokens") - drafted;
        for (i, &end) in ends.iter().enumerate().filter(|(_, end)| **end != certain) {
            let filters = self.layers.iter().map(|l| l.next[i].clone()).collect();
            let mut after = Vec::new();
            hidden(end, &mut after);
            if end < certain {
                self.add(start + end, filters, after);
            } else if let Some(lease) = self.spare.0.as_mut().map(|spare| spare.split(self.snapshot_bytes)) {
                self.drafts.push_back(Arc::new(Snapshot { filters, hidden: after, lease }));
            }
        }
        for layer in &mut self.layers {
            // The memory of the old one is that of the next pass.
            layer.next.swap(0, ends.partition_point(|&end| end < certain));
            layer.next.truncate(1);
            swap(&mut layer.filter, &mut layer.next[0]);
            layer.kv.hold_back(drafted);
        }
        self.position = start + certain;
        hidden(certain, &mut self.hidden);
        if self.wanted.contains(&self.position) || History::is_regular(self.position) {
            self.add_here();
        }
        self.spare = Spare::default();
    }

    /// Goes on with the first draft that the last pass has run ([`Sequence::drafted`](super::Sequence::drafted)), as if it had been a token of a pass of its own; or says that
    /// there is none.
    pub fn take_up(&mut self) -> bool {
        let Some(next) = self.drafts.pop_front() else { return false };
        let position = self.position + 1;
        self.layers.iter_mut().for_each(|layer| layer.kv.take_up());
        self.go_to(position, &next);
        if self.wanted.contains(&position) {
            self.wanted.retain(|&p| p != position);
            self.history.mark(position, next);
        } else if History::is_regular(position) {
            self.history.add(position, next);
        }
        true
    }

    /// Drops the drafts that are left: the state is the one that it would be without them.
    pub fn refuse(&mut self) {
        if !self.drafts.is_empty() {
            self.undo();
        }
    }

    /// [`State::add`] of the position that it is at.
    fn add_here(&mut self) {
        let filters = self.layers.iter().map(|l| l.filter.clone()).collect();
        self.add(self.position, filters, self.hidden.clone());
    }

    /// Keeps a snapshot of a regular position, or of one that is wanted.
    pub(super) fn add(&mut self, position: usize, filters: Vec<FilterState>, hidden: Vec<f32>) {
        let is_wanted = self.wanted.contains(&position);
        let lease = match &mut self.spare.0 {
            Some(spare) if History::is_regular(position) => Some(spare.split(self.snapshot_bytes)),
            _ => self.pool.take(self.snapshot_bytes),
        };
        self.wanted.retain(|&p| p != position);
        let Some(lease) = lease else { return };
        let snapshot = Arc::new(Snapshot { filters, hidden, lease });
        if is_wanted {
            self.history.mark(position, snapshot);
        } else {
            self.history.add(position, snapshot);
        }
    }

    /// Drops what an unfinished pass has left, and drafts.
    pub(super) fn undo(&mut self) {
        self.drafts.clear();
        for layer in &mut self.layers {
            layer.kv.truncate(self.position);
        }
        self.spare = Spare::default();
        #[cfg(feature = "gpu")]
        self.mirror.truncate(self.position);
    }
}

/// `capacity` tokens of so many bytes can be addressed.
fn check_size(bytes_per_token: usize, capacity: usize) -> Result<()> {
    check_context(capacity)?;
    match bytes_per_token.checked_mul(capacity) {
        Some(bytes) if bytes <= 1 << 46 => Ok(()),
        _ => Err(too_large(capacity)),
    }
}

fn too_large(capacity: usize) -> Error {
    Error::Memory(format!("a context of {capacity} tokens is too large; ask for less"))
}
