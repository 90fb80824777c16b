//! A sequence's part of a pass: which rows are its own, where they stand, and how attention goes over them.

use std::{ops::Range, sync::Arc};

use yuan_cuda::launch::{self, FEW, QUERIES};

use super::scratch::Size;
use crate::{
    list::List,
    model::{Cancel, Sequence},
};

/// A sequence's part of a pass.
#[derive(Debug)]
pub struct Part {
    /// By what the pages know it.
    pub owner: Arc<()>,
    /// Its rows of the pass.
    pub rows: Range<usize>,
    /// Positions before them.
    pub start: usize,
    /// How many of the last of them are drafts.
    pub drafted: usize,
    /// Numbers of its tokens after which a state is wanted.
    pub ends: List<usize>,
    /// The number of its first end among those of the pass.
    pub first_end: usize,
    pub cancel: Cancel,
}

impl Part {
    /// The parts of all sequences, of which those that have few rows come first.
    pub fn all(sequences: &[&mut Sequence<'_>], owners: &[Arc<()>]) -> Vec<Self> {
        let (mut row, mut end) = (0, 0);
        let part = |(sequence, owner): (&&mut Sequence<'_>, &Arc<()>)| {
            let (n, state) = (sequence.tokens.len(), &sequence.state);
            let (rows, first_end) = (row..row + n, end);
            let (drafted, ends) = (sequence.drafted, state.ends(n, sequence.drafted));
            (row, end) = (rows.end, end + ends.len());
            let (start, cancel) = (state.position(), state.cancel.clone());
            Self { owner: owner.clone(), rows, start, drafted, ends, first_end, cancel }
        };
        sequences.iter().zip(owners).map(part).collect()
    }

    /// Positions with its rows.
    pub fn end(&self) -> usize {
        self.start + self.rows.len()
    }

    /// How much all of them are.
    pub fn size(parts: &[Self]) -> Size {
        let rows = parts.last().map_or(0, |part| part.rows.end);
        let stride = parts.iter().map(|part| launch::spans(part.end())).max().unwrap_or(0);
        Size { rows, sequences: parts.len(), stride }
    }

    /// The rows of the pass behind which a state is wanted.
    pub fn end_rows(parts: &[Self]) -> Vec<usize> {
        parts.iter().flat_map(|part| part.ends.iter().map(|end| part.rows.start + end - 1)).collect()
    }

    /// Rows of sequences that have few, which lie before all others.
    pub fn few(parts: &[Self]) -> usize {
        parts.iter().take_while(|part| part.rows.len() <= FEW).last().map_or(0, |part| part.rows.end)
    }

    /// The others in groups of one sequence each: first row, and how many.
    pub fn groups(parts: &[Self]) -> Vec<[i32; 2]> {
        let few = Self::few(parts);
        let others = parts.iter().filter(|part| part.rows.start >= few);
        let group = |part: &Self| {
            let end = part.rows.end;
            part.rows.clone().step_by(QUERIES).map(move |row| [row as i32, QUERIES.min(end - row) as i32])
        };
        others.flat_map(group).collect()
    }

    /// Where each row stands: position, sequence, whether it is the first of that.
    pub fn places(parts: &[Self]) -> Vec<[i32; launch::ROW]> {
        let place = |(number, part): (usize, &Self)| {
            let start = part.start;
            (0..part.rows.len()).map(move |t| [(start + t) as i32, number as i32, i32::from(t == 0), 0])
        };
        parts.iter().enumerate().flat_map(place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(of: &[(usize, usize)]) -> Vec<Part> {
        let mut row = 0;
        let part = |&(start, n): &(usize, usize)| {
            let rows = row..row + n;
            row = rows.end;
            let (owner, cancel) = (Arc::new(()), Cancel::new());
            Part { owner, rows, start, drafted: 0, ends: [n].into_iter().collect(), first_end: 0, cancel }
        };
        of.iter().map(part).collect()
    }

    #[test]
    fn sequences_with_few_rows_go_first_and_others_in_groups() {
        let parts = parts(&[(700, 1), (3, 8), (0, 9), (10, 17)]);
        assert_eq!(Part::size(&parts), Size { rows: 35, sequences: 4, stride: 2 });
        assert_eq!(Part::few(&parts), 9);
        assert_eq!(Part::groups(&parts), [[9, 8], [17, 1], [18, 8], [26, 8], [34, 1]]);
        assert_eq!(Part::end_rows(&parts), [0, 8, 17, 34]);
        let places = Part::places(&parts);
        assert_eq!(places[..3], [[700, 0, 1, 0], [3, 1, 1, 0], [4, 1, 0, 0]]);
        assert_eq!(places[34], [26, 3, 0, 0]);
    }

    #[test]
    fn a_pass_of_single_rows_has_no_groups() {
        let parts = parts(&[(511, 1), (512, 1)]);
        assert_eq!((Part::few(&parts), Part::groups(&parts).len()), (2, 0));
        assert_eq!(Part::size(&parts).stride, 2);
    }
}
