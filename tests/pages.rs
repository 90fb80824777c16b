//! Keys and values in pages: counted in one pool, found again by their tokens, and always with the bits of a sequence alone.

mod common;

use std::{sync::Arc, thread};

use common::{mutate::Random, paging, sessions::*};
use yuan::{
    Error,
    config::ModelConfig,
    container::Container,
    machine::budget::Limit,
    model::{KvType, Model, Options as RunOptions, Placement, State, Want},
    pager::Paging,
    quantize::{Options, synth},
    session::{Engine, Session, Synced},
};

/// Options of a streamed model whose sequences may take as much together as one of `context` tokens.
fn pooled(container: &Container, context: usize) -> RunOptions {
    let mut options = RunOptions { context, ..paging::options(Paging::Streamed) };
    let plan = Placement::new(container, &options).unwrap();
    options.paging.memory = Some(Limit::Bytes(plan.smallest + plan.experts as u64 * plan.expert_bytes));
    options
}

/// The last token's logits, of a state that shares nothing.
fn alone(model: &Model, tokens: &[u32], kv: KvType) -> Vec<u32> {
    let mut state = State::new(model.config(), tokens.len(), kv).unwrap();
    let pieces = tokens.chunks(500).map(|piece| model.forward_one(piece, &mut state, Want::Last).unwrap());
    bits(&pieces.last().unwrap())
}

#[test]
fn a_pass_that_the_pool_has_no_room_for_leaves_all_as_before() {
    let folder = common::folder();
    let container = paging::container(&folder);
    let model = Model::load(&container, &pooled(&container, 200)).unwrap();
    let (config, kv, all) = (model.config(), KvType::F16, paging::tokens(300));
    let run = |state: &mut State, tokens| model.forward_one(tokens, state, Want::Last).map(|l| bits(&l));
    let [none, one] = [0, 64].map(|context| State::bytes(config, kv, context));
    let step = 64 * State::kv_bytes(config, kv) as u64;
    let snapshot = one - none - step;
    let usage = model.pool_use();
    assert_eq!(usage.budget, State::bytes(config, kv, 200));
    assert_eq!((usage.bytes, usage.pages, usage.sequences), (0, 0, 0));

    let [mut first, mut second] = [0, 1].map(|_| model.state(300, kv).unwrap());
    run(&mut first, &all[..150]).unwrap();
    assert_eq!(model.pool_use().bytes, 3 * step + 2 * snapshot);
    run(&mut second, &all[..60]).unwrap();
    let before = model.pool_use();
    assert_eq!((before.bytes, before.pages, before.sequences), (4 * step + 2 * snapshot, 2, 2));
    let refused = run(&mut second, &all[60..150]).unwrap_err();
    assert!(matches!(refused, Error::Memory(_)), "{refused}");
    let said = refused.to_string();
    let of = format!("of {} bytes {} are used by 2 sequences, {step} of them", before.budget, before.bytes);
    for part in [&of, "of 150 tokens", "--memory", "--context", "--kv"] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    assert_eq!((model.pool_use(), second.position()), (before, 60));
    run(&mut second, &all[60..64]).unwrap();

    // What the first gives back is enough for the second, and a copy of that shares its pages until it is written.
    drop(first);
    assert!(run(&mut second, &all[64..150]).unwrap() == alone(&model, &all[..150], kv));
    let mut copy = second.clone();
    assert_eq!((model.pool_use().pages, model.pool_use().sequences), (1, 2));
    assert!(run(&mut copy, &all[150..151]).is_err(), "there is no room for a copy of the page");
    drop(copy);
    assert!(run(&mut second, &all[150..200]).unwrap() == alone(&model, &all[..200], kv));
    assert!(run(&mut second, &all[200..]).is_err());
    drop(second);
    let usage = model.pool_use();
    assert_eq!((usage.bytes, usage.pages, usage.sequences), (0, 0, 0));
}

#[test]
fn a_system_prompt_is_stored_and_computed_once() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let (model, prompt) = (engine.model(), tokens(2000, 1));
    let usage = || {
        let usage = model.pool_use();
        (usage.pages, usage.shared, usage.kept, usage.sequences)
    };
    let mut sessions: Vec<_> = (0..16)
        .map(|i| {
            let timeline = [&prompt[..], &tokens(10, 100 + i)].concat();
            let mut session = Session::new(engine.clone(), 2100, KvType::F16).unwrap();
            // Full pages are shared: the first 1536 tokens. The 464 behind them are everybody's own.
            let shared = if i == 0 { 0 } else { 1536 };
            let synced = session.sync(&timeline, go).unwrap();
            assert_eq!(synced, Synced { reused: shared, shared, computed: 2010 - shared });
            (session, timeline)
        })
        .collect();
    assert_eq!(usage(), (3 + 16, 3, 0, 16));
    let work = model.work();
    assert_eq!(work.prefill.tokens, 1536 + 16 * 474);
    for (session, timeline) in &mut sessions {
        assert!(bits(session.logits().unwrap()) == alone(model, timeline, KvType::F16));
    }
    // A rewind into a shared page copies it, and the others do not notice.
    let (session, _) = &mut sessions[3];
    let other = [&prompt[..700], &tokens(30, 7)].concat();
    assert_eq!(session.sync(&other, go).unwrap(), Synced { reused: 640, shared: 0, computed: 90 });
    assert!(bits(session.logits().unwrap()) == alone(model, &other, KvType::F16));
    assert_eq!(usage(), (3 + 16, 3, 0, 16));
    let (session, timeline) = &mut sessions[4];
    timeline.push(3);
    session.extend(&[3], go).unwrap();
    assert!(bits(session.logits().unwrap()) == alone(model, timeline, KvType::F16));
    // They stay when all sessions have gone, and what the sessions ended with: once where it is the same, as of all but the one that went elsewhere.
    // Another type of keys and values has pages of its own.
    drop(sessions);
    assert_eq!(usage(), (3 + 2, 0, 3 + 2, 0));
    for (kv, shared) in [(KvType::F16, 1536 + 448), (KvType::Q8_0, 0)] {
        let mut session = Session::new(engine.clone(), 2100, kv).unwrap();
        assert_eq!(session.sync(&prompt, go).unwrap().shared, shared);
        assert!(bits(session.logits().unwrap()) == alone(model, &prompt, kv));
    }
    // A timeline that ends with a page needs no token to be run.
    let mut session = Session::new(engine.clone(), 2100, KvType::F16).unwrap();
    let synced = session.sync(&prompt[..1024], go).unwrap();
    assert_eq!(synced, Synced { reused: 1024, shared: 1024, computed: 0 });
    assert!(bits(session.logits().unwrap()) == alone(model, &prompt[..1024], KvType::F16));
}

/// A server has a session for each turn of a conversation: what one turn has read, and its answer, is the beginning of the next.
#[test]
fn a_conversation_goes_on_in_other_sessions() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let (model, first, other) = (engine.model(), tokens(300, 1), tokens(900, 2));
    let kept = || (model.pool_use().pages, model.pool_use().kept);
    let turn = |timeline: &[u32], reused: usize| {
        let mut session = Session::new(engine.clone(), 1200, KvType::F16).unwrap();
        let synced = session.sync(timeline, go).unwrap();
        assert_eq!(synced, Synced { reused, shared: reused, computed: timeline.len() - reused });
        assert!(bits(session.logits().unwrap()) == alone(model, timeline, KvType::F16));
        session
    };
    drop(turn(&first, 0));
    assert_eq!(kept(), (1, 1));
    // The next turn has it, and then stands for both: 300 tokens of which 256 are found, and 40 more.
    let second = turn(&[&first[..], &other[..40]].concat(), 256);
    assert_eq!(kept(), (2, 1), "who writes has a page of its own");
    drop(second);
    assert_eq!(kept(), (1, 1));
    drop(turn(&[&first[..], &other[..40]].concat(), 320));
    // Another way on from the middle of a page is kept beside it.
    let aside = [&first[..200], &other[..500]].concat();
    drop(turn(&aside, 192));
    assert_eq!(kept(), (3, 3));
    // A full page is as good as a part of one.
    drop(turn(&[&aside[..450], &other[..30]].concat(), 448));
    drop(turn(&[&aside[..], &other[500..]].concat(), 640));
    drop(turn(&tokens(700, 3), 0));
}

#[test]
fn sessions_that_compute_the_same_at_once_keep_it_once() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let prompt = tokens(1100, 1);
    let wanted = alone(engine.model(), &prompt, KvType::F16);
    let sessions: Vec<Session> = thread::scope(|scope| {
        let run = || {
            let mut session = Session::new(engine.clone(), 1100, KvType::F16).unwrap();
            session.sync(&prompt, go).unwrap();
            assert!(bits(session.logits().unwrap()) == wanted);
            session
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let usage = engine.model().pool_use();
    assert_eq!((usage.pages, usage.shared, sessions.len()), (2 + 4, 2, 4));
}

/// What a file says of some tokens is believed by the session that reads it only.
#[test]
fn nobody_gets_pages_of_a_file() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let (file, all) = (folder.path().join("s.session"), tokens(1100, 1));
    fresh(&engine, &all[..600], KvType::F16).save(&file, None).unwrap();
    // Another engine has no pages of these tokens.
    let engine = Engine::open(engine.container().path(), &two_threads()).unwrap();
    let mut restored = Session::restore(engine.clone(), &file, Some(1200)).unwrap().session;
    restored.sync(&all, go).unwrap();
    let mut session = Session::new(engine.clone(), 1200, KvType::F16).unwrap();
    assert_eq!(session.sync(&all, go).unwrap(), Synced { reused: 0, shared: 0, computed: 1100 });
    // But it takes what others have, and what it runs from the beginning is as good as theirs.
    restored.sync(&all[..600], go).unwrap();
    assert_eq!(restored.sync(&all, go).unwrap().shared, 1024 - 600);
    let other = tokens(600, 2);
    restored.sync(&other, go).unwrap();
    assert_eq!(session.sync(&other, go).unwrap().shared, 512);
}

/// Sessions that go to and fro on timelines with beginnings in common, in a pool that does not hold all of it.
#[test]
fn a_session_does_not_notice_what_it_shares() {
    let folder = common::folder();
    let path = folder.path().join("m.gguf");
    let config = ModelConfig { heads: 2, projection: 256, ..synth::tiny() };
    let container = common::synth(config, &Options::default(), 5, &path);
    let engine = Engine::new(container, &pooled(&Container::open(&path).unwrap(), 2000)).unwrap();
    let model = engine.model();
    let mut timelines = vec![tokens(1700, 1)];
    for (i, common) in [(0, 700), (0, 1024), (1, 1100), (2, 500)] {
        let end = 1700 - common;
        timelines.push([&timelines[i][..common], &tokens(end, 2 + common as u64)].concat());
    }
    let mut random = Random::new(3);
    let (mut shared, mut refused) = (0, 0);
    for kv in [KvType::F16, KvType::Q8_0] {
        let rows = timelines.iter().map(|tokens| {
            let mut state = State::new(model.config(), tokens.len(), kv).unwrap();
            let pieces = tokens.chunks(425).map(|t| model.forward_one(t, &mut state, Want::All).unwrap());
            bits(&pieces.collect::<Vec<_>>().concat())
        });
        let rows: Vec<Vec<u32>> = rows.collect();
        let session = || Session::new(engine.clone(), 1700, kv).unwrap();
        let mut sessions: Vec<_> = (0..5).map(|_| (session(), 0)).collect();
        for round in 0..150 {
            let place = random.below(sessions.len());
            let (now, on) = &mut sessions[place];
            let result = match random.below(8) {
                0 => {
                    (*now, *on) = (session(), 0);
                    continue;
                }
                1 | 2 if now.position() > 0 && now.position() < 1690 => {
                    let next = &timelines[*on][now.position()..][..1 + random.below(9)];
                    next.iter().try_for_each(|&token| now.extend(&[token], go)).map(|()| 0)
                }
                _ => {
                    *on = random.below(timelines.len());
                    let end = 1 + random.below(1700);
                    now.sync(&timelines[*on][..end], go).map(|synced| synced.shared)
                }
            };
            let usage = model.pool_use();
            assert!(usage.bytes <= usage.budget, "{usage:?}");
            match result {
                Ok(taken) => shared += taken,
                Err(Error::Memory(_)) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            let end = now.position();
            assert!(now.tokens() == &timelines[*on][..end], "round {round}");
            if end > 0 {
                let found = bits(now.logits().unwrap());
                assert!(
                    found == rows[*on][(end - 1) * 512..end * 512],
                    "{kv:?}, round {round}, {end} tokens"
                );
            }
        }
    }
    assert!(shared > 5_000 && refused > 0, "{shared} tokens shared, {refused} passes without room");
    assert_eq!(model.pool_use().sequences, 0);
    assert!(Arc::strong_count(&engine) == 1 && model.pool_use().kept > 0);
}

#[test]
fn what_need_not_be_run_can_be_taken_before_the_rest() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let all = tokens(1200, 77);
    let wanted = bits(fresh(&engine, &all, KvType::F16).logits().unwrap());
    let mut session = Session::new(engine, 1200, KvType::F16).unwrap();
    session.sync(&all[..30], go).unwrap();
    session.logits().unwrap();
    assert_eq!(session.adopt(&all).unwrap(), 1152, "the pages of the other, to the last snapshot");
    assert_eq!(session.tokens(), &all[..1152]);
    assert!(matches!(session.adopt(&tokens(1201, 1)), Err(Error::ContextFull { .. })));
    assert_eq!(session.adopt(&all[..1152]).unwrap(), 1152, "nothing changes");
    let synced = session.sync(&all, go).unwrap();
    assert_eq!((synced.reused, synced.computed), (1152, 48));
    assert!(bits(session.logits().unwrap()) == wanted);
    assert_eq!(session.adopt(&[3]).unwrap(), 0, "it has nothing of these");
}
