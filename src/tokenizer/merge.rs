//! Byte-pair encoding by score: of all adjacent pairs of symbols whose texts together are a piece, the one with the highest
//! score is merged, the leftmost of equals, until there is none.

use std::collections::{BinaryHeap, HashMap, HashSet};

use crate::vocab::{Piece, PieceKind};

/// No symbol, or no piece.
const NONE: u32 = u32::MAX;

/// Bytes of text after which it is cut anywhere, so that positions fit 32 bits. No text of this world is that long without a
/// place where merges end by themselves.
const LONGEST_STRETCH: usize = 1 << 30;

/// The pieces that text can become.
#[derive(Clone, Debug)]
pub(super) struct Merges {
    /// By text.
    found: HashMap<Box<str>, Found>,
    /// Pairs of characters that stand beside each other in some piece. No merge reaches across any other pair, so a text falls
    /// into stretches that are merged each by itself: words, mostly.
    neighbours: HashSet<(char, char)>,
    /// Bytes of the longest piece.
    longest: usize,
}

/// A piece.
#[derive(Clone, Copy, Debug)]
struct Found {
    id: u32,
    /// The score as a number that is ordered alike.
    rank: u32,
}

/// A part of the text, in a doubly linked list.
struct Symbol {
    start: u32,
    /// Bytes; 0 when the symbol was merged into the one before it.
    len: u32,
    previous: u32,
    next: u32,
    id: u32,
}

/// A pair of neighbours that could be merged. The greatest is merged first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    /// The complement of the left symbol's index, so that the leftmost is the greatest.
    not_left: u32,
    /// Bytes of both; when they have another length by now, the pair is no more.
    len: u32,
    /// The piece that they become.
    id: u32,
}

/// The list and the heap, kept from one stretch to the next.
#[derive(Default)]
struct Scratch {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Candidate>,
}

impl Merges {
    /// The ordinary pieces with their ids, as far as they are `allowed`. User-defined, unused, control, unknown and byte pieces
    /// never match text.
    pub(super) fn new(pieces: &[Piece], allowed: impl Fn(u32) -> bool) -> Self {
        let mut found = HashMap::with_capacity(pieces.len());
        let mut neighbours = HashSet::new();
        let mut longest = 0;
        for (piece, id) in
            pieces.iter().zip(0..).filter(|(p, id)| p.kind == PieceKind::Normal && allowed(*id))
        {
            found.entry(piece.text.as_str().into()).or_insert(Found { id, rank: rank(piece.score) });
            neighbours.extend(piece.text.chars().zip(piece.text.chars().skip(1)));
            longest = longest.max(piece.text.len());
        }
        Self { found, neighbours, longest }
    }

    /// Calls `emit` with the symbols of `text` when all is merged: the piece, if it is one, and the text.
    pub(super) fn encode(&self, text: &str, mut emit: impl FnMut(Option<u32>, &str)) {
        let mut scratch = Scratch::default();
        let (mut start, mut before) = (0, None);
        for (at, c) in text.char_indices() {
            let cut = before.is_some_and(|b| !self.neighbours.contains(&(b, c)));
            if cut || at - start >= LONGEST_STRETCH {
                self.encode_stretch(&text[start..at], &mut scratch, &mut emit);
                start = at;
            }
            before = Some(c);
        }
        self.encode_stretch(&text[start..], &mut scratch, &mut emit);
    }

    fn encode_stretch(&self, text: &str, scratch: &mut Scratch, emit: &mut impl FnMut(Option<u32>, &str)) {
        let Scratch { symbols, heap } = scratch;
        symbols.clear();
        heap.clear();
        // Positions fit: a stretch has at most LONGEST_STRETCH bytes and one character.
        for (i, (start, c)) in (0..).zip(text.char_indices()) {
            let (start, len) = (start as u32, c.len_utf8() as u32);
            let id = self.find(&text[start as usize..][..len as usize]).map_or(NONE, |f| f.id);
            symbols.push(Symbol { start, len, previous: if i == 0 { NONE } else { i - 1 }, next: i + 1, id });
        }
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        heap.extend((0..symbols.len() as u32).filter_map(|left| self.candidate(text, symbols, left)));
        while let Some(Candidate { not_left, len, id, .. }) = heap.pop() {
            let left = !not_left;
            let Symbol { len: left_len, previous, next: right, .. } = symbols[left as usize];
            if left_len == 0 || right == NONE || left_len + symbols[right as usize].len != len {
                continue;
            }
            let after = symbols[right as usize].next;
            symbols[right as usize].len = 0;
            let merged = &mut symbols[left as usize];
            (merged.len, merged.id, merged.next) = (len, id, after);
            if after != NONE {
                symbols[after as usize].previous = left;
                heap.extend(self.candidate(text, symbols, left));
            }
            if previous != NONE {
                heap.extend(self.candidate(text, symbols, previous));
            }
        }
        for symbol in symbols.iter().filter(|s| s.len > 0) {
            emit(
                (symbol.id != NONE).then_some(symbol.id),
                &text[symbol.start as usize..][..symbol.len as usize],
            );
        }
    }

    /// The merge of a symbol with the next one, if they are a piece.
    fn candidate(&self, text: &str, symbols: &[Symbol], left: u32) -> Option<Candidate> {
        let Symbol { start, len, next, .. } = symbols[left as usize];
        let len = len + symbols.get(next as usize)?.len;
        let Found { id, rank } = self.find(&text[start as usize..][..len as usize])?;
        Some(Candidate { rank, not_left: !left, len, id })
    }

    fn find(&self, text: &str) -> Option<Found> {
        // Long texts are not even hashed: a symbol costs no more than the longest piece.
        (text.len() <= self.longest).then(|| self.found.get(text).copied())?
    }
}

/// A number that is ordered like the score, with one zero.
fn rank(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

#[cfg(test)]
mod tests {
    use super::rank;

    #[test]
    fn ranks_are_ordered_like_scores() {
        let scores =
            [f32::NEG_INFINITY, -1e9, -1000.0, -1.0, -f32::MIN_POSITIVE, 0.0, 1e-40, 0.5, 3.0, f32::INFINITY];
        assert!(scores.map(rank).is_sorted_by(|a, b| a < b));
        assert_eq!(rank(-0.0), rank(0.0));
    }
}
