//! Scores: how likely tokens are, with the same bits as the logits say it.

mod common;

use std::{ops::ControlFlow, sync::Arc, thread};

use common::sessions::*;
use yuan::{
    Error,
    model::{KvType, Want},
    sampler::{Sampler, Settings, best},
    session::{Engine, Finish, Limits, Score, Session},
};

/// As `yuan logits` computes them.
fn logits(engine: &Engine, tokens: &[u32]) -> Vec<Vec<f32>> {
    let model = engine.model();
    let mut state = model.state(tokens.len(), KvType::F16).unwrap();
    let rows = tokens.chunks(model.batch()).flat_map(|batch| {
        let hidden = model.forward_one(batch, &mut state, Want::Hidden).unwrap();
        hidden.chunks(model.config().hidden).map(|row| model.logits(row).unwrap()).collect::<Vec<_>>()
    });
    rows.collect()
}

fn wanted(engine: &Engine, tokens: &[u32], from: usize, top: usize) -> Vec<Score> {
    let rows = logits(engine, tokens);
    (from..tokens.len()).map(|i| Score::of(&rows[i - 1], tokens[i], top)).collect()
}

fn scores(session: &mut Session, tokens: &[u32], from: usize, top: usize) -> Vec<Score> {
    let mut scores = Vec::new();
    let synced = session.score(tokens, from, top, |score| {
        scores.push(score);
        ControlFlow::Continue(())
    });
    let synced = synced.unwrap();
    assert_eq!(synced.reused + synced.computed, tokens.len());
    assert_eq!(session.tokens(), tokens);
    scores
}

fn session(engine: &Arc<Engine>) -> Session {
    Session::new(engine.clone(), 1400, KvType::F16).unwrap()
}

#[test]
fn a_score_is_the_logarithm_of_a_probability() {
    let logits = [1.0, 3.0, -2.0, 3.0, 0.5];
    let sum: f64 = logits.iter().map(|&l: &f32| f64::from(l).exp()).sum();
    let logprob = |id: usize| (f64::from(logits[id]) - sum.ln()) as f32;
    let score = Score::of(&logits, 2, 3);
    assert_eq!(score.best.iter().map(|b| b.0).collect::<Vec<_>>(), [1, 3, 0], "of equals the lower id");
    assert!((score.logprob - logprob(2)).abs() < 1e-6);
    assert!(score.best.iter().all(|&(id, p)| (p - logprob(id as usize)).abs() < 1e-6));
    assert_eq!(Score::of(&logits, 1, 1).logprob, Score::of(&logits, 1, 1).best[0].1, "the same float");
    assert!(Score::of(&[1e9, -1e9], 1, 0).logprob.is_finite());
    assert_eq!(best(&logits, 9).len(), 5);
}

#[test]
fn scores_have_the_bits_of_the_logits() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    // More than a batch and two pages.
    let all = tokens(1300, 3);
    let wanted = wanted(&engine, &all, 1, 3);
    let mut one = session(&engine);
    assert!(scores(&mut one, &all, 1, 3) == wanted);
    let last = Score::of(logits(&engine, &all).last().unwrap(), 7, 3);
    assert_eq!(Score::of(one.logits().unwrap(), 7, 3), last, "the session stands behind the last token");
    // What is there already is not run again before the place, and what others have run neither.
    for (more, from) in (4..).zip([1, 2, 511, 512, 513, 1026, 1299, 1300]) {
        assert!(scores(&mut one, &all, from, 3) == wanted[from - 1..], "from {from}, known");
        // Nobody knows so many of the best.
        let found = scores(&mut session(&engine), &all, from, more);
        let found: Vec<_> = found.into_iter().map(|s| Score { best: s.best[..3].to_vec(), ..s }).collect();
        assert!(found == wanted[from - 1..], "from {from}");
        let mut other = session(&engine);
        assert!(scores(&mut other, &all, from, 3) == wanted[from - 1..], "from {from}, known to another");
        assert_eq!(bits(other.logits().unwrap()), bits(fresh(&engine, &all, KvType::F16).logits().unwrap()));
    }
    let mut other = session(&engine);
    let synced = other.score(&all, 1200, 100, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((synced.shared, synced.computed), (1152, 148));
}

/// The choices of a question: lists that part from each other at any place.
fn choices() -> Vec<Vec<u32>> {
    let question = tokens(231, 40);
    let choice = |common: usize, n: usize, seed: u64| {
        [&question, &tokens(6, 50)[..common], &tokens(n, seed)[..]].concat()
    };
    vec![choice(0, 9, 41), choice(2, 5, 42), choice(2, 8, 43), choice(5, 4, 44)]
}

#[test]
fn what_lists_have_in_common_is_run_once() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let lists = choices();
    let wanted: Vec<_> = lists.iter().map(|list| wanted(&engine, list, 1, 1)).collect();
    // In one session, which is told where they part: what is there once is run once, and only the last token in common again, for what is behind it.
    let mut one = session(&engine);
    let before = engine.counts().tokens;
    for (list, wanted) in lists.iter().zip(&wanted) {
        one.return_to(&[231, 233, 236]);
        assert!(scores(&mut one, list, 1, 1) == *wanted);
    }
    assert_eq!(engine.counts().tokens - before, (231 + 9) + (1 + 2 + 5) + (1 + 8) + (1 + 3 + 4));
    drop(one);
    // In sessions of their own, one after another, pages of others reach to the last 64.
    let before = engine.counts().tokens;
    let others: Vec<_> = [60, 61].iter().map(|&seed| [&lists[0][..231], &tokens(7, seed)].concat()).collect();
    for list in &others {
        let mut session = session(&engine);
        let mut found = Vec::new();
        let synced = session.score(list, 1, 1, |score| {
            found.push(score);
            ControlFlow::Continue(())
        });
        assert_eq!(synced.unwrap(), yuan::session::Synced { reused: 192, shared: 192, computed: 46 });
        assert!(found == self::wanted(&engine, list, 1, 1));
    }
    assert_eq!(engine.counts().tokens - before, 2 * 46);
}

#[test]
fn scores_of_a_file_are_believed_by_its_session_alone() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let all = tokens(300, 9);
    let path = folder.path().join("s.session");
    fresh(&engine, &all[..250], KvType::F16).save(&path, None).unwrap();
    // The keys and values in the file are not the model's.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.truncate(bytes.len() - 32);
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4000].iter_mut().for_each(|byte| *byte ^= 1);
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    std::fs::write(&path, bytes).unwrap();
    let engine = Engine::open(engine.container().path(), &two_threads()).unwrap();
    let wanted = wanted(&engine, &all, 1, 1);
    let mut restored = Session::restore(engine.clone(), &path, Some(400)).unwrap().session;
    assert!(scores(&mut session(&engine), &all[..251], 1, 1) == wanted[..250]);
    assert!(scores(&mut restored, &all, 1, 1) != wanted);
    assert!(scores(&mut session(&engine), &all, 1, 1) == wanted);
}

#[test]
fn scores_are_the_same_in_company() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let lists: Vec<_> = (0..6).map(|seed| tokens(200 + 90 * seed, 20 + seed as u64)).collect();
    let wanted: Vec<_> = lists.iter().map(|list| wanted(&engine, list, 1, 2)).collect();
    thread::scope(|scope| {
        for (list, wanted) in lists.iter().zip(&wanted) {
            let engine = &engine;
            scope.spawn(move || assert!(scores(&mut session(engine), list, 1, 2) == *wanted));
        }
        for seed in 0..3 {
            let engine = &engine;
            scope.spawn(move || {
                let mut session = fresh(engine, &tokens(40, seed), KvType::F16);
                session.reserve(200).unwrap();
                answer(&mut session, &mut sampler(seed), &endless(100));
            });
        }
    });
    assert_eq!(engine.counts().panics, 0);
}

#[test]
fn tokens_of_an_answer_are_scored_as_a_list_is() {
    let folder = common::folder();
    let engine = demo(&folder);
    let prompt = engine.tokenizer().encode("Psalms 151:1<sep>", yuan::tokenizer::Special::Parse);
    for temperature in [0.0, 0.9] {
        let settings = Settings { temperature, top_k: 20, seed: Some(3), ..Settings::default() };
        let mut plain = session(&engine);
        plain.sync(&prompt, go).unwrap();
        let limits = Limits::tokens(60);
        let (tokens, text, _) = answer(&mut plain, &mut Sampler::new(settings.clone()).unwrap(), &limits);
        let mut scored = session(&engine);
        scored.sync(&prompt, go).unwrap();
        let (mut found, mut shown) = (Vec::new(), String::new());
        let mut sampler = Sampler::new(settings).unwrap();
        let finish = scored.generate_scored(&mut sampler, &limits, Some(2), |token, piece| {
            found.extend(token);
            shown.push_str(piece);
            ControlFlow::Continue(())
        });
        let eod = found.pop_if(|token| token.ends);
        assert_eq!(eod.is_some(), finish.unwrap() == Finish::Stop);
        assert_eq!((found.iter().map(|t| t.id).collect::<Vec<_>>(), shown), (tokens.clone(), text));
        let whole = [&prompt[..], &tokens, eod.iter().map(|t| t.id).collect::<Vec<_>>().as_slice()].concat();
        let found: Vec<_> = found.into_iter().chain(eod).map(|t| t.score.unwrap()).collect();
        assert!(found == wanted(&engine, &whole, prompt.len(), 2), "at {temperature}");
        if temperature == 0.0 {
            assert!(found.iter().all(|score| score.best[0] == (score.token, score.logprob)));
        }
    }
}

#[test]
fn what_cannot_be_scored_changes_nothing_and_what_is_stopped_goes_on() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let all = tokens(600, 9);
    let mut session = session(&engine);
    session.sync(&all[..10], go).unwrap();
    for from in [0, 601] {
        let refused = session.score(&all, from, 1, |_| ControlFlow::Continue(()));
        assert!(matches!(refused, Err(Error::Argument(_))), "{from}");
    }
    assert!(matches!(
        session.score(&tokens(1401, 1), 1, 1, |_| ControlFlow::Continue(())),
        Err(Error::ContextFull { .. })
    ));
    assert_eq!(session.tokens(), &all[..10]);
    let mut heard = 0;
    let stopped = session.score(&all, 1, 1, |_| {
        heard += 1;
        if heard == 100 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert!(session.tokens().len() < 600 && all.starts_with(session.tokens()));
    assert!(scores(&mut session, &all, 1, 1) == wanted(&engine, &all, 1, 1));
    let cancel = session.cancel_token();
    let stopped = session.score(&all, 1, 1, |_| {
        cancel.cancel();
        ControlFlow::Continue(())
    });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert!(scores(&mut session, &all, 300, 1) == wanted(&engine, &all, 300, 1));
}
