//! What is told of the experts: how many tokens chose each, and where each is.

mod common;

use std::{ops::ControlFlow, sync::Arc};

use common::paging::{config, container, keeping_for, options, tokens};
use yuan::{
    container::Container,
    model::{KvType, Options},
    pager::Paging,
    session::{Engine, Experts, Place, Session},
};

const KEPT: u64 = 5;

/// Runs 23 tokens in a session of its own, a prompt and then one by one, and shows what is told behind each call.
fn run(engine: &Arc<Engine>, mut show: impl FnMut(Experts)) {
    let mut session = Session::new(engine.clone(), 100, KvType::F16).unwrap();
    let tokens = tokens(23);
    for end in 20..=tokens.len() {
        session.sync(&tokens[..end], |_| ControlFlow::Continue(())).unwrap();
        show(engine.experts());
    }
}

fn count(experts: &Experts, place: Place) -> usize {
    experts.places.iter().filter(|p| **p == place).count()
}

fn engine(container: &Container, options: &Options) -> Arc<Engine> {
    Engine::new(Container::open(container.path()).unwrap(), options).unwrap()
}

#[test]
fn every_token_counts_for_as_many_experts_of_each_layer_as_it_chooses() {
    let folder = common::folder();
    let container = container(&folder);
    let config = config();
    let ways = [
        options(Paging::Plain),
        options(Paging::Mapped),
        keeping_for(&container, KEPT, 200),
        keeping_for(&container, 0, 200),
    ];
    for options in ways {
        let engine = engine(&container, &options);
        let before = engine.experts();
        assert_eq!((before.layers, before.per_layer), (config.layers, config.experts));
        assert_eq!(before.per_token, config.experts_used);
        assert_eq!(before.chosen, vec![0; config.layers * config.experts]);
        let mut last = before.chosen;
        run(&engine, |experts| {
            let tokens = engine.counts().tokens;
            for layer in experts.chosen.chunks(experts.per_layer) {
                assert_eq!(layer.iter().sum::<u64>(), tokens * config.experts_used as u64);
            }
            assert!(experts.chosen.iter().zip(&last).all(|(new, old)| new >= old));
            assert!(experts.chosen != last);
            last = experts.chosen;
        });
        assert_eq!(engine.counts().tokens, 23);
    }
}

#[test]
fn an_expert_is_where_it_is_said_to_be() {
    let folder = common::folder();
    let container = container(&folder);
    let all = config().layers * config().experts;

    let plain = engine(&container, &options(Paging::Plain));
    assert_eq!(count(&plain.experts(), Place::Memory), all);

    let mapped = engine(&container, &options(Paging::Mapped));
    run(&mapped, |experts| {
        for (chosen, place) in experts.chosen.iter().zip(&experts.places) {
            assert!(*chosen == 0 || *place == Place::Memory, "what was chosen was brought in");
        }
    });
    // The file was just written, so the system has all of it in memory, and its pages are entered in the background.
    if cfg!(target_os = "linux") {
        while count(&mapped.experts(), Place::Memory) < all {
            std::thread::yield_now();
        }
    }

    let streamed = engine(&container, &keeping_for(&container, KEPT, 200));
    assert_eq!(count(&streamed.experts(), Place::Drive), all);
    run(&streamed, |experts| {
        let hot = streamed.model().pager().hot();
        for (at, place) in experts.places.iter().enumerate() {
            let kept = hot.contains(&(at / experts.per_layer, at % experts.per_layer));
            assert_eq!(kept, *place == Place::Memory);
        }
        assert_eq!(count(&experts, Place::Memory), KEPT as usize);
    });
}

#[test]
fn asking_does_not_change_what_passes_do() {
    let folder = common::folder();
    let container = container(&folder);
    let alone = engine(&container, &keeping_for(&container, KEPT, 200));
    run(&alone, drop);
    let asked = engine(&container, &keeping_for(&container, KEPT, 200));
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&asked, drop));
        while !running.is_finished() {
            assert!(count(&asked.experts(), Place::Memory) <= KEPT as usize);
        }
    });
    assert_eq!(asked.model().pager().usage().prefill, alone.model().pager().usage().prefill);
    assert_eq!(asked.model().pager().usage().decode, alone.model().pager().usage().decode);
    assert_eq!(asked.experts(), alone.experts());
}
