//! Texts that end an answer, wherever the borders of tokens are.

/// Looks for stop strings in a text that comes piece by piece, and holds back what might be the beginning of one.
#[derive(Clone, Debug, Default)]
pub struct StopText {
    strings: Vec<String>,
    held: String,
}

impl StopText {
    /// Looks for `strings`; empty ones are left out.
    pub fn new(strings: &[String]) -> Self {
        Self { strings: strings.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Takes the next piece. Returns what can be shown now, and whether a stop string is there: the text ends before the
    /// first of them.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(at) = self.strings.iter().filter_map(|s| self.held.find(s.as_str())).min() {
            let shown = self.held[..at].to_owned();
            self.held.clear();
            return (shown, true);
        }
        // The longest end of the text that is the beginning of a stop string.
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
        let starts = self.held.char_indices().map(|(i, _)| i);
        let from = self.held.len().saturating_sub(longest.saturating_sub(1));
        let begins = |i: &usize| self.strings.iter().any(|s| s.starts_with(&self.held[*i..]));
        let at = starts.skip_while(|&i| i < from).find(begins).unwrap_or(self.held.len());
        let rest = self.held.split_off(at);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What is still held back when the text has ended.
    pub fn finish(self) -> String {
        self.held
    }
}
