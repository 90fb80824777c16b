//! Whether drafts pay, and how many: what they have brought so far against what passes with drafts have cost. Pure data: no clock, no threads.
//!
//! Guesses are compared with the tokens that were chosen, whether they were run or not, so it costs nothing to know how often they are right: the longer the
//! text in common, the more often. The costs are those of this session's passes. Where they were not measured yet, a pass of `n` rows is taken to cost as much as `n` to the power of 0.565 rows:
//! half of the weights are read once for all rows, and consecutive tokens have some of their experts in common (2, 3.7, 6.6, 11.2 and 17.1 experts of a layer for 1, 2, 4, 8 and 16 tokens of the demo model). Where experts are read from a drive, it is taken to cost as much as
//! `n` passes. Costs that say no are measured again, ever more seldom.

use crate::limits::MOST_DRAFTED;

/// The cost of a pass grows with this power of its rows, where nothing else is known.
const GROWTH: f64 = 0.565;
/// What drafts have to gain at least: as a factor.
const LEAST_GAIN: f64 = 1.02;
/// Guesses that count; older ones count less and less.
const MEMORY: f64 = 64.0;
/// Guesses that what is assumed of them is worth.
const ASSUMED: f64 = 4.0;
/// The weight of the newest time in an average.
const NEWEST: f64 = 0.25;
/// Chances that are passed up before costs are measured again: the first time, and at most.
const PATIENCE: (u32, u32) = (16, 1024);

/// Lengths of a match in classes, each from this length on, with the part of guesses behind them that is assumed to be right.
const CLASSES: [(usize, f64); 5] = [(0, 0.3), (4, 0.45), (6, 0.65), (9, 0.8), (17, 0.9)];

/// A pass of this session.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Drafts of this session in it.
    pub drafted: usize,
    /// All sequences in it.
    pub sequences: usize,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// What is known of the drafts of a session.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Right guesses and all guesses, by class.
    guesses: [(f64, f64); CLASSES.len()],
    /// Seconds of passes by their drafts.
    seconds: [Option<f64>; 1 + MOST_DRAFTED],
    /// Sequences of those passes.
    sequences: usize,
    streamed: bool,
    passed_up: u32,
    patience: u32,
}

impl Gate {
    /// Nothing is known yet. `streamed`: experts are read from a drive.
    pub fn new(streamed: bool) -> Self {
        Self {
            guesses: [(0.0, 0.0); CLASSES.len()],
            seconds: [None; 1 + MOST_DRAFTED],
            sequences: 1,
            streamed,
            passed_up: 0,
            patience: PATIENCE.0,
        }
    }

    /// A guess behind a match of this length was right, or not.
    pub fn guessed(&mut self, length: usize, right: bool) {
        let (rights, all) = &mut self.guesses[class(length)];
        *all += 1.0;
        *rights += f64::from(u8::from(right));
        if *all > MEMORY {
            (*rights, *all) = (*rights / 2.0, *all / 2.0);
        }
    }

    /// A pass was run. Where other sequences take part than before, all costs are other ones.
    pub fn ran(&mut self, cost: Cost) {
        let Cost { drafted, sequences, seconds } = cost;
        if sequences != self.sequences {
            self.seconds = [None; 1 + MOST_DRAFTED];
            self.sequences = sequences;
        }
        if let Some(known) = self.seconds.get_mut(drafted) {
            // A pass that something held up counts as one of twice the time.
            *known = Some(known.map_or(seconds, |known| known + NEWEST * (seconds.min(2.0 * known) - known)));
        }
    }

    /// How many of so many drafts behind a match of this length to run now.
    pub fn width(&mut self, length: usize, available: usize) -> usize {
        let wanted = self.best(length, available, |drafted| self.cost(drafted));
        if wanted > 0 {
            (self.passed_up, self.patience) = (0, PATIENCE.0);
            return wanted;
        }
        let hoped = self.best(length, available, |drafted| self.hope(drafted));
        self.passed_up += u32::from(hoped > 0);
        if self.passed_up < self.patience {
            return 0;
        }
        (self.passed_up, self.patience) = (0, (2 * self.patience).min(PATIENCE.1));
        hoped
    }

    /// The number of drafts that gains most by these costs, relative to a pass without; 0 where none gains.
    fn best(&self, length: usize, available: usize, cost: impl Fn(usize) -> f64) -> usize {
        let others = (self.sequences - 1) as f64;
        let (mut best, mut gain) = (0, LEAST_GAIN);
        let (mut tokens, mut right) = (1.0, 1.0);
        for drafted in 1..=available.min(MOST_DRAFTED) {
            right *= self.rate(length + drafted - 1);
            tokens += right;
            // All sequences wait for the pass.
            let here = (others + tokens) / (others + 1.0) / cost(drafted);
            if here > gain {
                (best, gain) = (drafted, here);
            }
        }
        best
    }

    /// The part of guesses behind a match of this length that are right.
    fn rate(&self, length: usize) -> f64 {
        let (rights, all) = self.guesses[class(length)];
        (rights + ASSUMED * CLASSES[class(length)].1) / (all + ASSUMED)
    }

    /// What a pass with so many drafts costs, relative to one without.
    fn cost(&self, drafted: usize) -> f64 {
        match (self.seconds[0], self.seconds[drafted]) {
            (Some(single), Some(seconds)) => seconds / single.max(1e-9),
            _ if self.streamed => self.rows(drafted),
            _ => self.hope(drafted),
        }
    }

    /// What it may cost at best.
    fn hope(&self, drafted: usize) -> f64 {
        self.rows(drafted).powf(GROWTH)
    }

    /// Rows of a pass with so many drafts, relative to one without.
    fn rows(&self, drafted: usize) -> f64 {
        1.0 + drafted as f64 / self.sequences as f64
    }
}

fn class(length: usize) -> usize {
    CLASSES.iter().rposition(|(least, _)| length >= *least).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times of passes with 0 to 3 drafts in memory.
    fn memory(drafted: usize) -> f64 {
        0.08 * (1.0 + drafted as f64).powf(0.565)
    }

    fn cost(drafted: usize, sequences: usize, seconds: f64) -> Cost {
        Cost { drafted, sequences, seconds }
    }

    /// A session whose guesses behind a match of this length are right so often out of 100, for so many tokens; returns the time that the gate took, relative to no drafts.
    fn run(gate: &mut Gate, length: usize, right: u32, tokens: u32, time: impl Fn(usize) -> f64) -> f64 {
        let (mut at, mut took) = (0, 0.0);
        let is_right = |token: u32| token.wrapping_mul(2_654_435_761) >> 8 & 0xffff < right * 65536 / 100;
        while at < tokens {
            let width = gate.width(length, MOST_DRAFTED);
            took += time(width);
            gate.ran(cost(width, 1, time(width)));
            // The tokens of the pass: drafts that are right, and one more.
            let accepted = (0..width as u32).take_while(|i| is_right(at + i)).count() as u32;
            for i in 0..=accepted {
                gate.guessed(length + i as usize, is_right(at + i));
            }
            at += 1 + accepted;
        }
        took / (f64::from(at) * time(0))
    }

    #[test]
    fn long_matches_are_trusted_and_short_ones_have_to_prove_themselves() {
        let mut gate = Gate::new(false);
        assert_eq!([3, 5, 7, 12, 30].map(|length| gate.width(length, 3)), [0, 0, 1, 3, 3]);
        assert_eq!((gate.width(30, 1), gate.width(30, 0)), (1, 0));
        (0..20).for_each(|_| gate.guessed(3, true));
        (0..20).for_each(|_| gate.guessed(30, false));
        assert_eq!([3, 30].map(|length| gate.width(length, 3)), [1, 0], "as they were right");
    }

    #[test]
    fn what_is_right_pays_and_what_is_not_costs_little() {
        for length in [3, 7, 30] {
            let time = |right| run(&mut Gate::new(false), length, right, 2000, memory);
            assert!(time(0) < 1.02, "{length}: {}", time(0));
            assert!(time(30) < 1.05, "{length}: {}", time(30));
            assert!(time(95) < 0.70, "{length}: {}", time(95));
            assert!(time(100) < 0.60, "{length}: {}", time(100));
        }
    }

    #[test]
    fn streamed_experts_have_to_be_measured() {
        let drive = |drafted: usize| 0.5 * (1.0 + drafted as f64);
        assert!(run(&mut Gate::new(true), 12, 100, 4000, drive) < 1.02);
        let mut gate = Gate::new(true);
        assert_eq!((0..15).map(|_| gate.width(12, 3)).sum::<usize>(), 0);
        // All that is read is in memory by now.
        assert!(run(&mut Gate::new(true), 12, 100, 4000, memory) < 0.6);
    }

    #[test]
    fn costs_that_say_no_are_measured_again_ever_more_seldom() {
        let mut gate = Gate::new(false);
        gate.ran(cost(0, 1, 1.0));
        [1, 2, 3].into_iter().for_each(|n| gate.ran(cost(n, 1, 9.0)));
        let mut tried = Vec::new();
        for step in 0..3000 {
            let width = gate.width(30, 3);
            if width > 0 {
                tried.push(step);
                gate.ran(cost(width, 1, 9.0));
            }
        }
        assert_eq!(tried, [15, 47, 111, 239, 495, 1007, 2031]);
        // The machine has become faster.
        (0..20).for_each(|_| gate.ran(cost(3, 1, 2.0)));
        assert_eq!(gate.width(30, 3), 3);
    }

    #[test]
    fn in_company_a_draft_costs_less_and_gains_less() {
        let mut gate = Gate::new(false);
        gate.ran(cost(3, 1, 100.0));
        gate.ran(cost(0, 8, 1.0));
        assert_eq!(gate.width(30, 3), 3, "what was measured alone says nothing");
        (0..99).for_each(|_| gate.guessed(7, false));
        assert_eq!(gate.width(7, 3), 0);
        gate.ran(cost(3, 8, 1.05));
        (0..50).for_each(|i| gate.guessed(7, i % 2 == 0));
        assert_eq!(gate.width(7, 3), 3, "half of the guesses pay for a pass that is hardly longer");
        // A pass that something held up is not believed at once.
        gate.ran(cost(3, 8, 50.0));
        assert!(gate.cost(3) < 1.4);
    }
}
