//! The loop: sessions on many threads share passes, and none of them notices.

mod common;

use std::{
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Barrier},
    thread,
};

use common::{
    mutate::Random,
    paging::{keeping, keeping_for},
};
use yuan::{
    Error,
    container::Container,
    model::{KvType, Options as RunOptions, Stage, State, Want},
    quantize::{Options, synth},
    sampler::{Sampler, Settings},
    session::{Drafts, Engine, Finish, Limits, Session},
};

const CONTEXT: usize = 700;

fn go(_: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn tiny(folder: &tempfile::TempDir) -> Container {
    common::synth(synth::tiny(), &Options::default(), 5, &folder.path().join("tiny.gguf"))
}

fn engine(container: &Container, threads: usize) -> Arc<Engine> {
    let options = RunOptions { threads, ..RunOptions::default() };
    Engine::open(container.path(), &options).unwrap()
}

fn tokens(n: usize, random: &mut Random) -> Vec<u32> {
    (0..n).map(|_| random.below(512) as u32).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|l| l.to_bits()).collect()
}

fn session(engine: &Arc<Engine>, kv: KvType) -> Session {
    Session::new(engine.clone(), CONTEXT, kv).unwrap()
}

fn answer(session: &mut Session, seed: u64, most: usize) -> Vec<u32> {
    let settings = Settings { temperature: 0.9, top_k: 40, seed: Some(seed), ..Settings::default() };
    let limits = Limits { ignore_eod: true, ..Limits::tokens(most) };
    let mut tokens = Vec::new();
    let finish = session.generate(&mut Sampler::new(settings).unwrap(), &limits, |token, _| {
        tokens.extend(token);
        ControlFlow::Continue(())
    });
    assert_eq!(finish.unwrap(), Finish::Length);
    tokens
}

/// What sessions do one after another on a thread: the same in any company. Returns all that was seen of it.
fn life(engine: &Arc<Engine>, seed: u64) -> Vec<Vec<u32>> {
    let mut random = Random::new(seed);
    let kv = |random: &mut Random| KvType::SAMPLES[random.below(KvType::SAMPLES.len())];
    let mut seen = Vec::new();
    let mut session = session(engine, kv(&mut random));
    for _ in 0..12 {
        let room = CONTEXT - session.position();
        match random.below(9) {
            0 | 1 => {
                let mut timeline = session.tokens().to_vec();
                timeline.truncate(random.below(timeline.len() + 1));
                timeline.extend(tokens(random.below(300).min(CONTEXT - timeline.len()), &mut random));
                session.sync(&timeline, go).unwrap();
            }
            2 | 3 if room > 20 => {
                let seed = random.next();
                session.extend(&tokens(1 + random.below(9), &mut random), go).unwrap();
                seen.push(answer(&mut session, seed, 1 + random.below(10)));
            }
            4 if session.position() > 0 => seen.push(bits(session.embedding().unwrap())),
            5 if room > 0 => {
                let long = tokens(room + 1, &mut random);
                assert!(matches!(session.extend(&long, go), Err(Error::ContextFull { .. })));
                assert!(matches!(session.extend(&[512], go), Err(Error::Argument(_))));
            }
            6 => session = self::session(engine, kv(&mut random)),
            // A call that its own thread breaks off, by a word or a panic; then the session goes on as if nothing had been.
            7 => {
                let all = [session.tokens(), &tokens(room.min(200), &mut random)].concat();
                if random.below(2) == 0 {
                    let stopped = session.sync(&all, |_| ControlFlow::Break(()));
                    assert!(matches!(stopped, Ok(_) | Err(Error::Cancelled)));
                } else {
                    let _ = catch_unwind(AssertUnwindSafe(|| {
                        session.sync(&all, |_| std::panic::resume_unwind(Box::new(())))
                    }));
                }
                session.sync(&all, go).unwrap();
            }
            // Stopped from elsewhere, wherever that happens to meet it.
            8 => {
                let all = [session.tokens(), &tokens(room.min(200), &mut random)].concat();
                let cancel = session.cancel_token();
                let stopped = thread::scope(|scope| {
                    scope.spawn(|| cancel.cancel());
                    session.sync(&all, go)
                });
                assert!(matches!(stopped, Ok(_) | Err(Error::Cancelled)));
                session.sync(&all, go).unwrap();
            }
            _ => {}
        }
        if session.position() > 0 {
            seen.push(bits(session.logits().unwrap()));
        }
        seen.push(session.tokens().to_vec());
    }
    seen
}

fn in_company(engine: &Arc<Engine>, alone: &[Vec<Vec<u32>>]) {
    thread::scope(|scope| {
        for (seed, alone) in alone.iter().enumerate() {
            scope.spawn(move || assert!(life(engine, seed as u64) == *alone, "seed {seed}"));
        }
    });
}

#[test]
fn a_session_does_not_notice_the_others() {
    let folder = common::folder();
    let container = tiny(&folder);
    let one = engine(&container, 1);
    let alone: Vec<_> = (0..9).map(|seed| life(&one, seed)).collect();
    assert_eq!(one.counts().most_sequences, 1);
    for threads in [1, 2, 3] {
        in_company(&engine(&container, threads), &alone);
    }
    // Every expert through one of few places in memory.
    let options = keeping_for(&container, 3, 2 * 9 * CONTEXT);
    let streamed = Engine::open(container.path(), &options).unwrap();
    in_company(&streamed, &alone);
    assert_eq!(streamed.counts().panics, 0);
}

#[test]
fn thirty_three_sessions_at_once() {
    let folder = common::folder();
    let container = tiny(&folder);
    let prompt = |i: u64| tokens(3 + i as usize, &mut Random::new(i));
    let text = |engine: &Arc<Engine>, i: u64| {
        let mut session = session(engine, KvType::F16);
        // Drafts would be among the tokens that are counted.
        session.set_drafts(Drafts::Off);
        session.sync(&prompt(i), go).unwrap();
        let text = answer(&mut session, i, 12);
        (text, bits(session.logits().unwrap()))
    };
    let alone = engine(&container, 2);
    let wanted: Vec<_> = (0..33).map(|i| text(&alone, i)).collect();
    let together = engine(&container, 2);
    let start = Barrier::new(33);
    thread::scope(|scope| {
        for (i, wanted) in wanted.iter().enumerate() {
            let (start, together) = (&start, &together);
            scope.spawn(move || {
                start.wait();
                assert!(text(together, i as u64) == *wanted, "session {i}");
            });
        }
    });
    let (alone, together) = (alone.counts(), together.counts());
    assert_eq!(alone.tokens, together.tokens);
    assert_eq!(alone.sequences, together.sequences);
    assert_eq!((alone.passes, alone.most_sequences), (alone.sequences, 1));
    assert!(together.passes < alone.passes && together.most_sequences > 1, "{together:?}");
}

/// A session or the model itself, used while a pass shows its results, would wait for that pass.
#[test]
fn a_call_from_within_a_pass_is_an_error() {
    let folder = common::folder();
    let container = tiny(&folder);
    for options in [RunOptions { threads: 1, ..RunOptions::default() }, keeping(&container, 3)] {
        let engine = Engine::open(container.path(), &options).unwrap();
        let mut session = session(&engine, KvType::F16);
        let state = || State::new(engine.model().config(), 8, KvType::F16).unwrap();
        let (mut state, mut inner) = (state(), state());
        let mut refused = 0;
        let mut probe = |stage, _, _: &[f32]| {
            if stage == Stage::FinalNorm {
                let error = session.sync(&[1, 2], go).unwrap_err().to_string();
                assert!(error.contains("from within a pass"), "{error}");
                let error = engine.model().forward_one(&[1], &mut inner, Want::Last).unwrap_err().to_string();
                assert!(error.contains("from within a pass"), "{error}");
                refused += 1;
            }
        };
        engine.model().forward_probed(&[1, 2, 3], &mut state, Want::Last, &mut probe).unwrap();
        assert_eq!((refused, session.tokens()), (1, &[][..]));
        session.sync(&[1, 2], go).unwrap();
    }
}

#[test]
fn a_session_is_used_from_the_progress_of_another() {
    let folder = common::folder();
    let engine = engine(&tiny(&folder), 2);
    let all = tokens(CONTEXT, &mut Random::new(1));
    let (mut outer, mut inner) = (session(&engine, KvType::F16), session(&engine, KvType::F16));
    outer
        .sync(&all, |done| {
            inner.sync(&all[..done.min(9)], go).unwrap();
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(inner.tokens(), &all[..9]);
}

/// The model is gone with the last session of the last engine, and its file is closed.
#[test]
fn the_loop_ends_with_the_engine() {
    let folder = common::folder();
    let engine = engine(&tiny(&folder), 1);
    let mut session = session(&engine, KvType::F16);
    drop(engine);
    session.sync(&[1, 2, 3], go).unwrap();
    let weak = Arc::downgrade(session.engine());
    drop(session);
    assert!(weak.upgrade().is_none());
}

/// However many tokens may go through the model together: the same bits, in as many passes as that makes.
#[test]
fn a_batch_of_another_size_has_the_same_bits() {
    let folder = common::folder();
    let container = tiny(&folder);
    let prompt = tokens(650, &mut Random::new(9));
    let run = |options: RunOptions| {
        let engine = Engine::open(container.path(), &options).unwrap();
        let mut session = session(&engine, KvType::F16);
        session.sync(&prompt, go).unwrap();
        (engine.model().batch(), engine.counts().passes, bits(session.logits().unwrap()))
    };
    let (usual, passes, wanted) = run(RunOptions::default());
    assert_eq!((usual, passes), (512, 2));
    for (asked, batch, passes) in [(1, 32, 21), (64, 64, 11), (1000, 1000, 1)] {
        assert_eq!(
            run(RunOptions { batch: asked, ..RunOptions::default() }),
            (batch, passes, wanted.clone())
        );
        let streamed = run(RunOptions { batch: asked, ..keeping_for(&container, 3, CONTEXT) });
        assert!(streamed.0 <= batch && streamed.2 == wanted, "{asked}: {}", streamed.0);
    }
}
