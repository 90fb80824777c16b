//! Sessions: whatever was done before, the state is the one of the tokens, bit for bit.

mod common;

use std::{fs, ops::ControlFlow, path::Path, sync::Arc, thread};

use common::mutate::{Random, mutate};
use yuan::{
    Error,
    model::{Arithmetic, KvType, Options as RunOptions, Stage, State, Want},
    pager::Mode,
    quantize::{Options, synth},
    sampler::{Sampler, Settings},
    session::{Engine, Finish, Limits, Session, Synced},
    tokenizer::Special,
};

fn go(_: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A small random model.
fn tiny(folder: &tempfile::TempDir, seed: u64) -> Arc<Engine> {
    let path = folder.path().join(format!("tiny-{seed}.gguf"));
    Engine::new(common::synth(synth::tiny(), &Options::default(), seed, &path), &two_threads()).unwrap()
}

fn two_threads() -> RunOptions {
    RunOptions { threads: 2, ..RunOptions::default() }
}

/// The demo model, 16 million weights.
fn demo(folder: &tempfile::TempDir) -> Arc<Engine> {
    let path = folder.path().join("demo.gguf");
    Engine::new(common::convert(&common::demo(), &Options::default(), &path), &two_threads()).unwrap()
}

/// The same with 8 of its 64 experts in memory.
fn streamed(engine: &Engine) -> Arc<Engine> {
    let options = common::paging::keeping(engine.container(), 8);
    let engine = Engine::open(engine.container().path(), &options).unwrap();
    assert_eq!(engine.model().pager().mode(), Mode::Streamed);
    engine
}

fn tokens(n: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..n).map(|_| random.below(512) as u32).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|l| l.to_bits()).collect()
}

fn fresh(engine: &Arc<Engine>, tokens: &[u32], kv: KvType) -> Session {
    let mut session = Session::new(engine.clone(), tokens.len() + 1, kv).unwrap();
    session.sync(tokens, go).unwrap();
    session
}

fn sampler(seed: u64) -> Sampler {
    let settings = Settings {
        temperature: 0.9,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.01,
        repeat_penalty: 1.1,
        frequency_penalty: 0.1,
        seed: Some(seed),
        ..Settings::default()
    };
    Sampler::new(settings).unwrap()
}

/// Generates, and returns what was shown.
fn answer(session: &mut Session, sampler: &mut Sampler, limits: &Limits) -> (Vec<u32>, String, Finish) {
    let (mut tokens, mut text) = (Vec::new(), String::new());
    let finish = session.generate(sampler, limits, |token, piece| {
        tokens.extend(token);
        text.push_str(piece);
        ControlFlow::Continue(())
    });
    (tokens, text, finish.unwrap())
}

fn endless(most: usize) -> Limits {
    Limits { ignore_eod: true, ..Limits::tokens(most) }
}

/// Random timelines after one another, with random prefixes in common: always the bits of a new session.
#[test]
fn a_rewound_session_equals_one_that_never_went_there() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let mut random = Random::new(11);
    for kv in KvType::ALL {
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
    assert_eq!(session.sync(&all, go).unwrap(), Synced { reused: 300, computed: 0 });
    assert_eq!(session.sync(&all[..256], go).unwrap(), Synced { reused: 256, computed: 0 });
    assert_eq!(session.sync(&all[..200], go).unwrap(), Synced { reused: 192, computed: 8 });
    assert!(
        bits(session.logits().unwrap()) == bits(fresh(&engine, &all[..200], KvType::F16).logits().unwrap())
    );
    assert_eq!(session.sync(&[], go).unwrap(), Synced { reused: 0, computed: 0 });
    assert!(session.logits().unwrap_err().to_string().contains("give a prompt"));
    // The ends of the earlier lists are snapshots too.
    session.sync(&all[..100], go).unwrap();
    session.sync(&all[..130], go).unwrap();
    let next = [&all[..129], &all[..20]].concat();
    assert_eq!(session.sync(&next, go).unwrap(), Synced { reused: 129, computed: 20 });
    assert!(bits(session.logits().unwrap()) == bits(fresh(&engine, &next, KvType::F16).logits().unwrap()));
    assert_eq!(session.sync(&all[..100], go).unwrap(), Synced { reused: 100, computed: 0 });
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

/// Saved at a random point, dropped, read back: the answer is that of a session that was never stopped.
#[test]
fn restored_equals_never_stopped() {
    let folder = common::folder();
    let mapped = demo(&folder);
    let engines = [streamed(&mapped), mapped];
    let file = folder.path().join("s.session");
    let mut random = Random::new(23);
    for (kv, engine) in KvType::ALL.into_iter().flat_map(|kv| engines.iter().map(move |e| (kv, e))) {
        for prompt in ["1 Chronicles 27:7-12<sep>", "十五夜观灯 王维<sep>"] {
            let prompt = engine.tokenizer().encode(prompt, Special::Parse);
            let most = 60;
            let begin = || {
                let mut session = Session::new(engine.clone(), prompt.len() + most, kv).unwrap();
                session.sync(&prompt, go).unwrap();
                (session, sampler(9))
            };
            let (mut session, mut choices) = begin();
            let (whole, text, _) = answer(&mut session, &mut choices, &endless(most));
            assert_eq!(whole.len(), most);
            for _ in 0..13 {
                let cut = random.below(most + 1);
                let (mut session, mut choices) = begin();
                let (mut found, mut shown, _) = answer(&mut session, &mut choices, &endless(cut));
                session.save(&file, Some(&choices)).unwrap();
                drop((session, choices));
                let restored = Session::restore(engine.clone(), &file, None).unwrap();
                let (mut session, mut choices) = (restored.session, restored.sampler.unwrap());
                let rest = answer(&mut session, &mut choices, &endless(most - cut));
                found.extend(rest.0);
                shown.push_str(&rest.1);
                assert_eq!(found, whole, "{kv:?}, cut at {cut}");
                // A character that was cut in two is shown as broken at the cut.
                assert!(shown == text || shown.contains('\u{FFFD}'), "{shown} and {text}");
                assert!(!restored.hot.is_empty());
                engine.model().pager().warm(&restored.hot).unwrap();
            }
        }
    }
}

#[test]
fn a_restored_session_can_still_go_back() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let file = folder.path().join("s.session");
    let all = tokens(300, 8);
    let mut session = fresh(&engine, &all, KvType::Q8_0);
    session.note = "三百 tokens".into();
    session.save(&file, None).unwrap();
    let mut session = Session::restore(engine.clone(), &file, Some(400)).unwrap().session;
    assert_eq!((session.note.as_str(), session.tokens(), session.capacity()), ("三百 tokens", &all[..], 400));
    assert_eq!(session.sync(&all[..130], go).unwrap(), Synced { reused: 128, computed: 2 });
    assert!(
        bits(session.logits().unwrap()) == bits(fresh(&engine, &all[..130], KvType::Q8_0).logits().unwrap())
    );
    let empty = Session::new(engine.clone(), 10, KvType::F16).unwrap();
    empty.save(&file, None).unwrap();
    let mut session = Session::restore(engine.clone(), &file, None).unwrap().session;
    assert_eq!(session.position(), 0);
    session.sync(&all[..10], go).unwrap();
    assert!(
        bits(session.logits().unwrap()) == bits(fresh(&engine, &all[..10], KvType::F16).logits().unwrap())
    );
}

#[test]
fn sessions_of_other_models_and_settings_are_refused() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let file = folder.path().join("s.session");
    fresh(&engine, &tokens(10, 1), KvType::F16).save(&file, None).unwrap();
    let refusal = |engine: &Arc<Engine>, context| {
        Session::restore(engine.clone(), &file, context).unwrap_err().to_string()
    };
    assert!(refusal(&tiny(&folder, 6), None).contains("another model than"));
    let open = |options| Engine::open(&folder.path().join("tiny-5.gguf"), &options).unwrap();
    let float = open(RunOptions { arithmetic: Arithmetic::Float, ..two_threads() });
    assert!(refusal(&float, None).contains("without --float") || refusal(&float, None).contains("integer"));
    let other = match engine.model().config().rope_precision {
        yuan::config::RopePrecision::F32 => yuan::config::RopePrecision::HfBf16,
        _ => yuan::config::RopePrecision::F32,
    };
    assert!(refusal(&open(RunOptions { rope: Some(other), ..two_threads() }), None).contains("--rope"));
    assert!(refusal(&engine, Some(9)).contains("the context holds 9 tokens and 10 are asked for"));
    let mut bytes = fs::read(&file).unwrap();
    bytes[8] = 2;
    fs::write(&file, &bytes).unwrap();
    assert!(refusal(&engine, None).contains("version 2 of the format"));
    fs::write(&file, "hello, world").unwrap();
    assert!(refusal(&engine, None).contains("no saved session"));
    assert!(Session::restore(engine.clone(), folder.path(), None).is_err());
}

/// Thousands of damaged files: always an error. And with a digest that fits the damage: an error, or a session that runs.
#[test]
fn damaged_files_are_errors() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let file = folder.path().join("s.session");
    let mut session = Session::new(engine.clone(), 80, KvType::F16).unwrap();
    session.sync(&tokens(70, 1), go).unwrap();
    session.save(&file, Some(&sampler(3))).unwrap();
    let whole = fs::read(&file).unwrap();
    let restore = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        Session::restore(engine.clone(), &file, None)
    };
    for seed in 0..3000 {
        let bytes = mutate(&whole, seed);
        if bytes != whole {
            assert!(restore(&bytes).is_err(), "seed {seed}");
        }
    }
    for end in (0..400).chain((400..whole.len()).step_by(997)) {
        assert!(restore(&whole[..end]).is_err(), "cut at {end}");
    }
    let mut alive = 0;
    for seed in 0..1500 {
        // The first bytes hold all counts: they get most of the wounds.
        let body = &whole[..whole.len() - 32];
        let mut bytes = mutate(if seed % 2 == 0 { &body[..500] } else { body }, seed);
        if seed % 2 == 0 {
            bytes.extend_from_slice(&body[500..]);
        }
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        if let Ok(mut restored) = restore(&bytes) {
            alive += 1;
            let _ = restored.session.sync(&tokens(70, 1)[..66], go);
            let _ = restored.session.generate(&mut sampler(1), &endless(2), |_, _| ControlFlow::Continue(()));
        }
    }
    assert!(alive > 100, "{alive} files with a fitting digest could be read");
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
            let limits = Limits { stop_texts: vec![stop, "never 不曾".into()], ..endless(40) };
            let (found, shown, finish) = run(&limits);
            assert_eq!((shown.as_str(), finish), (&text[..first], Finish::StopText));
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

#[test]
fn a_refused_save_says_what_helps_and_keeps_the_old_file() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let session = fresh(&engine, &tokens(10, 1), KvType::F16);
    let save = |path: &Path| session.save(path, None);
    let nowhere = save(&folder.path().join("no/such/folder/s")).unwrap_err().to_string();
    assert!(nowhere.contains("check the path"), "{nowhere}");
    assert!(save(Path::new("/")).is_err());
    assert!(save(Path::new("")).is_err());
    assert!(save(folder.path()).is_err(), "a folder is in the way");
    let file = folder.path().join("s.session");
    save(&file).unwrap();
    save(&file).unwrap();
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("partial")), "{left:?}");
}
