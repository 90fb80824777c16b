//! What the model asks of a GPU's driver: copies that are waited for, memory that is given back, one graph for a token, and failures that
//! leave a usable state.

mod common;
#[path = "common/gpu.rs"]
mod gpu;

use std::{
    sync::{Arc, mpsc},
    thread,
};

use gpu::{BOTH, COPY, base, bits, demo, fake, logits, on_gpu, options, tokens};
use yuan::{
    Error,
    gpu::{
        Choice,
        driver::Stream,
        fake::{Call, Schedule},
    },
    model::{KvType, Model, Options, State, Want},
    quantize::DType,
};

/// A GPU that fails is an error of the call, and is not asked again; one that has no memory at some point leaves the call to the CPU.
#[test]
fn a_call_that_fails_leaves_the_state_as_before() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let cpu = Model::load(&container, &base(KvType::F16)).unwrap();
    let tokens = tokens(14);
    let mut before = State::new(cpu.config(), 64, KvType::F16).unwrap();
    cpu.forward_one(&tokens[..12], &mut before, Want::Nothing).unwrap();
    let next =
        |model: &Model, state: &mut State, t: usize| model.forward_one(&tokens[t..=t], state, Want::All);
    let mut state = before.clone();
    let expected = [12, 13].map(|t| bits(&next(&cpu, &mut state, t).unwrap()));
    // Layer by layer, and as one graph.
    for experts in [6, 64] {
        let load = || {
            let fake = fake(Schedule::Late);
            let options = on_gpu(&container, &fake, experts, BOTH, KvType::F16);
            let model = Model::load(&container, &options).unwrap();
            fake.take_calls();
            (fake, model)
        };
        let (fake, model) = load();
        next(&model, &mut before.clone(), 12).unwrap();
        let calls = fake.take_calls().len();
        assert!(calls > 20, "{calls}");
        // Behind the last call nothing may fail any more.
        let steps = [0, 1, 2, 3, 4, 6, 10, 20].into_iter().chain(calls - 5..calls + 2);
        for step in steps.clone().chain((25..calls).step_by(9)) {
            let mut state = before.clone();
            fake.fail_in(step, true);
            let found = bits(&next(&model, &mut state, 12).unwrap());
            assert!(found == expected[0], "no memory in call {step}, {experts} experts");
            fake.heal();
            assert!(bits(&next(&model, &mut state, 13).unwrap()) == expected[1], "{step}, {experts} experts");
        }
        let mut failed = 0;
        for step in steps {
            let (fake, model) = load();
            let mut state = before.clone();
            fake.fail_in(step, false);
            if let Err(error) = next(&model, &mut state, 12) {
                failed += 1;
                assert!(matches!(error, Error::Gpu { .. }), "{error}");
                assert_eq!(state.position(), 12);
                let calls = fake.take_calls();
                // It is asked nothing more: not even to give memory back.
                assert!(matches!(calls.last(), Some(Call::Failed(_))), "{calls:?}");
                assert!(bits(&next(&model, &mut state, 12).unwrap()) == expected[0], "call {step}");
                assert!(fake.take_calls().is_empty());
            }
            fake.heal();
            assert!(bits(&next(&model, &mut state, 13).unwrap()) == expected[1], "call {step}");
        }
        assert!(failed > 8, "{failed}");
    }
}

#[test]
fn a_gpu_that_fails_while_a_model_is_loaded_is_an_error_or_not_used() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    for step in [0, 1, 5, 40] {
        let fake = fake(Schedule::Early);
        let mut options = on_gpu(&container, &fake, 6, COPY, KvType::F16);
        fake.fail_in(step, false);
        assert!(matches!(Model::load(&container, &options), Err(Error::Gpu { .. })), "call {step}");
        options.gpu.choice = Choice::Auto;
        let model = Model::load(&container, &options).unwrap();
        assert!(model.placement().gpu.room().is_none() && model.gpu_use().is_none());
        model
            .forward_one(&[1, 2], &mut State::new(model.config(), 8, KvType::F16).unwrap(), Want::Last)
            .unwrap();
    }
}

#[test]
fn a_cancelled_call_leaves_the_state_as_before() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let fake = fake(Schedule::Late);
    let model = Model::load(&container, &on_gpu(&container, &fake, 6, BOTH, KvType::F16)).unwrap();
    let (tokens, mut state) = (tokens(12), State::new(model.config(), 64, KvType::F16).unwrap());
    let mut out = model.forward_one(&tokens[..10], &mut state, Want::All).unwrap();
    let running = state.cancel.begin();
    state.cancel.cancel();
    assert!(matches!(model.forward_one(&tokens[10..], &mut state, Want::All), Err(Error::Cancelled)));
    assert_eq!(state.position(), 10);
    drop(running);
    out.extend(model.forward_one(&tokens[10..], &mut state, Want::All).unwrap());
    let cpu = Model::load(&container, &base(KvType::F16)).unwrap();
    assert!(bits(&out) == logits(&cpu, &tokens, 12, KvType::F16));
}

/// Before experts are computed that were copied, the stream of kernels waits for the stream of copies.
#[test]
fn copies_are_waited_for_and_memory_is_given_back() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let fake = fake(Schedule::Late);
    let model = Model::load(&container, &on_gpu(&container, &fake, 6, COPY, KvType::F16)).unwrap();
    fake.take_calls();
    logits(&model, &tokens(14), 12, KvType::F16);
    let calls = fake.take_calls();
    let (mut on_their_way, mut recorded, mut waits) = (false, None, 0);
    for call in &calls {
        match call {
            Call::Upload { stream: Stream::Copy, .. } => (on_their_way, recorded) = (true, None),
            Call::Record(event, Stream::Copy) => recorded = Some(*event),
            Call::Wait(Stream::Compute, event) if Some(*event) == recorded => {
                (on_their_way, waits) = (false, waits + 1);
            }
            Call::Launch { kernel } if kernel.starts_with("expert_") => assert!(!on_their_way),
            _ => {}
        }
    }
    assert!(waits > 10, "{waits}");
    // The pages of a session that is gone wait for the next one, and all go with the model.
    assert!(!calls.iter().any(|c| matches!(c, Call::Free { .. })) && fake.held().0 > 0);
    drop(model);
    assert_eq!(fake.held(), (0, 0, 0));
}

/// Where all experts are there, a token's layers are one graph: of the spans that attention goes over, and of the memory that calls use, which a
/// long prompt replaces. Sessions share it.
#[test]
fn a_token_is_one_graph_where_all_experts_are_there() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let cpu = Model::load(&container, &base(KvType::F16)).unwrap();
    let fake = fake(Schedule::Late);
    // Two pages of keys and values.
    let longer = Options { context: 1024, ..base(KvType::F16) };
    let model = Model::load(&container, &options(&container, &fake, 64, COPY, longer)).unwrap();
    let all = tokens(530);
    // The CPU goes ahead to just before the second span of 512 positions.
    let ahead = |n: usize| {
        let mut state = State::new(model.config(), 600, KvType::F16).unwrap();
        cpu.forward_one(&all[..n], &mut state, Want::Nothing).unwrap();
        state
    };
    let prepared = |calls: &[Call]| calls.iter().filter(|c| matches!(c, Call::Prepare(_))).count();
    let (mut first, mut second) = (ahead(509), ahead(3));
    let mut expected = first.clone();
    for (i, token) in all[509..515].iter().enumerate() {
        fake.take_calls();
        let found = model.forward_one(&[*token], &mut first, Want::Last).unwrap();
        assert!(bits(&found) == bits(&cpu.forward_one(&[*token], &mut expected, Want::Last).unwrap()), "{i}");
        let calls = fake.take_calls();
        // At first, and for position 512.
        assert_eq!(prepared(&calls), usize::from([0, 3].contains(&i)), "{i}");
        assert_eq!(calls.iter().filter(|c| matches!(c, Call::QueuePrepared(_))).count(), 1);
        let kernels = calls.iter().filter(|c| matches!(c, Call::Launch { .. })).count();
        assert_eq!(kernels, 2, "the last norm and the head");
        model.forward_one(&all[i..=i], &mut second, Want::Last).unwrap();
    }
    // The other session has the first one's graph.
    assert_eq!(prepared(&fake.take_calls()), 0);
    // A prompt that needs more memory, and back.
    let mut third = State::new(model.config(), 600, KvType::F16).unwrap();
    model.forward_one(&all[..model.placement().batch + 1], &mut third, Want::Nothing).unwrap();
    fake.take_calls();
    let found = model.forward_one(&all[515..516], &mut first, Want::Last).unwrap();
    assert!(bits(&found) == bits(&cpu.forward_one(&all[515..516], &mut expected, Want::Last).unwrap()));
    assert_eq!(prepared(&fake.take_calls()), 1);
    // Back in the first span.
    let place = first.rewind(500);
    assert_eq!(place, expected.rewind(500));
    let found = model.forward_one(&all[place..=place], &mut first, Want::Last).unwrap();
    assert!(bits(&found) == bits(&cpu.forward_one(&all[place..=place], &mut expected, Want::Last).unwrap()));
    assert_eq!(prepared(&fake.take_calls()), 1);
    drop((first, second, third));
    drop(model);
    assert_eq!(fake.held(), (0, 0, 0));
}

/// Calls take turns; sessions begin and end whenever they do, beside calls of others.
#[test]
fn threads_share_a_gpu() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let fake = fake(Schedule::Late);
    let model = Model::load(&container, &on_gpu(&container, &fake, 10, BOTH, KvType::F16)).unwrap();
    let cpu = Model::load(&container, &base(KvType::F16)).unwrap();
    let expected = [9, 10, 11].map(|n| logits(&cpu, &tokens(n), n - 2, KvType::F16));
    thread::scope(|scope| {
        for (n, expected) in (9..).zip(&expected) {
            let model = &model;
            scope.spawn(move || {
                assert!(logits(model, &tokens(n), n - 2, KvType::F16) == *expected, "{n} tokens");
                for _ in 0..4 {
                    assert!(
                        logits(model, &tokens(1), 1, KvType::F16) == expected[..model.config().vocab],
                        "{n}"
                    );
                }
            });
        }
    });
}

/// Figures are asked for by other threads, beside a prompt that takes its time.
#[test]
fn figures_do_not_wait_for_a_call() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let fake = fake(Schedule::Late);
    let model = Arc::new(Model::load(&container, &on_gpu(&container, &fake, 6, COPY, KvType::F16)).unwrap());
    let (asked, told) = mpsc::channel();
    let beside = model.clone();
    fake.within_next_call(move || {
        // In the middle of a call: who waited here for its end would wait for ever.
        let _ = asked.send(beside.gpu_use());
    });
    let mut state = State::new(model.config(), 64, KvType::F16).unwrap();
    model.forward_one(&tokens(12), &mut state, Want::Last).unwrap();
    assert!(told.recv().unwrap().is_some());
    assert_eq!(state.position(), 12);
}

/// Readers that do not wait for a call hear which experts are there, and of none any more when the GPU has failed.
#[test]
fn what_is_told_to_be_on_the_gpu_is_there() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let fake = fake(Schedule::Late);
    let count = |model: &Model| model.experts_on_gpu().iter().filter(|there| **there).count();
    let model = Model::load(&container, &on_gpu(&container, &fake, 6, COPY, KvType::F16)).unwrap();
    assert_eq!(count(&model), 0);
    let (tokens, mut state) = (tokens(12), State::new(model.config(), 64, KvType::F16).unwrap());
    model.forward_one(&tokens, &mut state, Want::All).unwrap();
    // Those of a request that leave give their slots back.
    assert!((1..=6).contains(&count(&model)), "{}", count(&model));
    let all = Model::load(&container, &on_gpu(&container, &fake, 64, COPY, KvType::F16)).unwrap();
    assert_eq!(count(&all), 64);
    let cpu = Model::load(&container, &base(KvType::F16)).unwrap();
    assert!(cpu.experts_on_gpu().is_empty());
}
