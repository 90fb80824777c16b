//! Saved sessions: they go on as if they had never stopped, and nothing in a file is trusted.

mod common;

use std::{fs, ops::ControlFlow, path::Path, sync::Arc};

use common::{
    mutate::{Random, mutate},
    sessions::*,
};
use yuan::{
    Error,
    machine::budget::Limit,
    model::{Arithmetic, KvType, Options as RunOptions},
    pager::Settings as PagingSettings,
    session::{Engine, Session, Size, Synced},
    tokenizer::Special,
};

/// Saved at a random point, dropped, read back: the answer is that of a session that was never stopped.
#[test]
fn restored_equals_never_stopped() {
    let folder = common::folder();
    let mapped = demo(&folder);
    let engines = [streamed(&mapped), mapped];
    let file = folder.path().join("s.session");
    let mut random = Random::new(23);
    for (kv, engine) in KvType::SAMPLES.into_iter().flat_map(|kv| engines.iter().map(move |e| (kv, e))) {
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
                let (mut found, shown, _) = answer(&mut session, &mut choices, &endless(cut));
                session.save(&file, Some(&choices)).unwrap();
                drop((session, choices));
                let restored = Session::restore(engine.clone(), &file, None).unwrap();
                let (mut session, mut choices) = (restored.session, restored.sampler.unwrap());
                let rest = answer(&mut session, &mut choices, &endless(most - cut));
                found.extend(rest.0);
                assert_eq!(found, whole, "{kv:?}, cut at {cut}");
                // A character that was cut in two is shown as broken at the cut, and then whole.
                let broken = shown.chars().rev().take_while(|c| *c == char::REPLACEMENT_CHARACTER).count();
                let sound = |n: usize| &shown[..shown.len() - n * char::REPLACEMENT_CHARACTER.len_utf8()];
                let joined = (0..=broken.min(3)).map(|n| sound(n).to_owned() + &rest.1);
                assert!(joined.into_iter().any(|all| all == text), "{shown} {} and {text}", rest.1);
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
    assert_eq!(session.sync(&all[..130], go).unwrap(), Synced { reused: 128, shared: 0, computed: 2 });
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

/// A saved session with another number at this place of its header, and the digest of that.
fn with_field(from: &Path, to: &Path, at: usize, before: u32, number: u32) {
    let mut bytes = fs::read(from).unwrap();
    assert_eq!(bytes[at..at + 4], before.to_le_bytes());
    bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
    let end = bytes.len() - 32;
    let digest = blake3::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(digest.as_bytes());
    fs::write(to, &bytes).unwrap();
}

/// What version 1 of the arithmetic computed is not taken for what this one computes.
#[test]
fn sessions_of_the_arithmetic_of_before_are_refused() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let file = folder.path().join("s.session");
    fresh(&engine, &tokens(10, 1), KvType::F16).save(&file, None).unwrap();
    for (version, says) in [(0, "version 1 of the arithmetic"), (3, "version 3 of the arithmetic")] {
        // The products stand behind the magic, the version, the fingerprint and the types of keys and values.
        let old = folder.path().join("old.session");
        with_field(&file, &old, 48, 2, version);
        let refused = Session::restore(engine.clone(), &old, None).unwrap_err();
        assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");
        assert!(refused.to_string().contains(says), "{refused}");
    }
}

/// Keys that were stored before they were rotated are not taken for rotated ones.
#[test]
fn sessions_in_q4_0_of_before_the_rotation_are_refused() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let file = folder.path().join("s.session");
    fresh(&engine, &tokens(10, 1), KvType::Q4_0).save(&file, None).unwrap();
    // The type stands behind the magic, the version and the fingerprint.
    with_field(&file, &file, 44, 4, 3);
    let refused = Session::restore(engine, &file, None).unwrap_err();
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");
    assert!(refused.to_string().contains("before keys were rotated"), "{refused}");
}

/// A header may ask for room that nobody has: it is refused before a byte of it is taken, with the file's name and the remedy.
#[test]
fn a_file_gets_no_more_memory_than_the_model_may_take() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let file = folder.path().join("s.session");
    fresh(&engine, &tokens(10, 1), KvType::F16).save(&file, None).unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let mut ask = |room: u64| {
        // The room stands behind the magic, the version, the fingerprint and seven words.
        bytes[72..80].copy_from_slice(&room.to_le_bytes());
        let end = bytes.len() - 32;
        let digest = blake3::hash(&bytes[..end]);
        bytes[end..].copy_from_slice(digest.as_bytes());
        fs::write(&file, &bytes).unwrap();
    };
    let paging = PagingSettings { memory: Some(Limit::Bytes(1_000_000_000)), ..Default::default() };
    let engine = Engine::open(engine.container().path(), &RunOptions { paging, ..two_threads() }).unwrap();
    ask(1 << 24);
    let refused = Session::restore(engine.clone(), &file, None).unwrap_err();
    assert!(matches!(refused, Error::Memory(_)), "{refused}");
    for part in ["s.session", "room for 16777216 tokens", "holds 10", "a context of your own"] {
        assert!(refused.to_string().contains(part), "no {part} in {refused}");
    }
    let restored = Session::restore(engine.clone(), &file, Some(20)).unwrap();
    assert_eq!((restored.session.position(), restored.session.capacity()), (10, 20));
    for room in [(1 << 24) + 1, 1 << 50, u64::MAX] {
        ask(room);
        let refused = [Session::restore(engine.clone(), &file, Some(20)).err(), Size::of(&file).err()];
        refused.iter().for_each(|e| assert!(matches!(e, Some(Error::BadFile { .. })), "{e:?}"));
    }
    ask(100);
    assert_eq!(Size::of(&file).unwrap(), Size { tokens: 10, room: 100 });
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
