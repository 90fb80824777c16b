//! Sessions: whatever was done before, the state is the one of the tokens, bit for bit.

mod common;

use std::{ops::ControlFlow, thread};

use common::{mutate::Random, sessions::*};
use yuan::{
    Error,
    config::ModelConfig,
    model::{KvType, Stage, State, Want},
    quantize::{Options, synth},
    sampler::{Sampler, Settings},
    session::{Engine, Finish, Limits, Session, Synced},
    tokenizer::Special,
};

/// Random timelines after one another, with random prefixes in common: always the bits of a new session.
#[test]
fn a_rewound_session_equals_one_that_never_went_there() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let mut random = Random::new(11);
    for kv in KvType::SAMPLES {
        let mut session = Session::new(engine.clone(), 700, kv).unwrap();
        let mut timeline = Vec::new();
        for round in 0..30 {
            let cut = random.below(timeline.len() + 1);
            timeline.truncate(cut);
            let more = 1 + random.below(if round % 5 == 0 { 600 } else { 90 });
            timeline.extend(tokens(more.min(700 - cut), random.next()));
            let synced = session.sync(&timeline, go).unwrap();
            assert_eq!(synced.reused + synced.computed, timeline.len());
            assert!(synced.reused <= cut && cut - synced.reused < 64, "{synced:?} of {cut}");
            let mut new = fresh(&engine, &timeline, kv);
            assert_eq!(session.embedding().unwrap(), new.embedding().unwrap());
            assert!(bits(session.logits().unwrap()) == bits(new.logits().unwrap()), "{kv:?}, cut at {cut}");
            assert_eq!(session.tokens(), timeline);
        }
    }
}

#[test]
fn a_prefix_of_the_timeline_costs_no_more_than_the_way_from_a_snapshot() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let all = tokens(300, 1);
    let mut session = fresh(&engine, &all, KvType::F16);
    assert_eq!(session.sync(&all, go).unwrap(), Synced { reused: 300, shared: 0, computed: 0 });
    assert_eq!(session.sync(&all[..256], go).unwrap(), Synced { reused: 256, shared: 0, computed: 0 });
    assert_eq!(session.sync(&all[..200], go).unwrap(), Synced { reused: 192, shared: 0, computed: 8 });
    assert!(
        bits(session.logits().unwrap()) == bits(fresh(&engine, &all[..200], KvType::F16).logits().unwrap())
    );
    assert_eq!(session.sync(&[], go).unwrap(), Synced { reused: 0, shared: 0, computed: 0 });
    assert!(session.logits().unwrap_err().to_string().contains("give a prompt"));
    // The ends of the earlier lists are snapshots too.
    session.sync(&all[..100], go).unwrap();
    session.sync(&all[..130], go).unwrap();
    let next = [&all[..129], &all[..20]].concat();
    assert_eq!(session.sync(&next, go).unwrap(), Synced { reused: 129, shared: 0, computed: 20 });
    assert!(bits(session.logits().unwrap()) == bits(fresh(&engine, &next, KvType::F16).logits().unwrap()));
    assert_eq!(session.sync(&all[..100], go).unwrap(), Synced { reused: 100, shared: 0, computed: 0 });
}

#[test]
fn what_is_impossible_is_refused_and_changes_nothing() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let mut session = Session::new(engine.clone(), 20, KvType::F16).unwrap();
    session.sync(&tokens(20, 1), go).unwrap();
    let before = bits(session.logits().unwrap());
    assert!(matches!(session.sync(&tokens(21, 1), go), Err(Error::ContextFull { capacity: 20, wanted: 21 })));
    assert!(session.extend(&[1], go).unwrap_err().to_string().contains("raise --context"));
    assert!(session.extend(&[], go).is_err());
    assert!(session.sync(&[1, 512], go).unwrap_err().to_string().contains("outside the vocabulary"));
    assert!(session.reserve(usize::MAX).is_err());
    assert_eq!(session.tokens(), tokens(20, 1));
    assert!(bits(session.logits().unwrap()) == before);
    session.reserve(30).unwrap();
    assert!(bits(session.logits().unwrap()) == before);
    session.extend(&tokens(30, 1)[20..], go).unwrap();
    assert!(
        bits(session.logits().unwrap())
            == bits(fresh(&engine, &tokens(30, 1), KvType::F16).logits().unwrap())
    );
    for context in [usize::MAX, usize::MAX / 2, 1 << 45] {
        assert!(Session::new(engine.clone(), context, KvType::F16).is_err());
    }
}

#[test]
fn a_cancelled_session_goes_on_from_where_it_is() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let all = tokens(3000, 3);
    let mut session = Session::new(engine.clone(), 3100, KvType::F16).unwrap();
    let mut stop = |done| if done >= 512 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    assert!(matches!(session.sync(&all, &mut stop), Err(Error::Cancelled)));
    assert_eq!(session.tokens(), &all[..512]);

    let cancel = session.cancel_token();
    let cancel_elsewhere = |_| {
        let cancel = cancel.clone();
        thread::spawn(move || cancel.cancel()).join().unwrap();
        ControlFlow::Continue(())
    };
    assert!(matches!(session.sync(&all, cancel_elsewhere), Err(Error::Cancelled)));
    assert_eq!(session.tokens(), &all[..1024]);
    session.sync(&all, go).unwrap();
    assert!(bits(session.logits().unwrap()) == bits(fresh(&engine, &all, KvType::F16).logits().unwrap()));

    // A request that comes between two tokens ends the answer; what was shown is the timeline.
    let cancel = session.cancel_token();
    let mut shown = Vec::new();
    let finish = session.generate(&mut sampler(1), &endless(50), |token, _| {
        shown.extend(token);
        if shown.len() == 5 {
            cancel.cancel();
        }
        ControlFlow::Continue(())
    });
    assert_eq!((finish.unwrap(), shown.len()), (Finish::Cancelled, 5));
    assert_eq!(session.tokens()[3000..], shown);
    let rest = answer(&mut session, &mut Sampler::new(Settings::default()).unwrap(), &endless(5)).0;
    let mut new = fresh(&engine, &[&all[..], &shown].concat(), KvType::F16);
    new.reserve(3100).unwrap();
    assert_eq!(rest, answer(&mut new, &mut Sampler::new(Settings::default()).unwrap(), &endless(5)).0);
}

/// A program that runs token by token goes back to its prompt's end at no cost.
#[test]
fn single_tokens_leave_the_marks_of_prompts_alone() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let (prompt, all) = (tokens(100, 1), tokens(40, 2));
    let mut session = fresh(&engine, &prompt, KvType::F16);
    session.reserve(200).unwrap();
    for token in all {
        session.extend(&[token], go).unwrap();
    }
    let other = [&prompt[..], &[7, 8]].concat();
    assert_eq!(session.sync(&other, go).unwrap(), Synced { reused: 100, shared: 0, computed: 2 });
    assert!(bits(session.logits().unwrap()) == bits(fresh(&engine, &other, KvType::F16).logits().unwrap()));
}

/// Whatever call a request comes behind, it has come too late, and the next call of any kind runs to its end.
#[test]
fn a_late_request_does_not_stop_the_next_call() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let all = tokens(90, 3);
    let mut session = Session::new(engine.clone(), 200, KvType::F16).unwrap();
    let cancel = session.cancel_token();
    let mut greedy = Sampler::new(Settings::default()).unwrap();
    cancel.cancel();
    session.sync(&all, go).unwrap();
    cancel.cancel();
    session.extend(&[1], go).unwrap();
    cancel.cancel();
    session.logits().unwrap();
    cancel.cancel();
    session.sample(&mut greedy).unwrap();
    cancel.cancel();
    assert_eq!(answer(&mut session, &mut greedy, &endless(9)).0.len(), 9);
    cancel.cancel();
    session.embedding().unwrap();
    cancel.cancel_all();
    assert!(matches!(session.extend(&[2], go), Err(Error::Cancelled)));
}

#[test]
fn a_pass_that_is_cancelled_between_layers_leaves_the_state_as_before() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let (model, all) = (engine.model(), tokens(90, 2));
    let mut state = State::new(model.config(), 100, KvType::F16).unwrap();
    model.forward_one(&all[..10], &mut state, Want::Nothing).unwrap();
    let cancel = state.cancel.clone();
    let mut probe = |stage, layer, _: &[f32]| {
        if (stage, layer) == (Stage::Hidden, 0) {
            cancel.cancel();
        }
    };
    let running = cancel.begin();
    let result = model.forward_probed(&all[10..], &mut state, Want::Last, &mut probe);
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(state.position(), 10);
    drop(running);
    let logits = model.forward_one(&all[10..], &mut state, Want::Last).unwrap();
    assert!(bits(&logits) == bits(fresh(&engine, &all, KvType::F16).logits().unwrap()));
}

#[test]
fn stop_texts_and_tokens_end_an_answer() {
    let folder = common::folder();
    let engine = demo(&folder);
    for prompt in ["Psalms 151:1-4<sep>", "春日山中 李白<sep>"] {
        let prompt = engine.tokenizer().encode(prompt, Special::Parse);
        let run = |limits: &Limits| {
            let mut session = Session::new(engine.clone(), prompt.len() + 40, KvType::F16).unwrap();
            session.sync(&prompt, go).unwrap();
            let found = answer(&mut session, &mut Sampler::new(Settings::default()).unwrap(), limits);
            assert_eq!(session.tokens()[prompt.len()..], found.0);
            found
        };
        let (tokens, text, _) = run(&endless(40));
        let chars: Vec<char> = text.chars().collect();
        for at in 1..chars.len() - 3 {
            let stop: String = chars[at..at + 3].iter().collect();
            let first = text.find(&stop).unwrap();
            let limits = Limits { stop_texts: vec!["never 不曾".into(), stop], ..endless(40) };
            let (found, shown, finish) = run(&limits);
            assert_eq!((shown.as_str(), finish), (&text[..first], Finish::StopText(1)));
            assert!(tokens.starts_with(&found));
        }
        let stop = tokens[7];
        let first = tokens.iter().position(|&t| t == stop).unwrap();
        let (found, _, finish) = run(&Limits { stop_tokens: vec![stop], ..endless(40) });
        assert_eq!((&found[..], finish), (&tokens[..first], Finish::Stop));
    }
}

#[test]
fn a_full_context_is_an_error_unless_a_shift_is_asked_for() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let prompt = tokens(30, 4);
    let mut session = Session::new(engine.clone(), 40, KvType::F16).unwrap();
    session.sync(&prompt, go).unwrap();
    let mut shown = 0;
    let result = session.generate(&mut sampler(2), &endless(100), |token, _| {
        shown += usize::from(token.is_some());
        ControlFlow::Continue(())
    });
    assert!(matches!(result, Err(Error::ContextFull { capacity: 40, wanted: 41 })), "{result:?}");
    // The last token was chosen, and could not be run any more.
    assert_eq!((shown, session.position()), (11, 41));

    let mut session = Session::new(engine.clone(), 40, KvType::F16).unwrap();
    session.sync(&prompt, go).unwrap();
    let limits = Limits { shift: Some(4), ..endless(100) };
    let (found, _, finish) = answer(&mut session, &mut sampler(2), &limits);
    assert_eq!((found.len(), finish), (100, Finish::Length));
    assert_eq!(session.tokens()[..4], prompt[..4]);
    assert!(found.ends_with(&session.tokens()[4..]) && session.position() > 20);
    let timeline = session.tokens().to_vec();
    session.reserve(timeline.len()).unwrap();
    assert!(
        bits(session.logits().unwrap()) == bits(fresh(&engine, &timeline, KvType::F16).logits().unwrap())
    );
    let limits = Limits { shift: Some(1000), ..endless(100) };
    let mut session = fresh(&engine, &prompt, KvType::F16);
    assert!(matches!(
        session.generate(&mut sampler(2), &limits, |_, _| ControlFlow::Continue(())),
        Err(Error::ContextFull { .. })
    ));
}

#[test]
fn threads_with_sessions_of_their_own_share_an_engine() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let run = |seed: u64| {
        let mut session = Session::new(engine.clone(), 200, KvType::F16).unwrap();
        session.sync(&tokens(20 + seed as usize, seed), go).unwrap();
        answer(&mut session, &mut sampler(seed), &endless(30))
    };
    let alone: Vec<_> = (0..8).map(run).collect();
    let together: Vec<_> = thread::scope(|s| {
        let run = &run;
        let threads: Vec<_> = (0..8).map(|seed| s.spawn(move || run(seed))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}

/// However long a session was and wherever it was cut: the way back to any position is short.
#[test]
fn a_rewind_runs_few_tokens_again_whatever_came_before() {
    let folder = common::folder();
    let path = folder.path().join("one-layer.gguf");
    let config = ModelConfig { layers: 1, heads: 2, projection: 256, ..synth::tiny() };
    let engine = Engine::new(common::synth(config, &Options::default(), 5, &path), &two_threads()).unwrap();
    let all = tokens(16_000, 1);
    let mut session = fresh(&engine, &all, KvType::F16);
    assert_eq!(session.sync(&all[..200], go).unwrap(), Synced { reused: 192, shared: 0, computed: 8 });
    session.sync(&[&all[..200], &tokens(900, 2)].concat(), go).unwrap();
    for cut in [1_050, 700, 513, 190, 65, 63] {
        let Synced { reused, computed, .. } =
            session.sync(&[&session.tokens()[..cut], &[3]].concat(), go).unwrap();
        assert_eq!((reused + computed, reused), (cut + 1, cut / 64 * 64), "{cut}");
    }
}
