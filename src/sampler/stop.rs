//! Texts that end an answer, wherever the borders of tokens are.

/// Looks for stop strings in a text that comes piece by piece, and holds back what might be the beginning of one.
#[derive(Clone, Debug, Default)]
pub struct StopText {
    /// With their places in the list.
    strings: Vec<(usize, String)>,
    held: String,
}

impl StopText {
    /// Looks for `strings`; empty ones are left out.
    pub fn new(strings: &[String]) -> Self {
        let strings = strings.iter().cloned().enumerate().filter(|(_, s)| !s.is_empty());
        Self { strings: strings.collect(), held: String::new() }
    }

    /// Takes the next piece. Returns what can be shown now, and which of the strings is there, if any: the text ends before the
    /// first of them.
    pub fn push(&mut self, piece: &str) -> (String, Option<usize>) {
        self.held.push_str(piece);
        let found = self.strings.iter().filter_map(|(place, s)| Some((self.held.find(s.as_str())?, *place)));
        if let Some((at, place)) = found.min() {
            let shown = self.held[..at].to_owned();
            self.held.clear();
            return (shown, Some(place));
        }
        // The longest end of the text that is the beginning of a stop string.
        let longest = self.strings.iter().map(|(_, s)| s.len()).max().unwrap_or(0);
        let starts = self.held.char_indices().map(|(i, _)| i);
        let from = self.held.len().saturating_sub(longest.saturating_sub(1));
        let begins = |i: &usize| self.strings.iter().any(|(_, s)| s.starts_with(&self.held[*i..]));
        let at = starts.skip_while(|&i| i < from).find(begins).unwrap_or(self.held.len());
        let rest = self.held.split_off(at);
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// What is still held back when the text has ended.
    pub fn finish(self) -> String {
        self.held
    }
}
