//! Who takes part in the passes, as far as the next pass depends on it: who was answered a moment ago and is probably back at once, and who
//! has an answer going. Time comes from outside.
//!
//! Sessions choose their next tokens on threads of their own. Would a pass begin when the first of them is back, then the others would always
//! miss it, and two sessions would run in turns and never together. So a pass waits for those who are usually back within an eighth of the time that
//! the pass before it took. Whoever has been slower once is not waited for until he has been that fast again. One session alone waits for
//! nobody: it is the one who is back.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// The part of a pass's time that the next one waits for its company.
const GRACE: u32 = 8;
/// Passes without a token of its own after which a session has no answer going.
const FORGOTTEN: u64 = 16;

/// Those who had a part in the last passes.
#[derive(Debug, Default)]
pub struct Company {
    members: HashMap<u64, Member>,
    /// Passes so far.
    passes: u64,
    /// How long the last pass is waited behind.
    grace: Duration,
}

#[derive(Debug)]
struct Member {
    /// Whether its work is here and waits.
    here: bool,
    /// When it was answered last.
    answered: Instant,
    /// How long it would then have been waited for.
    grace: Duration,
    /// Whether it was back in that time, the last time.
    swift: bool,
    /// The pass that it was in.
    pass: u64,
    /// The last pass with the next token of an answer of it.
    token: Option<u64>,
}

impl Company {
    /// Work of this session has come.
    pub fn came(&mut self, session: u64, now: Instant) {
        if let Some(member) = self.members.get_mut(&session) {
            member.here = true;
            member.swift = now.saturating_duration_since(member.answered) <= member.grace;
        }
    }

    /// Work of this session was given back without a pass.
    pub fn left(&mut self, session: u64) {
        self.members.remove(&session);
    }

    /// A pass that took so long was made of work of these sessions, each with whether it was the next token of an answer.
    pub fn ran(&mut self, parts: impl IntoIterator<Item = (u64, bool)>, took: Duration, now: Instant) {
        self.passes += 1;
        let (pass, grace) = (self.passes, took / GRACE);
        self.grace = grace;
        for (session, answers) in parts {
            let before = self.members.get(&session);
            let swift = before.is_none_or(|m| m.swift);
            let token = if answers { Some(pass) } else { before.and_then(|m| m.token) };
            self.members.insert(session, Member { here: false, answered: now, grace, swift, pass, token });
        }
        self.members.retain(|_, m| m.here || pass - m.pass < FORGOTTEN);
    }

    /// Until when the next pass waits; `None` where nobody is expected.
    pub fn awaited(&self) -> Option<Instant> {
        let expected = |m: &&Member| !m.here && m.swift && m.pass == self.passes;
        self.members.values().filter(expected).map(|m| m.answered + m.grace).max()
    }

    /// Whether an answer is going of a session that none of these works is of.
    pub fn answering(&self, waiting: impl Fn(u64) -> bool) -> bool {
        let lately = |m: &Member| m.token.is_some_and(|pass| self.passes - pass < FORGOTTEN);
        self.members.iter().any(|(&session, m)| lately(m) && !waiting(session))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASS: Duration = Duration::from_millis(80);

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn who_is_swift_is_waited_for_and_who_was_slow_is_not() {
        let (mut company, start) = (Company::default(), Instant::now());
        assert_eq!(company.awaited(), None);
        company.ran([(1, true), (2, true)], PASS, start);
        assert_eq!(company.awaited(), Some(after(start, 10)));
        company.came(1, after(start, 1));
        assert_eq!(company.awaited(), Some(after(start, 10)), "for the other");
        company.came(2, after(start, 11));
        assert_eq!(company.awaited(), None);
        // The second was too late.
        company.ran([(1, true), (2, true)], PASS, after(start, 100));
        company.came(1, after(start, 101));
        assert_eq!(company.awaited(), None);
        company.came(2, after(start, 109));
        company.ran([(1, true), (2, true)], PASS, after(start, 200));
        company.came(1, after(start, 201));
        assert_eq!(company.awaited(), Some(after(start, 210)), "it was in time again");
    }

    #[test]
    fn who_does_not_come_back_is_waited_for_once() {
        let (mut company, start) = (Company::default(), Instant::now());
        company.ran([(1, true), (2, true)], PASS, start);
        company.came(1, after(start, 1));
        assert!(company.awaited().is_some());
        company.ran([(1, true)], PASS, after(start, 100));
        company.came(1, after(start, 101));
        assert_eq!(company.awaited(), None);
    }

    #[test]
    fn an_answer_goes_on_for_some_passes_without_it() {
        let (mut company, now) = (Company::default(), Instant::now());
        let nobody = |_| false;
        company.ran([(1, false)], PASS, now);
        assert!(!company.answering(nobody));
        company.ran([(2, true)], PASS, now);
        assert!(company.answering(|session| session == 1));
        assert!(!company.answering(|session| session == 2), "its own prompt is not beside itself");
        for _ in 0..FORGOTTEN {
            assert!(company.answering(nobody));
            company.ran([(1, false)], PASS, now);
        }
        assert!(!company.answering(nobody));
        assert_eq!(company.members.len(), 1);
    }
}
