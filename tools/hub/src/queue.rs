//! Which blocks of a file are there, and which are brought next: those that somebody waits for, and then the others in their order.

use std::{collections::VecDeque, ops::Range};

/// Blocks of one request.
const RUN: usize = 32;
/// Blocks of one that somebody waits for: so few that several connections share the work.
const URGENT_RUN: usize = 4;

/// What has become of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Absent,
    /// A connection brings it, because it is missing.
    Coming,
    /// A connection brings it, because somebody waits for it.
    Urgent,
    /// It has come and is being written.
    Writing,
    There,
}

/// Blocks that one connection brings.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// Those that have not come.
    pub blocks: Range<usize>,
    /// Why.
    pub why: Why,
}

/// Why blocks are brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// They are missing.
    Missing,
    /// Somebody waits for them.
    Wanted,
    /// The server has no parts, and one connection brings all.
    All,
}

/// The blocks of a file.
#[derive(Debug)]
pub struct Queue {
    blocks: Vec<Block>,
    missing: usize,
    /// What is asked for, the first first.
    wanted: VecDeque<Range<usize>>,
    /// One connection brings all: the server has no parts.
    is_whole: bool,
}

impl Queue {
    /// Of a file, some blocks of which are there.
    pub fn new(there: &[bool]) -> Self {
        let block = |there: &bool| if *there { Block::There } else { Block::Absent };
        let blocks: Vec<_> = there.iter().map(block).collect();
        let missing = blocks.iter().filter(|block| **block == Block::Absent).count();
        Self { blocks, missing, wanted: VecDeque::new(), is_whole: false }
    }

    /// Whether all of them are there.
    pub fn has_all(&self) -> bool {
        self.missing == 0
    }

    /// Whether these are there.
    pub fn has(&self, blocks: Range<usize>) -> bool {
        self.blocks[blocks].iter().all(|block| *block == Block::There)
    }

    /// Somebody will wait for these.
    pub fn want(&mut self, blocks: Range<usize>) {
        let is_known = |known: &Range<usize>| known.start <= blocks.start && blocks.end <= known.end;
        if !self.has(blocks.clone()) && !self.wanted.iter().any(is_known) {
            self.wanted.push_back(blocks);
        }
    }

    /// What to bring next, if there is something that nobody brings. What is wanted may be on its way behind much else: it is taken from there.
    pub fn next(&mut self, urgent_only: bool) -> Option<Run> {
        if self.is_whole {
            return None;
        }
        let blocks = &mut self.blocks;
        self.wanted.retain(|range| blocks[range.clone()].iter().any(|block| *block != Block::There));
        let is_free = |block: &Block| matches!(block, Block::Absent | Block::Coming);
        let urgent = self.wanted.iter().find_map(|range| first(blocks, range.clone(), URGENT_RUN, is_free));
        if let Some(run) = urgent {
            blocks[run.clone()].fill(Block::Urgent);
            return Some(Run { blocks: run, why: Why::Wanted });
        }
        if urgent_only {
            return None;
        }
        let run = first(blocks, 0..blocks.len(), RUN, |block| *block == Block::Absent)?;
        blocks[run.clone()].fill(Block::Coming);
        Some(Run { blocks: run, why: Why::Missing })
    }

    /// Whether a connection leaves this run for what somebody waits for.
    pub fn yields(&self, run: &Run) -> bool {
        let waits = |block: &Block| matches!(block, Block::Absent | Block::Coming);
        let is_waited_for = |range: &Range<usize>| self.blocks[range.clone()].iter().any(waits);
        run.why == Why::Missing && !self.is_whole && self.wanted.iter().any(is_waited_for)
    }

    /// What is left of a run is not brought any more.
    pub fn give_back(&mut self, run: &Run) {
        let mine = if run.why == Why::Wanted { Block::Urgent } else { Block::Coming };
        self.is_whole &= run.why != Why::All;
        self.blocks[run.blocks.clone()].iter_mut().filter(|b| **b == mine).for_each(|b| *b = Block::Absent);
    }

    /// The server has no parts, as the connection of `run` has found, which leaves that: one brings all from the beginning on. Returns what it brings, or
    /// nothing where another one does already.
    pub fn take_all(&mut self, run: &mut Run) -> Option<Run> {
        self.give_back(run);
        run.blocks.start = run.blocks.end;
        let begun = std::mem::replace(&mut self.is_whole, true);
        (!begun).then_some(Run { blocks: 0..self.blocks.len(), why: Why::All })
    }

    /// This block has come, and is written now, unless another connection was sooner.
    pub fn begin_writing(&mut self, block: usize) -> bool {
        let is_needed = !matches!(self.blocks[block], Block::Writing | Block::There);
        if is_needed {
            self.blocks[block] = Block::Writing;
        }
        is_needed
    }

    /// It is written, or could not be.
    pub fn end_writing(&mut self, block: usize, is_there: bool) {
        self.blocks[block] = if is_there { Block::There } else { Block::Absent };
        self.missing -= usize::from(is_there);
    }

    /// A block is not what it should be, if it is there. Returns whether it was.
    pub fn take_back(&mut self, block: usize) -> bool {
        let was_there = self.blocks[block] == Block::There;
        if was_there {
            self.blocks[block] = Block::Absent;
            self.missing += 1;
        }
        was_there
    }
}

/// The first blocks in a row of those in `range` that are `free`, at most so many.
fn first(
    blocks: &[Block],
    range: Range<usize>,
    most: usize,
    free: impl Fn(&Block) -> bool,
) -> Option<Range<usize>> {
    let start = range.start + blocks[range.clone()].iter().position(&free)?;
    let length = blocks[start..range.end].iter().take(most).take_while(|block| free(block)).count();
    Some(start..start + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(queue: &mut Queue) -> Option<(Range<usize>, bool)> {
        queue.next(false).map(|run| (run.blocks, run.why == Why::Wanted))
    }

    fn write(queue: &mut Queue, blocks: Range<usize>) {
        for block in blocks {
            assert!(queue.begin_writing(block));
            assert!(!queue.begin_writing(block), "somebody writes it");
            queue.end_writing(block, false);
            assert!(queue.begin_writing(block), "it could not be written");
            queue.end_writing(block, true);
            assert!(!queue.begin_writing(block), "it is there");
        }
    }

    #[test]
    fn what_is_missing_is_brought_in_order() {
        let mut queue = Queue::new(&[true, false, false, true, false]);
        assert_eq!([take(&mut queue), take(&mut queue)], [Some((1..3, false)), Some((4..5, false))]);
        assert_eq!(take(&mut queue), None);
        write(&mut queue, 1..3);
        assert!(!queue.has_all() && queue.has(0..4));
        write(&mut queue, 4..5);
        assert!(queue.has_all());
        let mut long = Queue::new(&[false; RUN + 1]);
        assert_eq!([take(&mut long), take(&mut long)], [Some((0..RUN, false)), Some((RUN..RUN + 1, false))]);
        assert!(Queue::new(&[]).has_all());
    }

    #[test]
    fn what_is_wanted_comes_first_in_the_order_of_the_asking() {
        let mut queue = Queue::new(&[false; 20]);
        assert_eq!(queue.next(true), None);
        queue.want(15..17);
        queue.want(3..9);
        queue.want(4..6);
        assert_eq!(take(&mut queue), Some((15..17, true)));
        assert_eq!(queue.next(true).map(|run| run.blocks), Some(3..3 + URGENT_RUN));
        assert_eq!(take(&mut queue), Some((7..9, true)));
        assert_eq!(take(&mut queue), Some((0..3, false)));
        assert_eq!(queue.next(true), None);
    }

    #[test]
    fn what_is_wanted_does_not_wait_for_what_is_not() {
        let mut queue = Queue::new(&[false; 20]);
        let background = queue.next(false).unwrap();
        assert!(!queue.yields(&background));
        queue.want(10..12);
        assert!(queue.yields(&background));
        let urgent = queue.next(true).unwrap();
        assert_eq!(urgent.blocks, 10..12);
        assert!(!queue.yields(&background) && !queue.yields(&urgent), "somebody brings it");
        // The first connection stops, and the other one fails.
        queue.give_back(&background);
        assert_eq!(take(&mut queue), Some((0..10, false)));
        queue.give_back(&urgent);
        assert_eq!(take(&mut queue), Some((10..12, true)));
        write(&mut queue, 10..12);
        assert_eq!(take(&mut queue), Some((12..20, false)));
    }

    #[test]
    fn what_is_taken_back_is_brought_again() {
        let mut queue = Queue::new(&[true; 3]);
        assert!(queue.take_back(1) && !queue.take_back(1) && !queue.has_all());
        queue.want(0..3);
        assert_eq!(take(&mut queue), Some((1..2, true)));
        write(&mut queue, 1..2);
        assert!(queue.has_all() && take(&mut queue).is_none());
    }

    #[test]
    fn a_server_without_parts_is_asked_once() {
        let mut queue = Queue::new(&[true, false, false]);
        let mut runs = [queue.next(false).unwrap(), Run { blocks: 0..0, why: Why::Missing }];
        let all = queue.take_all(&mut runs[0]).unwrap();
        assert_eq!((all.blocks.clone(), queue.take_all(&mut runs[1])), (0..3, None));
        assert!(runs.iter().all(|run| run.blocks.is_empty()));
        queue.want(2..3);
        assert!(take(&mut queue).is_none() && !queue.yields(&all));
        // It has come to its end, and somebody did not like what came.
        queue.give_back(&all);
        assert_eq!(take(&mut queue), Some((2..3, true)));
    }
}
