//! Special strings: where a text contains them, and which ids they are.

use std::collections::{BTreeSet, HashMap};

/// The special strings of a vocabulary.
#[derive(Clone, Debug)]
pub(super) struct Specials {
    /// By string.
    ids: HashMap<String, u32>,
    /// By id.
    texts: HashMap<u32, String>,
    /// Whether any begins with this byte.
    firsts: [bool; 256],
    /// Their lengths in bytes, the longest first.
    lengths: Vec<usize>,
}

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// Text between special strings, never empty.
    Text(&'a str),
    /// A special string, by its id.
    Special(u32),
}

impl Specials {
    /// These strings; of equal strings, or of strings with the same id, the first counts. Empty strings match nothing.
    pub(super) fn new(special: &[(String, u32)]) -> Self {
        let (mut ids, mut texts) = (HashMap::<String, u32>::new(), HashMap::new());
        for (text, id) in special.iter().filter(|(text, _)| !text.is_empty()) {
            ids.entry(text.clone()).or_insert(*id);
            texts.entry(*id).or_insert_with(|| text.clone());
        }
        let mut firsts = [false; 256];
        ids.keys().filter_map(|text| text.bytes().next()).for_each(|byte| firsts[usize::from(byte)] = true);
        let lengths: BTreeSet<usize> = ids.keys().map(String::len).collect();
        Self { ids, texts, firsts, lengths: lengths.into_iter().rev().collect() }
    }

    /// The string of a special id.
    pub(super) fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(&id).map(String::as_str)
    }

    /// All strings that match.
    pub(super) fn strings(&self) -> impl Iterator<Item = &str> {
        self.ids.keys().map(String::as_str)
    }

    /// The parts of `text`: it is cut at the leftmost special string, the longest where several begin, and so on behind it.
    pub(super) fn cut<'t>(&self, text: &'t str) -> impl Iterator<Item = Part<'t>> {
        let mut rest = text;
        let mut next = None;
        std::iter::from_fn(move || {
            if let Some(id) = next.take() {
                return Some(Part::Special(id));
            }
            if rest.is_empty() {
                return None;
            }
            let Some((start, len, id)) = self.find(rest) else {
                return Some(Part::Text(std::mem::take(&mut rest)));
            };
            let before = &rest[..start];
            rest = &rest[start + len..];
            if before.is_empty() {
                return Some(Part::Special(id));
            }
            next = Some(id);
            Some(Part::Text(before))
        })
    }

    /// Start, length and id of the first special string.
    fn find(&self, text: &str) -> Option<(usize, usize, u32)> {
        let starts = text.bytes().enumerate().filter(|(_, byte)| self.firsts[usize::from(*byte)]);
        starts.map(|(start, _)| start).find_map(|start| {
            let id = |len: &usize| self.ids.get(text.get(start..start + len)?).map(|id| (start, *len, *id));
            self.lengths.iter().find_map(id)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Part::{Special, Text},
        *,
    };

    fn cut(text: &str) -> Vec<Part<'_>> {
        let list = [("<a>", 1), ("<a><b>", 2), ("", 3), ("<c>", 4), ("<a>", 5)];
        let specials = Specials::new(&list.map(|(s, id)| (s.to_owned(), id)));
        specials.cut(text).collect()
    }

    #[test]
    fn the_leftmost_and_longest_special_string_is_cut_out() {
        assert_eq!(cut("x<a><b>y<c"), [Text("x"), Special(2), Text("y<c")]);
        assert_eq!(cut("<a><c><a>"), [Special(1), Special(4), Special(1)]);
        assert_eq!(cut("<<a>é<"), [Text("<"), Special(1), Text("é<")]);
        assert_eq!(cut(""), []);
    }
}
