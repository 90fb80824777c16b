//! Full pages of all sequences of a model, found by the tokens that they stand for: what one sequence has computed, another need not.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use super::{
    history::Snapshot,
    kv::{KvType, SPAN},
    page::Page,
};
use crate::pager::sync::{Mutex, lock};

/// What the model knows of [`SPAN`] tokens behind others.
#[derive(Clone, Debug)]
pub struct Block {
    /// Keys and values, by layer.
    pub pages: Vec<Arc<Page>>,
    /// Of its regular positions, the last of which is its end.
    pub snapshots: Vec<Arc<Snapshot>>,
}

/// The pages that there are. Those that no sequence holds stay until somebody needs their memory.
#[derive(Debug, Default)]
pub struct Shelf(Mutex<Blocks>);

/// A block is known by its tokens and by the block before it. They are compared as they are, so pages of other tokens are never found.
type Key = (u64, Box<[u32]>);

#[derive(Debug, Default)]
struct Blocks {
    by_tokens: HashMap<Key, Entry>,
    /// Counts what was done, and so tells what was used last.
    clock: u64,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    /// No other block has or had it.
    number: u64,
    /// Blocks before it.
    depth: usize,
    used: u64,
    block: Block,
}

/// Numbers below belong to the beginnings of timelines, one for each type of keys and values.
const FIRST: u64 = 1 << 8;

impl Shelf {
    /// The blocks of the beginning of `tokens`, as many as there are.
    pub fn find(&self, kv: KvType, tokens: &[u32]) -> Vec<Block> {
        let mut blocks = lock(&self.0);
        let mut before = kv as u64;
        let mut found = Vec::new();
        blocks.clock += 1;
        for tokens in tokens.chunks_exact(SPAN) {
            let Some(block) = blocks.get(before, tokens) else { break };
            before = block.0;
            found.push(block.1);
        }
        found
    }

    /// Puts blocks here, those of the beginning of `tokens`, from the first on. Where there is one of the same tokens already, `blocks` gets that: what is
    /// the same is kept once.
    pub fn put(&self, kv: KvType, tokens: &[u32], blocks: &mut [Block]) {
        let mut all = lock(&self.0);
        let mut before = kv as u64;
        all.clock += 1;
        for (depth, (tokens, block)) in tokens.chunks_exact(SPAN).zip(blocks).enumerate() {
            if let Some((number, found)) = all.get(before, tokens) {
                before = number;
                *block = found;
                continue;
            }
            let number = FIRST + all.next;
            let entry = Entry { number, depth, used: all.clock, block: block.clone() };
            all.next += 1;
            all.by_tokens.insert((before, tokens.into()), entry);
            before = number;
        }
    }

    /// Drops the block that was used longest ago, of those that no sequence holds; a later one before those that it stands behind. Returns whether there
    /// was one.
    pub fn drop_oldest(&self) -> bool {
        let mut blocks = lock(&self.0);
        let free = blocks.by_tokens.iter().filter(|(_, e)| e.block.holders() == 0);
        let oldest = free.min_by_key(|(_, e)| (e.used, Reverse(e.depth))).map(|(key, _)| key.clone());
        oldest.and_then(|key| blocks.by_tokens.remove(&key)).is_some()
    }

    /// Drops the block of this page of the first layer, and returns whether it was here.
    pub fn forget(&self, page: &Arc<Page>) -> bool {
        let mut blocks = lock(&self.0);
        let before = blocks.by_tokens.len();
        blocks.by_tokens.retain(|_, e| !e.block.pages.first().is_some_and(|p| Arc::ptr_eq(p, page)));
        blocks.by_tokens.len() < before
    }

    /// Blocks that several sequences hold, and those that none does.
    pub fn count(&self) -> (usize, usize) {
        let blocks = lock(&self.0);
        let holders = blocks.by_tokens.values().map(|e| e.block.holders());
        holders.fold((0, 0), |(shared, kept), n| (shared + usize::from(n > 1), kept + usize::from(n == 0)))
    }
}

impl Blocks {
    fn get(&mut self, before: u64, tokens: &[u32]) -> Option<(u64, Block)> {
        let entry = self.by_tokens.get_mut(&(before, tokens.into()))?;
        entry.used = self.clock;
        Some((entry.number, entry.block.clone()))
    }
}

impl Block {
    /// Sequences that have it, beside the shelf.
    fn holders(&self) -> usize {
        self.pages.first().map_or(0, |page| Arc::strong_count(page) - 1)
    }
}
