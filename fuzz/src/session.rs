//! Saved sessions: a file's digest is made right, and so are its first bytes, which name the model. What is restored can go on.

use std::{
    fs,
    ops::ControlFlow,
    sync::{Arc, OnceLock},
};

use yuan::{
    container::Container,
    model::KvType,
    pager::Paging,
    sampler::{Sampler, Settings},
    session::{Engine, Limits, Session, Size},
};

use crate::{Seed, model};

/// Magic, version and fingerprint.
const NAMED: usize = 44;
const CONTEXT: usize = 48;

fn engine() -> &'static Arc<Engine> {
    static ENGINE: OnceLock<Arc<Engine>> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let path = model::folder().join("session.gguf");
        let (config, options) = model::configs().swap_remove(0);
        model::write(&config, &options, &path);
        let container = Container::open(&path).expect("a container");
        Engine::new(container, &model::options(Paging::Auto)).expect("an engine")
    })
}

/// The last byte says how the session is used.
pub fn run(data: &[u8]) {
    let engine = engine();
    let Some((way, data)) = data.split_last() else { return };
    if data.len() < NAMED {
        return;
    }
    let mut file = data.to_vec();
    file[..8].copy_from_slice(b"YUANSESS");
    file[8..12].copy_from_slice(&1_u32.to_le_bytes());
    file[12..NAMED].copy_from_slice(&engine.container().fingerprint().expect("it is whole"));
    file.extend(blake3::hash(&file).as_bytes());
    let path = model::folder().join("session");
    fs::write(&path, &file).expect("room for a small file");
    let _ = Size::of(&path);
    let context = (way & 1 == 0).then_some(CONTEXT + 10);
    let Ok(mut restored) = Session::restore(engine.clone(), &path, context) else { return };
    engine.warm(&restored.hot);
    let tokens = restored.session.tokens().to_vec();
    let keep = tokens.len().saturating_sub(usize::from(way / 4));
    let _ = restored.session.sync(&tokens[..keep], |_| ControlFlow::Continue(()));
    let sampler = restored.sampler.take();
    let mut sampler =
        sampler.unwrap_or_else(|| Sampler::new(Settings::default()).expect("the default settings"));
    let _ = restored.session.generate(&mut sampler, &Limits::tokens(2), |_, _| ControlFlow::Continue(()));
    if let Ok(logits) = restored.session.logits() {
        assert!(logits.iter().all(|logit| logit.is_finite()));
    }
    if way & 2 == 0 {
        restored.session.save(&path, Some(&sampler)).expect("a session can be saved");
        Session::restore(engine.clone(), &path, None).expect("and restored");
    }
}

/// Sessions with a sampler and without, of every kind of keys and values.
pub fn seeds() -> Vec<Seed> {
    let path = model::folder().join("seed");
    let mut seeds = Vec::new();
    for (kv, way) in [(KvType::F16, 0), (KvType::Q8_0, 1), (KvType::Q4_0, 8)] {
        let mut session = Session::new(engine().clone(), CONTEXT, kv).expect("a session");
        session.note = "春".into();
        session.sync(&[1, 5, 2, 9, 4, 4], |_| ControlFlow::Continue(())).expect("a prompt");
        let settings =
            Settings { temperature: 1.0, repeat_penalty: 1.1, seed: Some(3), ..Settings::default() };
        let mut sampler =
            Sampler::new(Settings { logit_bias: vec![(7, 1.0)], ..settings }).expect("settings");
        session
            .generate(&mut sampler, &Limits::tokens(3), |_, _| ControlFlow::Continue(()))
            .expect("an answer");
        session.save(&path, (way != 1).then_some(&sampler)).expect("a file");
        let file = fs::read(&path).expect("what was written just now");
        seeds.push([&file[..file.len() - 32], &[way]].concat());
    }
    seeds
}
