//! Sequences: what a pass of the model is given, and what it gives back for each.

use std::ops::Range;

use smallvec::SmallVec;

use super::state::State;
use crate::error::Result;

/// The part of one sequence in a pass: some tokens, the state that they stand behind, and what is wanted of them.
///
/// A sequence gets the same bits alone or among any others.
#[derive(Debug)]
pub struct Sequence<'s> {
    /// At least one.
    pub tokens: &'s [u32],
    /// How many of the last tokens are drafts, fewer than all: they are run, and the state is one of the tokens before them, from which
    /// [`State::take_up`] goes on with a draft at no cost.
    pub drafted: usize,
    /// What the model remembers of the tokens before. It holds these tokens, too, but for drafts, when the pass succeeds, and is as before when it fails. Its
    /// [`State::cancel`] takes the sequence out of the pass.
    pub state: &'s mut State,
    /// What the pass brings.
    pub want: Want,
}

/// What a pass brings for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Nothing: the pass fills the state only.
    Nothing,
    /// The last token's logits.
    Last,
    /// The last token's best logits, so many of them at least. A GPU ranks them, where they are few, and brings no others.
    Best(usize),
    /// The logits of the last so many tokens.
    Tail(usize),
    /// Every token's logits: much memory, where the vocabulary is large.
    All,
    /// In place of logits every token's hidden state behind the final norm, [T, H], of which [`Model::logits`](super::Model::logits) makes
    /// logits, a few rows at a time.
    Hidden,
}

impl Want {
    /// The rows that it is of, of a sequence that has these: all, or the last ones.
    pub(super) fn rows(self, rows: Range<usize>) -> Range<usize> {
        match self {
            Self::All | Self::Hidden => rows,
            Self::Tail(n) => rows.end - n.clamp(1, rows.len())..rows.end,
            Self::Nothing | Self::Last | Self::Best(_) => rows.end - 1..rows.end,
        }
    }

    /// Whether logits are wanted.
    pub(super) fn logits(self) -> bool {
        matches!(self, Self::Last | Self::Best(_) | Self::Tail(_) | Self::All)
    }
}

/// What a pass has brought.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// For [`Want::Nothing`].
    Nothing,
    /// Rows of logits, [rows, V], or of hidden states, [rows, H]. [`Want::Best`] may get a row of all logits.
    Rows(Vec<f32>),
    /// The best tokens and their logits, all finite: best first, and of equals the lower id first.
    Best(Vec<(u32, f32)>),
}

/// What each sequence of a pass has come to, in their order.
pub type Results = SmallVec<[Result<Output>; 1]>;

impl Output {
    /// The rows; none where there are others or nothing.
    pub fn into_rows(self) -> Vec<f32> {
        match self {
            Self::Rows(rows) => rows,
            Self::Nothing | Self::Best(_) => Vec::new(),
        }
    }
}
