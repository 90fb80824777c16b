//! Pages of all sequences of a model, found by the tokens that they stand for: what one sequence has computed, another need not.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use super::{
    history::Snapshot,
    kv::SPAN,
    kv_type::KvType,
    page::{Page, STEP},
};
use crate::pager::sync::{Mutex, lock};

/// What the model knows of some tokens behind others: of [`SPAN`] of them, or of the fewer that a sequence has ended with.
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

#[derive(Debug, Default)]
struct Blocks {
    /// By the number of the block before them.
    behind: HashMap<u64, Vec<Entry>>,
    /// Counts what was done, and so tells what was used last.
    clock: u64,
    next: u64,
}

/// A block is known by its tokens and by the block before it. They are compared as they are, so pages of other tokens are never found.
#[derive(Debug)]
struct Entry {
    /// No other block has or had it.
    number: u64,
    tokens: Box<[u32]>,
    /// Blocks before it.
    depth: usize,
    used: u64,
    block: Block,
}

/// Numbers below belong to the beginnings of timelines, one for each type of keys and values.
const FIRST: u64 = 1 << 16;

impl Shelf {
    /// The blocks of the beginning of `tokens`, as far as there are any. The last one may stand for more tokens than it has in common with these: it
    /// comes with the snapshots of those.
    pub fn find(&self, kv: KvType, tokens: &[u32]) -> Vec<Block> {
        let mut blocks = lock(&self.0);
        let mut before = u64::from(kv.number());
        let mut found = Vec::new();
        blocks.clock += 1;
        let clock = blocks.clock;
        for tokens in tokens.chunks(SPAN) {
            let behind = blocks.behind.get_mut(&before).into_iter().flatten();
            let longest =
                behind.map(|entry| (entry.common(tokens) / STEP, entry)).max_by_key(|(steps, _)| *steps);
            let Some((steps @ 1.., entry)) = longest else { break };
            entry.used = clock;
            before = entry.number;
            let mut block = entry.block.clone();
            block.snapshots.truncate(steps);
            found.push(block);
            if steps < SPAN / STEP {
                break;
            }
        }
        found
    }

    /// Puts blocks here, those of the beginning of `tokens`, from the first on. Where there is one of the same tokens already, `blocks` gets that: what is
    /// the same is kept once. What is here of fewer tokens goes.
    pub fn put(&self, kv: KvType, tokens: &[u32], blocks: &mut [Block]) {
        let mut all = lock(&self.0);
        let mut before = u64::from(kv.number());
        all.clock += 1;
        let (clock, mut next) = (all.clock, all.next);
        for (depth, (tokens, block)) in tokens.chunks(SPAN).zip(blocks).enumerate() {
            let tokens = &tokens[..block.snapshots.len() * STEP];
            let behind = all.behind.entry(before).or_default();
            if let Some(found) = behind.iter_mut().find(|entry| entry.tokens.starts_with(tokens)) {
                found.used = clock;
                before = found.number;
                if found.tokens.len() == tokens.len() {
                    block.clone_from(&found.block);
                }
                continue;
            }
            behind.retain(|entry| !tokens.starts_with(&entry.tokens));
            before = FIRST + next;
            next += 1;
            let block = block.clone();
            behind.push(Entry { number: before, tokens: tokens.into(), depth, used: clock, block });
        }
        all.next = next;
    }

    /// Drops the block that was used longest ago, of those that no sequence holds; a later one before those that it stands behind. Returns whether there
    /// was one.
    pub fn drop_oldest(&self) -> bool {
        let mut blocks = lock(&self.0);
        let free = blocks.entries().filter(|e| e.block.holders() == 0);
        let oldest = free.min_by_key(|e| (e.used, Reverse(e.depth))).map(|e| e.number);
        oldest.is_some_and(|number| blocks.retain(|e| e.number != number))
    }

    /// Drops the block of this page of the first layer, and returns whether it was here.
    pub fn forget(&self, page: &Arc<Page>) -> bool {
        lock(&self.0).retain(|e| !e.block.pages.first().is_some_and(|p| Arc::ptr_eq(p, page)))
    }

    /// Drops the blocks of the beginning of `tokens` that no sequence holds and that no other tokens go on from.
    pub fn erase(&self, kv: KvType, tokens: &[u32]) {
        let mut blocks = lock(&self.0);
        let (mut before, mut chain) = (u64::from(kv.number()), Vec::new());
        for tokens in tokens.chunks(SPAN) {
            let behind = blocks.behind.get(&before).into_iter().flatten();
            let longest = behind.filter(|e| tokens.starts_with(&e.tokens)).max_by_key(|e| e.tokens.len());
            let Some(entry) = longest else { break };
            before = entry.number;
            chain.push((before, entry.block.holders()));
        }
        while let Some((number, holders)) = chain.pop() {
            if holders > 0 || blocks.behind.contains_key(&number) {
                break;
            }
            blocks.retain(|e| e.number != number);
        }
    }

    /// Blocks that several sequences hold, and those that none does.
    pub fn count(&self) -> (usize, usize) {
        let blocks = lock(&self.0);
        let holders = blocks.entries().map(|e| e.block.holders());
        holders.fold((0, 0), |(shared, kept), n| (shared + usize::from(n > 1), kept + usize::from(n == 0)))
    }
}

impl Blocks {
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.behind.values().flatten()
    }

    /// Keeps the entries that `wanted` says, and returns whether others were there.
    fn retain(&mut self, mut wanted: impl FnMut(&Entry) -> bool) -> bool {
        let mut dropped = false;
        self.behind.retain(|_, entries| {
            let before = entries.len();
            entries.retain(&mut wanted);
            dropped |= entries.len() < before;
            !entries.is_empty()
        });
        dropped
    }
}

impl Entry {
    /// How many of the first of these tokens are its own.
    fn common(&self, tokens: &[u32]) -> usize {
        self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count()
    }
}

impl Block {
    /// Sequences that have it, beside the shelf.
    fn holders(&self) -> usize {
        self.pages.first().map_or(0, |page| Arc::strong_count(page) - 1)
    }
}
