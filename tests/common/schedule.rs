//! Random schedules of sequences in common passes, against each sequence alone.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use yuan::{
    Error,
    model::{KvType, Model, Output, Sequence, State, Want},
};

use super::paging::hash;

/// Tokens of a sequence.
const LENGTH: usize = 70;
/// Texts that sequences have.
const TEXTS: usize = 6;

/// What each sequence gives alone.
pub struct Alone {
    types: Vec<KvType>,
    vocab: usize,
    hidden: usize,
    /// By text and type: all logits and all hidden states.
    rows: HashMap<(usize, &'static str), [Vec<f32>; 2]>,
}

/// How many sequences a schedule has, what goes wrong, and how much of it did.
pub struct Schedules {
    pub sequences: &'static [usize],
    /// Whether experts may be lost.
    pub faults: bool,
    pub failed: AtomicUsize,
    pub cancelled: AtomicUsize,
    pub done: AtomicUsize,
}

impl Schedules {
    pub fn new(sequences: &'static [usize], faults: bool) -> Self {
        let zero = || AtomicUsize::new(0);
        Self { sequences, faults, failed: zero(), cancelled: zero(), done: zero() }
    }

    /// Says what came of them, for who runs many.
    pub fn tell(&self, of: &str) {
        let [done, cancelled, failed] = [&self.done, &self.cancelled, &self.failed].map(|n| n.load(Relaxed));
        eprintln!("{of}: {done} parts of passes as alone, {cancelled} cancelled, {failed} failed");
    }
}

/// The seeds of a test: so many as usual, unless the environment says how many (`YUAN_SCHEDULES=2000`).
pub fn seeds(usual: u64) -> std::ops::Range<u64> {
    0..std::env::var("YUAN_SCHEDULES").map_or(usual, |n| n.parse().expect("YUAN_SCHEDULES is a number"))
}

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 += 1;
        (hash(self.0) % n as u64) as usize
    }
}

fn text(i: usize) -> Vec<u32> {
    (0..LENGTH as u64).map(|t| (hash(1000 * i as u64 + t) % 512) as u32).collect()
}

impl Alone {
    pub fn new(model: &Model, types: &[KvType]) -> Self {
        let mut rows = HashMap::new();
        for (i, &kv) in (0..TEXTS).flat_map(|i| types.iter().map(move |kv| (i, kv))) {
            let run = |want| {
                let mut state = State::new(model.config(), LENGTH, kv).unwrap();
                model.forward_one(&text(i), &mut state, want).unwrap()
            };
            rows.insert((i, kv.name()), [run(Want::All), run(Want::Hidden)]);
        }
        Self { types: types.to_vec(), vocab: model.config().vocab, hidden: model.config().hidden, rows }
    }

    /// Runs the schedule of this seed.
    pub fn check(&self, model: &Model, seed: u64, schedules: &Schedules) {
        let mut random = Random(seed << 32);
        let n = schedules.sequences[random.below(schedules.sequences.len())];
        let join = |random: &mut Random| {
            let kv = self.types[random.below(self.types.len())];
            (random.below(TEXTS), State::new(model.config(), LENGTH, kv).unwrap())
        };
        let mut states: Vec<_> = (0..n).map(|_| join(&mut random)).collect();
        for _ in 0..4 {
            let mut calls = Vec::new();
            for (i, (_, state)) in states.iter().enumerate() {
                let left = LENGTH - state.position();
                if left == 0 || random.below(4) == 0 {
                    continue;
                }
                let tokens = if random.below(2) == 0 { 1 } else { 1 + random.below(left.min(24)) };
                let drafted = if random.below(2) == 0 { 0 } else { random.below(tokens.min(4)) };
                let want = [
                    Want::Nothing,
                    Want::Last,
                    Want::Best(3),
                    Want::All,
                    Want::Hidden,
                    Want::Tail(1 + drafted),
                ];
                let want = want[random.below(want.len())];
                let wrong = [Wrong::Token, Wrong::Cancelled, Wrong::Later].get(random.below(24)).copied();
                calls.push(Call { sequence: i, tokens, drafted, want, wrong });
            }
            self.pass(model, &mut states, &calls, schedules);
            for (text_of, state) in &mut states {
                // Of the drafts those that are taken up go on as tokens do.
                let wanted = random.below(4);
                let taken = (0..wanted).take_while(|_| state.take_up()).count();
                assert!(taken <= wanted && state.position() <= text(*text_of).len());
            }
            // Some leave, and others come.
            for state in &mut states {
                if random.below(6) == 0 {
                    *state = join(&mut random);
                }
            }
        }
    }

    fn pass(&self, model: &Model, states: &mut [(usize, State)], calls: &[Call], schedules: &Schedules) {
        let mut rest = states.iter_mut().enumerate();
        let (mut taking, mut running) = (Vec::new(), Vec::new());
        for call in calls {
            let (_, (text_of, state)) = rest.find(|(i, _)| *i == call.sequence).unwrap();
            let at = state.position();
            let mut tokens = text(*text_of)[at..at + call.tokens].to_vec();
            if call.wrong == Some(Wrong::Token) {
                *tokens.last_mut().unwrap() = 512;
            }
            running.push(state.cancel.begin());
            if call.wrong == Some(Wrong::Cancelled) {
                state.cancel.cancel();
            }
            taking.push((call, *text_of, at, tokens, state));
        }
        let later = taking.iter().filter(|t| t.0.wrong == Some(Wrong::Later)).map(|t| t.4.cancel.clone());
        let (later, ended) = (later.collect::<Vec<_>>(), AtomicBool::new(false));
        let sequences = taking.iter_mut().map(|(call, _, _, tokens, state)| Sequence {
            tokens,
            drafted: call.drafted,
            state,
            want: call.want,
        });
        let mut sequences: Vec<_> = sequences.collect();
        let results = std::thread::scope(|scope| {
            if !later.is_empty() {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_micros(hash(calls.len() as u64) % 3000));
                    later.iter().filter(|_| !ended.load(Relaxed)).for_each(|cancel| cancel.cancel());
                });
            }
            let results = model.forward(&mut sequences);
            ended.store(true, Relaxed);
            results
        });
        drop((sequences, running));
        assert_eq!(results.len(), taking.len());
        for (result, (Call { tokens, drafted, want, wrong, .. }, text, at, _, state)) in
            results.into_iter().zip(taking)
        {
            let end = at + tokens;
            match (result, wrong) {
                (Ok(output), None | Some(Wrong::Later)) => {
                    assert_eq!(state.position(), end - drafted);
                    self.compare(*want, text, state.kv_type(), at..end, output);
                    schedules.done.fetch_add(1, Relaxed);
                    continue;
                }
                (Err(Error::Argument(_)), Some(Wrong::Token)) => {}
                (Err(Error::Cancelled), Some(Wrong::Cancelled | Wrong::Later)) => {
                    schedules.cancelled.fetch_add(1, Relaxed);
                }
                (Err(Error::Io { .. }), _) if schedules.faults => {
                    schedules.failed.fetch_add(1, Relaxed);
                }
                (result, wrong) => panic!("{result:?} where {wrong:?} was wrong"),
            }
            assert_eq!(state.position(), at, "a sequence that failed is as before");
        }
    }

    fn compare(&self, want: Want, text: usize, kv: KvType, tokens: std::ops::Range<usize>, output: Output) {
        let [logits, hidden] = &self.rows[&(text, kv.name())];
        let rows = |all: &[f32], width: usize, rows: std::ops::Range<usize>| {
            all[rows.start * width..rows.end * width].iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let last = tokens.end - 1..tokens.end;
        let wanted = match want {
            Want::Nothing => return assert_eq!(output, Output::Nothing),
            Want::Last | Want::Best(_) => rows(logits, self.vocab, last),
            Want::Tail(n) => rows(logits, self.vocab, tokens.end - n..tokens.end),
            Want::All => rows(logits, self.vocab, tokens),
            Want::Hidden => rows(hidden, self.hidden, tokens),
        };
        match output {
            Output::Rows(found) => {
                assert!(found.iter().map(|x| x.to_bits()).collect::<Vec<_>>() == wanted, "{want:?}");
            }
            Output::Best(best) => {
                assert!(matches!(want, Want::Best(n) if best.len() >= n));
                let mut ranked: Vec<(u32, f32)> = (0..).zip(wanted.into_iter().map(f32::from_bits)).collect();
                ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                assert_eq!(best, ranked[..best.len()]);
            }
            Output::Nothing => panic!("{want:?} brought nothing"),
        }
    }
}

/// What a sequence wants of a pass.
#[derive(Debug)]
struct Call {
    sequence: usize,
    tokens: usize,
    drafted: usize,
    want: Want,
    wrong: Option<Wrong>,
}

/// What goes wrong with a sequence in a pass.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wrong {
    /// It has a token outside the vocabulary.
    Token,
    /// It is cancelled before the pass.
    Cancelled,
    /// It is cancelled at some time during the pass, or just behind it.
    Later,
}
