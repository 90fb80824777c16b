//! Sessions for tests: engines, timelines, answers.

use std::{ops::ControlFlow, sync::Arc};

use yuan::{
    model::{KvType, Options as RunOptions},
    pager::Mode,
    quantize::{Options, synth},
    sampler::{Sampler, Settings},
    session::{Engine, Finish, Limits, Session},
};

use super::mutate::Random;

pub fn go(_: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A small random model.
pub fn tiny(folder: &tempfile::TempDir, seed: u64) -> Arc<Engine> {
    let path = folder.path().join(format!("tiny-{seed}.gguf"));
    Engine::new(super::synth(synth::tiny(), &Options::default(), seed, &path), &two_threads()).unwrap()
}

pub fn two_threads() -> RunOptions {
    RunOptions { threads: 2, ..RunOptions::default() }
}

/// The demo model, 16 million weights.
pub fn demo(folder: &tempfile::TempDir) -> Arc<Engine> {
    let path = folder.path().join("demo.gguf");
    Engine::new(super::convert(&super::demo(), &Options::default(), &path), &two_threads()).unwrap()
}

/// The same with 8 of its 64 experts in memory.
pub fn streamed(engine: &Engine) -> Arc<Engine> {
    let options = super::paging::keeping(engine.container(), 8);
    let engine = Engine::open(engine.container().path(), &options).unwrap();
    assert_eq!(engine.model().pager().mode(), Mode::Streamed);
    engine
}

pub fn tokens(n: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..n).map(|_| random.below(512) as u32).collect()
}

pub fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|l| l.to_bits()).collect()
}

pub fn fresh(engine: &Arc<Engine>, tokens: &[u32], kv: KvType) -> Session {
    let mut session = Session::new(engine.clone(), tokens.len() + 1, kv).unwrap();
    session.sync(tokens, go).unwrap();
    session
}

pub fn sampler(seed: u64) -> Sampler {
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
pub fn answer(session: &mut Session, sampler: &mut Sampler, limits: &Limits) -> (Vec<u32>, String, Finish) {
    let (mut tokens, mut text) = (Vec::new(), String::new());
    let finish = session.generate(sampler, limits, |token, piece| {
        tokens.extend(token);
        text.push_str(piece);
        ControlFlow::Continue(())
    });
    (tokens, text, finish.unwrap())
}

pub fn endless(most: usize) -> Limits {
    Limits { ignore_eod: true, ..Limits::tokens(most) }
}
