//! Models of the loop's thread and of the sessions that hand in work, as those of the pager (`src/pager/models.rs`): loom tries the orders of what they
//! do. Every session gets an answer, its own, and its state with it; the loop's thread ends with the engine and keeps nothing.

use std::{
    panic::resume_unwind,
    sync::{Arc, Mutex},
};

use super::{
    lent::Lent,
    passes::Passes,
    runner::Runner,
    schedule::Room,
    sync::thread,
    work::{Task, wait},
};
#[cfg(test)]
use crate::quantize::synth::tiny;
use crate::{
    error::{Error, Result},
    model::{Cancel, KvType, Output, Results, Sequence, State, Want},
    pager::sync::explore,
};

/// The token whose sequence fails, the one that makes the pass panic, and the last of those that run. A hidden state of such a number does the same.
const FAILS: u32 = 1;
const PANICS: u32 = 2;
const RUNS: u32 = 3;

/// A model whose logits are the last token, or the hidden state. It holds the tokens of the passes.
#[derive(Default)]
struct Echo(Mutex<Vec<Vec<u32>>>);

impl Runner for Echo {
    fn forward(&self, sequences: &mut [Sequence<'_>]) -> Results {
        let pass: Vec<_> = sequences.iter().map(|s| s.tokens[0]).collect();
        assert!(!pass.is_empty());
        self.0.lock().expect("no panic holds it").push(pass.clone());
        if pass.contains(&PANICS) {
            // Without a message on the screen.
            resume_unwind(Box::new(()));
        }
        let run = |s: &mut Sequence<'_>| {
            assert_eq!(s.state.capacity(), s.tokens[0] as usize, "its own state");
            match (s.tokens[0], s.want) {
                (FAILS, _) => Err(Error::Argument("as the model says".into())),
                (_, Want::Nothing) => Ok(Output::Nothing),
                (token, _) => Ok(Output::Rows(vec![token as f32])),
            }
        };
        sequences.iter_mut().map(run).collect()
    }

    fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        if hidden.contains(&(PANICS as f32)) {
            resume_unwind(Box::new(()));
        }
        if hidden.contains(&(FAILS as f32)) {
            return Err(Error::Argument("as the model says".into()));
        }
        Ok(hidden.to_vec())
    }

    fn is_inside(&self) -> bool {
        false
    }
}

fn start(echo: &Arc<Echo>) -> Arc<Passes> {
    let room = Room { sequences: 2, tokens: 4, piece: 2 };
    Arc::new(Passes::start(echo.clone(), room).expect("a thread"))
}

/// A state by which a session is known: there is room for as many tokens as its own token says.
fn state(token: u32) -> State {
    State::new(&tiny(), token as usize, KvType::F16).expect("memory")
}

/// Whether a session with this token gets what it is to get, where a pass that it shares may panic.
fn check(token: u32, result: Result<Output>, panics: bool) {
    match (token, result) {
        (FAILS, Err(Error::Argument(_))) | (PANICS, Err(Error::Internal(_))) => {}
        (_, Err(Error::Internal(_))) if panics => {}
        (_, Ok(Output::Rows(row))) if token >= RUNS => assert_eq!(row, [token as f32]),
        (_, result) => panic!("{token}: {result:?}"),
    }
}

/// A session that wants the logits behind a token, and then those of a hidden state.
fn session(passes: &Passes, token: u32, panics: bool) {
    let (number, mut lent) = (passes.join(), Lent::new(state(token)));
    let result = passes.run(number, &mut lent, (vec![token], 0), Want::Last).map(|(output, _)| output);
    assert_eq!(lent.capacity(), token as usize, "its own state is back");
    check(token, result, panics);
    check(token, passes.logits(number, &[token as f32], 1).map(Output::Rows), panics);
}

/// Sessions begin, go on and end beside each other, whatever becomes of their passes; the last one ends the engine.
#[test]
fn every_session_gets_what_is_its_own() {
    for other in [RUNS + 1, FAILS, PANICS] {
        explore(2, move || {
            let echo = Arc::<Echo>::default();
            let passes = start(&echo);
            let panics = other == PANICS;
            let beside = passes.clone();
            let beside = thread::spawn(move || session(&beside, other, panics));
            session(&passes, RUNS, panics);
            drop(passes);
            beside.join().expect("it ends");
            assert_eq!(Arc::strong_count(&echo), 1, "the loop has ended");
        });
    }
}

/// A call is cancelled before it is handed in, while it waits, while it runs, or after it has ended.
#[test]
fn a_cancelled_call_ends_and_its_neighbour_goes_on() {
    explore(2, || {
        let echo = Arc::<Echo>::default();
        let passes = start(&echo);
        let own = state(RUNS);
        let cancel: Cancel = own.cancel.clone();
        let beside = passes.clone();
        let threads = [
            thread::spawn(move || cancel.cancel_all()),
            thread::spawn(move || session(&beside, RUNS + 1, false)),
        ];
        let mut lent = Lent::new(own);
        let _call = lent.cancel.begin();
        let (number, mut left) = (passes.join(), 3);
        while left > 0 {
            match passes.run(number, &mut lent, (vec![RUNS; left], 0), Want::Last).map(|(output, _)| output) {
                // Of a prompt at most a piece beside others.
                Ok(Output::Nothing) => left -= 2,
                Ok(Output::Rows(row)) => {
                    assert_eq!(row, [RUNS as f32]);
                    left = 0;
                }
                Err(Error::Cancelled) => left = 0,
                result => panic!("{result:?}"),
            }
            assert_eq!(lent.capacity(), RUNS as usize, "the state is back");
        }
        threads.into_iter().for_each(|thread| thread.join().expect("it ends"));
        drop(passes);
        assert_eq!(Arc::strong_count(&echo), 1);
    });
}

/// The engine ends with work that nobody waits for and work that somebody waits for: all of it is done.
#[test]
fn the_end_of_the_engine_answers_what_was_handed_in() {
    explore(3, || {
        let echo = Arc::<Echo>::default();
        let passes = start(&echo);
        let run = |token: u32| {
            let state = Lent::new(state(token));
            passes.hand_in(
                passes.join(),
                Task::Run { state, tokens: vec![token], drafted: 0, want: Want::Last },
            )
        };
        drop(run(RUNS + 1));
        let answer = run(RUNS);
        drop(run(PANICS));
        let waiting = thread::spawn(move || {
            let answer = wait(&answer);
            assert_eq!(answer.state.capacity(), RUNS as usize);
            check(RUNS, answer.result, true);
        });
        drop(passes);
        assert_eq!(Arc::strong_count(&echo), 1, "the loop has ended");
        let mut run: Vec<u32> = echo.0.lock().expect("no panic holds it").concat();
        run.sort_unstable();
        assert_eq!(run, [PANICS, RUNS, RUNS + 1], "everything once");
        waiting.join().expect("it ends");
    });
}
