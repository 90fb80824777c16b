//! Drafts: guesses of an answer's next tokens, which a pass checks while it runs a token. They change how many passes an answer takes, and nothing of the answer:
//! every token is chosen from the same logits by the same sampler.
//!
//! A guess is what followed when the last tokens stood in the timeline before, or in a text that was given as a hint.

mod gate;
mod index;

use std::{collections::VecDeque, fmt, str::FromStr, sync::Arc};

use super::work::Pass;
use crate::{
    error::{Error, Result},
    limits::{MOST_DRAFTED, MOST_HINT},
};
use gate::{Cost, Gate};
use index::{Index, LEAST};

/// Whether an answer's next tokens are drafted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drafts {
    /// Never.
    Off,
    /// As many as pay, by what drafts have brought and what passes have cost so far.
    #[default]
    Auto,
    /// So many wherever there is a guess, up to [`MOST_DRAFTED`].
    Tokens(usize),
}

impl Drafts {
    /// What may be given, for messages.
    pub const CHOICES: &str = "auto, off, or 1 to 3 tokens";
}

impl FromStr for Drafts {
    type Err = Error;

    /// `auto`, `off`, or a number of tokens.
    fn from_str(text: &str) -> Result<Self> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            ("off", _) => Ok(Self::Off),
            (_, Ok(tokens @ 1..=MOST_DRAFTED)) => Ok(Self::Tokens(tokens)),
            _ => Err(Error::Argument(format!("drafts are {}, and not {text:?}", Self::CHOICES))),
        }
    }
}

/// Drafts that a session has run, and those of them that were the next tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drafted {
    /// All.
    pub tokens: u64,
    /// Those that were the next tokens.
    pub accepted: u64,
}

impl Drafted {
    /// What was drafted since `before`, an earlier count of the same session.
    pub fn since(self, before: Self) -> Self {
        Self { tokens: self.tokens - before.tokens, accepted: self.accepted - before.accepted }
    }
}

/// A text that answers will probably quote, or begin with. Clones are the same one, for any number of sessions.
#[derive(Clone, Debug, Default)]
pub struct Hint(Arc<Index>);

impl Hint {
    /// The text of these tokens; none of them is no hint.
    ///
    /// # Errors
    /// [`Error::Argument`] for more than [`MOST_HINT`] tokens.
    pub fn new(tokens: &[u32]) -> Result<Self> {
        if tokens.len() > MOST_HINT {
            let n = tokens.len();
            return Err(Error::Argument(format!(
                "{n} tokens are too many to draft from; give {MOST_HINT} at most"
            )));
        }
        Ok(Self(Arc::new(Index::of(tokens))))
    }
}

/// Guesses of a caller: of the tokens behind a timeline, so many at most.
pub type Guesses = Box<dyn FnMut(&[u32], usize) -> Vec<u32> + Send>;

/// The length of a match at the beginning of a hint: whoever gives one means that an answer begins so.
const BEGINNING: usize = 9;

/// What guesses the next tokens of a session.
pub(super) struct Drafter {
    pub drafts: Drafts,
    pub done: Drafted,
    timeline: Index,
    pub hint: Hint,
    guesses: Option<Guesses>,
    gate: Gate,
    /// Where the answer began, where that is known.
    answer: Option<usize>,
    /// The tokens that were guessed last, as far as nothing was chosen in their place.
    guess: VecDeque<u32>,
    /// Tokens in common before the first of them.
    length: usize,
}

impl Drafter {
    /// `streamed`: experts are read from a drive.
    pub fn new(streamed: bool) -> Self {
        Self {
            drafts: Drafts::default(),
            done: Drafted::default(),
            timeline: Index::default(),
            hint: Hint::default(),
            guesses: None,
            gate: Gate::new(streamed),
            answer: None,
            guess: VecDeque::new(),
            length: 0,
        }
    }

    /// Guesses come from the caller.
    pub fn set_guesses(&mut self, guesses: Option<Guesses>) {
        self.guesses = guesses;
    }

    /// An answer begins behind this timeline; or goes on, behind another one than before.
    pub fn begin(&mut self, timeline: &[u32], answers: bool) {
        if self.drafts != Drafts::Off && self.guesses.is_none() {
            self.timeline.follow(timeline);
        }
        self.answer = answers.then_some(timeline.len());
        self.guess.clear();
    }

    /// Drafts behind the timeline, `most` at most: those of the guesses that are to be run.
    pub fn propose(&mut self, timeline: &[u32], most: usize) -> Vec<u32> {
        if self.drafts == Drafts::Off {
            return Vec::new();
        }
        self.guess(timeline);
        let available = self.guess.len().min(most);
        let width = match self.drafts {
            Drafts::Tokens(tokens) => tokens.min(available),
            _ => self.gate.width(self.length, available),
        };
        self.guess.iter().take(width).copied().collect()
    }

    fn guess(&mut self, timeline: &[u32]) {
        if let Some(guesses) = &mut self.guesses {
            self.guess = guesses(timeline, MOST_DRAFTED).into_iter().take(MOST_DRAFTED).collect();
            self.length = BEGINNING;
            return;
        }
        self.timeline.extend(timeline);
        let answer = self.answer.and_then(|start| timeline.get(start..));
        let own = self.timeline.find(timeline);
        let Hint(hint) = &self.hint;
        let quoted = hint.find(timeline).filter(|hint| own.is_none_or(|own| hint.length >= own.length));
        (self.guess, self.length) = match (quoted, own, answer) {
            (Some(quoted), ..) => (hint.behind(quoted.place, MOST_DRAFTED).into(), quoted.length),
            (None, Some(own), _) => (self.timeline.continued(own.place, MOST_DRAFTED).into(), own.length),
            (None, None, Some(begun)) if begun.len() < LEAST && hint.tokens().starts_with(begun) => {
                (hint.behind(begun.len(), MOST_DRAFTED).into(), BEGINNING)
            }
            (None, None, _) => (VecDeque::new(), 0),
        };
    }

    /// This token came next.
    pub fn chosen(&mut self, token: u32) {
        let Some(guess) = self.guess.pop_front() else { return };
        self.gate.guessed(self.length, guess == token);
        self.length += 1;
        if guess != token {
            self.guess.clear();
        }
    }

    /// A pass has run a token with so many drafts.
    pub fn ran(&mut self, drafted: usize, pass: &Pass) {
        if let Some(took) = pass.took {
            self.gate.ran(Cost { drafted, sequences: pass.sequences, seconds: took.as_secs_f64() });
        }
    }
}

impl fmt::Debug for Drafter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drafter")
            .field("drafts", &self.drafts)
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafter(drafts: Drafts, hint: &[u32], prompt: &[u32]) -> Drafter {
        let hint = Hint::new(hint).unwrap();
        let mut drafter = Drafter { drafts, hint, ..Drafter::new(false) };
        drafter.begin(prompt, true);
        drafter
    }

    #[test]
    fn names_are_those_of_the_option() {
        let parsed = ["auto", "off", "1", "3"].map(|text| text.parse::<Drafts>().unwrap());
        assert_eq!(parsed, [Drafts::Auto, Drafts::Off, Drafts::Tokens(1), Drafts::Tokens(3)]);
        for wrong in ["0", "4", "-1", "on", "", "1.5", "99999999999999999999"] {
            let error = wrong.parse::<Drafts>().unwrap_err().to_string();
            assert!(error.contains("auto, off, or 1 to 3 tokens"), "{error}");
        }
    }

    #[test]
    fn a_guess_is_what_followed_before() {
        let timeline = [1, 2, 3, 4, 5, 6, 9, 2, 3, 4];
        let mut own = drafter(Drafts::Tokens(3), &[], &timeline);
        assert_eq!(own.propose(&timeline, 9), [5, 6, 9]);
        assert_eq!(own.propose(&timeline, 1), [5]);
        assert!(own.propose(&[&timeline[..], &[8]].concat(), 9).is_empty());
        // A hint with as much in common goes before.
        let mut hinted = drafter(Drafts::Tokens(2), &[2, 3, 4, 7, 8], &timeline);
        assert_eq!(hinted.propose(&timeline, 9), [7, 8]);
        assert!(drafter(Drafts::Off, &[2, 3, 4, 7, 8], &timeline).propose(&timeline, 9).is_empty());
        assert!(Hint::new(&vec![0; MOST_HINT]).is_ok() && Hint::new(&vec![0; MOST_HINT + 1]).is_err());
    }

    #[test]
    fn a_text_that_repeats_itself_goes_on() {
        let timeline = [7, 1, 2, 1, 2, 1, 2, 1];
        assert_eq!(drafter(Drafts::Tokens(3), &[], &timeline).propose(&timeline, 3), [2, 1, 2]);
    }

    #[test]
    fn an_answer_may_begin_as_its_hint_does() {
        let mut drafter = drafter(Drafts::Auto, &[5, 6, 7, 8, 9], &[1, 2]);
        assert_eq!(drafter.propose(&[1, 2], 3), [5, 6, 7]);
        assert_eq!(drafter.propose(&[1, 2, 5], 3), [6, 7, 8]);
        assert!(drafter.propose(&[1, 2, 6], 3).is_empty());
        // Behind a context that was shifted nobody knows where it began.
        drafter.begin(&[1, 2], false);
        assert!(drafter.propose(&[1, 2], 3).is_empty());
    }

    /// Guesses that are not run are compared with what comes, too.
    #[test]
    fn short_matches_are_drafted_once_they_were_right() {
        let period: Vec<u32> = (0..6).cycle().take(60).collect();
        let mut timeline = period[..9].to_vec();
        let mut drafter = drafter(Drafts::Auto, &[], &timeline);
        let mut first = None;
        for &token in &period[9..] {
            if !drafter.propose(&timeline, 3).is_empty() {
                first.get_or_insert(timeline.len());
            }
            drafter.chosen(token);
            timeline.push(token);
        }
        assert_eq!(first, Some(11), "five tokens in common, and two guesses that were right");
        // Those behind three tokens were right once, and wrong from now on.
        for _ in 0..50 {
            drafter.gate.guessed(3, false);
        }
        drafter.begin(&[1, 2, 3, 4, 9, 1, 2, 3], true);
        assert!(drafter.propose(&[1, 2, 3, 4, 9, 1, 2, 3], 3).is_empty());
    }
}
