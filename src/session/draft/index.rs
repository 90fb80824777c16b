//! Where tokens have stood before: the places behind every three tokens, in chains from the latest to the earliest. Of the places that a text is looked for
//! at, the one with the most tokens in common before it is found.
//!
//! Memory is linear in the tokens, and so is the time that it takes to enter them. A search looks at a bounded number of places, and at a bounded number of tokens
//! before each, since a text of one repeated token has as many places as tokens.

use std::collections::HashMap;

use crate::limits::MOST_HINT;

/// Tokens that must be the same for a place to be found.
pub const LEAST: usize = 3;
/// Tokens in common that count: of places with more, the latest is found.
pub const LONGEST: usize = 32;
/// Places that one search looks at: the latest.
pub const PLACES: usize = 128;
/// Tokens that an index holds. Of a longer text it forgets the beginning.
const MOST_TOKENS: usize = MOST_HINT;

/// There is no earlier place.
const NONE: u32 = u32::MAX;

/// Tokens, and where each three of them stand.
#[derive(Clone, Debug, Default)]
pub struct Index {
    tokens: Vec<u32>,
    /// Of the text that is followed, the tokens before those that it holds.
    forgotten: usize,
    /// The latest place behind these tokens: the number of the token that follows them.
    latest: HashMap<[u32; LEAST], u32>,
    /// By place the one before it behind the same tokens.
    before: Vec<u32>,
}

/// A place at which the text that was looked for has stood before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The number of the token that followed it.
    pub place: usize,
    /// Tokens in common before that.
    pub length: usize,
}

impl Index {
    /// The index of a text.
    pub fn of(tokens: &[u32]) -> Self {
        let mut index = Self::default();
        index.follow(tokens);
        index
    }

    /// Holds the end of this text, and no other. What it has in common at its beginning with the one before costs nothing but its comparison.
    pub fn follow(&mut self, text: &[u32]) {
        let held = text.get(self.forgotten..).unwrap_or_default();
        let common = self.tokens.iter().zip(held).take_while(|(a, b)| a == b).count();
        self.truncate(common);
        if common == 0 {
            self.forgotten = 0;
        }
        self.extend(text);
    }

    /// [`Index::follow`] of a text that begins with the one that it follows.
    pub fn extend(&mut self, text: &[u32]) {
        if text.len() - self.forgotten > MOST_TOKENS {
            self.truncate(0);
            self.forgotten = text.len() - MOST_TOKENS / 2;
        }
        for &token in &text[self.forgotten + self.tokens.len()..] {
            let place = self.tokens.len();
            let earlier = self.tokens.last_chunk().map(|&gram| self.latest.insert(gram, place as u32));
            self.before.push(earlier.flatten().unwrap_or(NONE));
            self.tokens.push(token);
        }
    }

    /// Forgets all but the first `length` tokens that it holds.
    fn truncate(&mut self, length: usize) {
        while self.tokens.len() > length {
            self.tokens.pop();
            let Some(earlier) = self.before.pop() else { return };
            let Some(gram) = self.tokens.last_chunk() else { continue };
            match earlier {
                NONE => self.latest.remove(gram),
                earlier => self.latest.insert(*gram, earlier),
            };
        }
    }

    /// Where the end of `text` has stood before: of the latest places behind its last three tokens the one with the most tokens in common, and of equals the latest.
    pub fn find(&self, text: &[u32]) -> Option<Found> {
        let mut place = *self.latest.get(text.last_chunk::<LEAST>()?)?;
        let mut best: Option<Found> = None;
        for _ in 0..PLACES {
            let before = self.tokens[..place as usize].iter().rev().zip(text.iter().rev());
            let length = before.take(LONGEST).take_while(|(a, b)| a == b).count();
            if best.is_none_or(|best| length > best.length) {
                best = Some(Found { place: place as usize, length });
            }
            place = self.before[place as usize];
            if length == LONGEST || place == NONE {
                break;
            }
        }
        best
    }

    /// The first tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The `n` tokens that stand from `place` on, or as many as there are.
    pub fn behind(&self, place: usize, n: usize) -> Vec<u32> {
        self.tokens[place..].iter().take(n).copied().collect()
    }

    /// The `n` tokens from `place` on, where the text goes on as from there: behind its end the tokens that were just found follow.
    pub fn continued(&self, place: usize, n: usize) -> Vec<u32> {
        let period = self.tokens.len() - place;
        (0..n).map(|i| self.tokens[place + i % period]).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By its definition.
    fn naive(held: &[u32], text: &[u32]) -> Option<Found> {
        let common = |place: usize| {
            let before = held[..place].iter().rev().zip(text.iter().rev());
            before.take_while(|(a, b)| a == b).count().min(LONGEST)
        };
        let places = (0..held.len()).rev().map(|place| Found { place, length: common(place) });
        let found: Vec<_> = places.filter(|found| found.length >= LEAST).take(PLACES).collect();
        // Of equals the last, which is the latest place.
        found.into_iter().rev().max_by_key(|found| found.length)
    }

    /// Few different tokens, so that much is found.
    fn text(most: usize) -> impl Strategy<Value = Vec<u32>> {
        (1u32..5).prop_flat_map(move |kinds| prop::collection::vec(0..kinds, 0..most))
    }

    proptest! {
        #[test]
        fn it_finds_what_a_search_of_all_places_finds(hint in text(400), other in text(60)) {
            let index = Index::of(&hint);
            for end in 0..=other.len() {
                prop_assert_eq!(index.find(&other[..end]), naive(&hint, &other[..end]));
            }
        }

        /// A timeline that grows and goes back, followed as a session follows it.
        #[test]
        fn it_follows_a_text_wherever_it_goes(steps in prop::collection::vec((text(80), 0usize..200), 1..20)) {
            let (mut index, mut timeline) = (Index::default(), Vec::new());
            for (more, back) in steps {
                timeline.truncate(timeline.len().saturating_sub(back));
                index.follow(&timeline);
                for token in more {
                    timeline.push(token);
                    index.extend(&timeline);
                    let found = index.find(&timeline);
                    prop_assert_eq!(found, naive(&timeline, &timeline));
                    if let Some(Found { place, .. }) = found {
                        let mut long = timeline.clone();
                        (0..9).for_each(|i| long.push(long[place + i]));
                        prop_assert_eq!(index.continued(place, 9), &long[timeline.len()..]);
                        prop_assert!(timeline[place..].starts_with(&index.behind(place, 9)));
                    }
                }
                prop_assert_eq!(index.tokens(), &timeline[..]);
            }
        }
    }

    #[test]
    fn a_long_text_is_forgotten_from_its_beginning() {
        let text: Vec<u32> = (0..MOST_TOKENS as u32 + 10).collect();
        let mut index = Index::of(&text[..MOST_TOKENS]);
        assert_eq!(index.find(&[5, 6, 7]), Some(Found { place: 8, length: 3 }));
        index.extend(&text);
        assert_eq!((index.find(&[5, 6, 7]), index.tokens().len()), (None, MOST_TOKENS / 2));
        let last = index.find(&text[text.len() - 9..text.len() - 4]).unwrap();
        assert_eq!((last.length, index.behind(last.place, 9)), (5, text[text.len() - 4..].to_vec()));
        // It goes back to before what it holds.
        index.follow(&text[..100]);
        assert_eq!((index.tokens(), index.find(&[5, 6, 7]).unwrap().place), (&text[..100], 8));
    }
}
