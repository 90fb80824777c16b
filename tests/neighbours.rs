//! A sequence does not notice its neighbours: in a pass with any others it gets the bits that it gets alone.

mod common;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use common::{
    paging::{Fault, container, faulty, hash, keeping, options, resident},
    schedule::{Alone, Schedules, seeds},
};
use yuan::{
    container::Container,
    model::{BATCH, KvType, Model, Options, Sequence, State, Want},
    pager::Paging,
};

const SEQUENCES: &[usize] = &[1, 2, 7, 33];

fn alone(container: &Container) -> Alone {
    Alone::new(&resident(container), &KvType::SAMPLES)
}

#[test]
fn a_sequence_does_not_notice_its_neighbours() {
    let folder = common::folder();
    let container = container(&folder);
    let alone = alone(&container);
    for (i, threads) in [1, 2, 3, 16, 33].into_iter().enumerate() {
        let mapped = Model::load(&container, &Options { threads, ..options(Paging::Mapped) }).unwrap();
        let streamed = Model::load(&container, &Options { threads, ..keeping(&container, 3) }).unwrap();
        let schedules = Schedules::new(SEQUENCES, false);
        for seed in seeds(16) {
            alone.check([&mapped, &streamed][seed as usize % 2], seed * 5 + i as u64, &schedules);
        }
        schedules.tell(&format!("{threads} threads"));
        assert!(
            schedules.done.load(Relaxed) > 100 && schedules.cancelled.load(Relaxed) > 0,
            "{threads} threads"
        );
    }
}

#[test]
fn an_expert_that_cannot_be_read_fails_those_that_it_was_for() {
    let folder = common::folder();
    let container = container(&folder);
    let alone = alone(&container);
    for threads in [1, 2, 16] {
        let reads = Arc::new(AtomicU64::new(0));
        let plan = move |_, offset: u64| {
            let n = reads.fetch_add(1, Relaxed);
            match hash(offset ^ (n / 64)) % 60 {
                0 => Fault::Error(io::ErrorKind::Other),
                _ => Fault::None,
            }
        };
        let options = Options { threads, ..keeping(&container, 3) };
        let model = Model::load_with(&container, &options, &|file| faulty(file, plan.clone())).unwrap();
        let schedules = Schedules::new(SEQUENCES, true);
        seeds(20).for_each(|seed| alone.check(&model, seed, &schedules));
        schedules.tell(&format!("{threads} threads, a drive that fails"));
        let (failed, done) = (schedules.failed.load(Relaxed), schedules.done.load(Relaxed));
        assert!(failed > 10 && done > 100, "{failed} failed and {done} did not");
    }
}

/// The memory of passes does not grow with threads, nor with passes.
#[test]
fn intermediate_results_stay_within_the_budget() {
    let folder = common::folder();
    let container = container(&folder);
    for threads in [1, 2, 16, 64] {
        let model = Model::load(&container, &Options { threads, ..options(Paging::Mapped) }).unwrap();
        let tokens = common::paging::tokens(BATCH);
        for n in [BATCH, 1, 33, 300, 2, BATCH] {
            let mut states: Vec<_> =
                (0..3).map(|_| State::new(model.config(), BATCH, KvType::F16).unwrap()).collect();
            let parts = states.iter_mut().enumerate().map(|(i, state)| Sequence {
                tokens: &tokens[..(n / 3).max(1).min(BATCH - i)],
                drafted: 0,
                state,
                want: Want::Last,
            });
            let results = model.forward(&mut parts.collect::<Vec<_>>());
            assert!(results.iter().all(Result::is_ok));
        }
        let mut state = State::new(model.config(), BATCH, KvType::F16).unwrap();
        model.forward_one(&tokens, &mut state, Want::Nothing).unwrap();
        let (held, room) = (model.most_scratch() as u64, model.placement().scratch);
        assert!(held > 0 && held <= room, "{held} bytes of {room} with {threads} threads");
    }
}
