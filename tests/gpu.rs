//! The model on an emulated GPU: the CPU's bits wherever experts are, the same sessions, copies that are waited for, and failures that
//! leave a usable state.

mod common;
#[path = "common/gpu.rs"]
mod gpu;

use std::{ops::ControlFlow, sync::Arc, thread};

use gpu::{BOTH, COPY, NEVER, fake, options};
use yuan::{
    Error,
    config::RopePrecision,
    container::Container,
    gpu::{
        Choice, Costs,
        driver::Stream,
        fake::{Call, Fake, Schedule},
    },
    model::{KvType, Model, Options, Placement, State, Want},
    quantize::{self, DType},
    sampler::{Sampler, Settings},
    session::{Engine, Limits, Session},
    tokenizer::Special,
};

fn go(_: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn demo(folder: &tempfile::TempDir, experts: DType) -> Container {
    with_trunk(folder, experts, DType::Q8_0)
}

fn with_trunk(folder: &tempfile::TempDir, experts: DType, dense: DType) -> Container {
    let options = quantize::Options { experts, dense, rope: Some(RopePrecision::F32), rope_base: None };
    common::convert(&common::demo(), &options, &folder.path().join("demo.gguf"))
}

fn base(kv: KvType) -> Options {
    Options { threads: 2, context: 256, kv, ..Options::default() }
}

/// On a GPU with room for `experts` of 64.
fn on_gpu(container: &Container, fake: &Fake, experts: u64, costs: Costs, kv: KvType) -> Options {
    options(container, fake, experts, costs, base(kv))
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i * 31 + i * 7 + 300) % 4000).collect()
}

/// Bits of all logits: a prompt of `prompt` tokens, then one by one.
fn logits(model: &Model, tokens: &[u32], prompt: usize, kv: KvType) -> Vec<u32> {
    let mut state = State::new(model.config(), 256, kv).unwrap();
    let mut out = model.forward(&tokens[..prompt], &mut state, Want::All).unwrap();
    for token in &tokens[prompt..] {
        out.extend(model.forward(&[*token], &mut state, Want::All).unwrap());
    }
    bits(&out)
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|l| l.to_bits()).collect()
}

fn answer(session: &mut Session, most: usize) -> String {
    let mut sampler = Sampler::new(Settings { temperature: 0.0, ..Settings::default() }).unwrap();
    let mut text = String::new();
    let limits = Limits { ignore_eod: true, ..Limits::tokens(most) };
    let finish = session.generate(&mut sampler, &limits, |_, piece| {
        text.push_str(piece);
        ControlFlow::Continue(())
    });
    finish.unwrap();
    text
}

/// All experts there, some, and none; what is not there copied, computed on the CPU, or both.
const PLACEMENTS: [(u64, Costs, Schedule); 5] = [
    (64, COPY, Schedule::Early),
    (9, COPY, Schedule::Late),
    (9, BOTH, Schedule::Early),
    (2, COPY, Schedule::Late),
    (0, NEVER, Schedule::Late),
];

#[test]
fn logits_are_those_of_the_cpu_wherever_experts_are() {
    for (dtype, kv) in [(DType::Q4_K, KvType::F16), (DType::Q4_0, KvType::Q8_0)] {
        let folder = common::folder();
        let container = demo(&folder, dtype);
        let cpu = Model::load(&container, &base(kv)).unwrap();
        for (experts, costs, schedule) in PLACEMENTS {
            let fake = fake(schedule);
            let model = Model::load(&container, &on_gpu(&container, &fake, experts, costs, kv)).unwrap();
            for (n, prompt) in [(3, 1), (10, 8), (42, 40)] {
                let tokens = tokens(n);
                let (found, expected) =
                    (logits(&model, &tokens, prompt, kv), logits(&cpu, &tokens, prompt, kv));
                assert!(found == expected, "{dtype:?}, {kv:?}, {experts} experts, prompt of {prompt}");
            }
            let hidden = |model: &Model| {
                let mut state = State::new(model.config(), 64, kv).unwrap();
                let hidden = model.forward(&tokens(20), &mut state, Want::Hidden).unwrap();
                assert_eq!(hidden[hidden.len() - model.config().hidden..], *state.hidden());
                (bits(&hidden), bits(&model.logits(&hidden).unwrap()))
            };
            assert!(hidden(&model) == hidden(&cpu), "{experts} experts");
            let used = model.gpu_use().unwrap();
            assert_eq!(used.there > 0, experts > 2, "{used:?}");
            assert_eq!(used.copied > 0, experts > 0, "{used:?}");
            assert_eq!(used.on_cpu > 0, costs != COPY, "{used:?}");
            assert!(fake.take_calls().contains(&Call::Launch { kernel: "combine" }));
        }
    }
}

#[test]
fn trunks_of_every_type_give_the_same_bits() {
    for dense in [DType::Q6_K, DType::Q4_K, DType::F16] {
        let folder = common::folder();
        let container = with_trunk(&folder, DType::Q4_K, dense);
        let fake = fake(Schedule::Early);
        let on_gpu = on_gpu(&container, &fake, 64, COPY, KvType::F16);
        let [found, expected] = [on_gpu, base(KvType::F16)].map(|options| {
            let model = Model::load(&container, &options).unwrap();
            logits(&model, &tokens(11), 9, KvType::F16)
        });
        assert!(found == expected, "{dense:?}");
        let one = format!("product_{}{}", dense.name(), if dense.is_quantized() { "_1" } else { "" });
        let kernels = |call: &Call| matches!(call, Call::Launch { kernel } if *kernel == one);
        assert!(fake.take_calls().iter().any(kernels), "{one}");
    }
}

#[test]
fn text_is_that_of_the_cpu_in_english_and_chinese() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let path = container.path().to_owned();
    for kv in [KvType::F16, KvType::Q8_0] {
        let fake = fake(Schedule::Late);
        let options = on_gpu(&container, &fake, 12, BOTH, kv);
        let engines = [base(kv), options].map(|options| Engine::open(&path, &options).unwrap());
        for prompt in ["Isaiah 45:11-16<sep>Thus saith the LORD", "十五夜观灯 王维<sep>"] {
            let texts = engines.each_ref().map(|engine| {
                let prompt = engine.tokenizer().encode(prompt, Special::Parse);
                let mut session = Session::new(engine.clone(), 100, kv).unwrap();
                session.sync(&prompt, go).unwrap();
                answer(&mut session, 16)
            });
            assert_eq!(texts[0], texts[1], "{prompt}, {kv:?}");
            assert!(!texts[0].is_empty());
        }
    }
}

/// Streamed experts go from the drive to memory and from there to the GPU.
#[test]
fn three_tiers_give_the_same_bits() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let expected =
        logits(&Model::load(&container, &base(KvType::F16)).unwrap(), &tokens(23), 20, KvType::F16);
    for costs in [COPY, BOTH, NEVER] {
        let fake = fake(Schedule::Late);
        let streamed = Options { context: 256, ..common::paging::keeping(&container, 12) };
        let model = Model::load(&container, &options(&container, &fake, 10, costs, streamed)).unwrap();
        assert_eq!(model.pager().mode(), yuan::pager::Mode::Streamed);
        assert!(logits(&model, &tokens(23), 20, KvType::F16) == expected, "{costs:?}");
    }
}

#[test]
fn sessions_are_rewound_saved_restored_and_enlarged_as_on_the_cpu() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let path = container.path().to_owned();
    let file = folder.path().join("s.session");
    let fake = fake(Schedule::Late);
    let options = on_gpu(&container, &fake, 12, BOTH, KvType::Q8_0);
    let [cpu, gpu] = [base(KvType::Q8_0), options].map(|options| Engine::open(&path, &options).unwrap());
    let all = tokens(150);
    let fresh = |engine: &Arc<Engine>, tokens: &[u32]| {
        let mut session = Session::new(engine.clone(), 200, KvType::Q8_0).unwrap();
        session.sync(tokens, go).unwrap();
        bits(session.logits().unwrap())
    };
    let mut session = Session::new(gpu.clone(), 150, KvType::Q8_0).unwrap();
    session.sync(&all[..140], go).unwrap();
    // Back behind a snapshot, and on with other tokens.
    let other = [&all[..70], &all[100..130]].concat();
    session.sync(&other, go).unwrap();
    assert!(bits(session.logits().unwrap()) == fresh(&cpu, &other), "rewound");
    session.reserve(180).unwrap();
    let longer = [&other[..], &all[..5]].concat();
    session.sync(&longer, go).unwrap();
    assert!(bits(session.logits().unwrap()) == fresh(&cpu, &longer), "enlarged");
    session.save(&file, None).unwrap();
    drop(session);
    // What a GPU has saved goes on there and on the CPU.
    let longest = [&longer[..], &all[20..23]].concat();
    for engine in [&gpu, &cpu] {
        let mut session = Session::restore(engine.clone(), &file, None).unwrap().session;
        assert_eq!(session.tokens(), longer);
        session.sync(&longest, go).unwrap();
        assert!(bits(session.logits().unwrap()) == fresh(&cpu, &longest), "restored");
    }
}

#[test]
fn a_state_goes_from_the_gpu_to_the_cpu_and_back() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let cpu = Model::load(&container, &base(KvType::F16)).unwrap();
    let fake = fake(Schedule::Late);
    let gpu = Model::load(&container, &on_gpu(&container, &fake, 64, COPY, KvType::F16)).unwrap();
    let (tokens, mut out) = (tokens(20), Vec::new());
    let mut state = State::new(cpu.config(), 64, KvType::F16).unwrap();
    for (i, piece) in tokens.chunks(3).enumerate() {
        out.extend([&gpu, &cpu][i % 2].forward(piece, &mut state, Want::All).unwrap());
    }
    let mut copy = state.clone();
    assert!(bits(&out) == logits(&cpu, &tokens, 20, KvType::F16));
    let next = [&mut state, &mut copy].map(|s| bits(&gpu.forward(&[7], s, Want::Last).unwrap()));
    assert!(next[0] == next[1]);
}

#[test]
fn a_call_that_fails_leaves_the_state_as_before() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let cpu = Model::load(&container, &base(KvType::F16)).unwrap();
    let tokens = tokens(14);
    let expected = logits(&cpu, &tokens, 12, KvType::F16);
    let mut failed = 0;
    // Layer by layer, and as one graph.
    let some = [0, 1, 7, 30, 60, 90, 110, 140, 170].map(|step| (6, step));
    let all = [0, 1, 2, 3, 4, 6, 8, 10].map(|step| (64, step));
    for (experts, step) in some.into_iter().chain(all) {
        for no_memory in [true, false] {
            let fake = fake(Schedule::Late);
            let options = on_gpu(&container, &fake, experts, BOTH, KvType::F16);
            let model = Model::load(&container, &options).unwrap();
            let mut state = State::new(model.config(), 64, KvType::F16).unwrap();
            let mut out = model.forward(&tokens[..12], &mut state, Want::All).unwrap();
            fake.take_calls();
            fake.fail_in(step, no_memory);
            match model.forward(&tokens[12..13], &mut state, Want::All) {
                Ok(logits) => out.extend(logits),
                Err(error) => {
                    failed += 1;
                    assert_eq!(matches!(error, Error::Memory(_)), no_memory, "{error}");
                    assert!(no_memory || matches!(error, Error::Gpu { .. }), "{error}");
                    assert_eq!(state.position(), 12);
                    let calls = fake.take_calls();
                    // A GPU that has failed is asked nothing more: not even to give memory back.
                    assert!(no_memory || matches!(calls.last(), Some(Call::Failed(_))), "{calls:?}");
                    out.extend(model.forward(&tokens[12..13], &mut state, Want::All).unwrap());
                    assert_eq!(fake.take_calls().is_empty(), !no_memory);
                }
            }
            fake.heal();
            out.extend(model.forward(&tokens[13..], &mut state, Want::All).unwrap());
            assert!(bits(&out) == expected, "call {step} failed, {experts} experts, {no_memory}");
        }
    }
    assert!(failed >= 24, "{failed}");
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
        model.forward(&[1, 2], &mut State::new(model.config(), 8, KvType::F16).unwrap(), Want::Last).unwrap();
    }
}

#[test]
fn a_cancelled_call_leaves_the_state_as_before() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let fake = fake(Schedule::Late);
    let model = Model::load(&container, &on_gpu(&container, &fake, 6, BOTH, KvType::F16)).unwrap();
    let (tokens, mut state) = (tokens(12), State::new(model.config(), 64, KvType::F16).unwrap());
    let mut out = model.forward(&tokens[..10], &mut state, Want::All).unwrap();
    state.cancel.cancel();
    assert!(matches!(model.forward(&tokens[10..], &mut state, Want::All), Err(Error::Cancelled)));
    assert_eq!(state.position(), 10);
    state.cancel.clear();
    out.extend(model.forward(&tokens[10..], &mut state, Want::All).unwrap());
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
    assert!(!calls.iter().any(|c| matches!(c, Call::Free { .. })) || fake.held().0 > 0);
    drop(model);
    assert_eq!(fake.held(), (0, 0, 0));
}

/// Where all experts are there, a token's layers are one graph: of its session, of the spans that attention goes over, and of the memory
/// that calls use, which a long prompt replaces.
#[test]
fn a_token_is_one_graph_where_all_experts_are_there() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let cpu = Model::load(&container, &base(KvType::F16)).unwrap();
    let fake = fake(Schedule::Late);
    let model = Model::load(&container, &on_gpu(&container, &fake, 64, COPY, KvType::F16)).unwrap();
    let all = tokens(530);
    // The CPU goes ahead to just before the second span of 512 positions.
    let ahead = |n: usize| {
        let mut state = State::new(model.config(), 600, KvType::F16).unwrap();
        cpu.forward(&all[..n], &mut state, Want::Nothing).unwrap();
        state
    };
    let prepared = |calls: &[Call]| calls.iter().filter(|c| matches!(c, Call::Prepare(_))).count();
    let (mut first, mut second) = (ahead(509), ahead(3));
    let mut expected = first.clone();
    for (i, token) in all[509..515].iter().enumerate() {
        fake.take_calls();
        let found = model.forward(&[*token], &mut first, Want::Last).unwrap();
        assert!(bits(&found) == bits(&cpu.forward(&[*token], &mut expected, Want::Last).unwrap()), "{i}");
        let calls = fake.take_calls();
        // At first, and for position 512.
        assert_eq!(prepared(&calls), usize::from([0, 3].contains(&i)), "{i}");
        assert_eq!(calls.iter().filter(|c| matches!(c, Call::QueuePrepared(_))).count(), 1);
        let kernels = calls.iter().filter(|c| matches!(c, Call::Launch { .. })).count();
        assert_eq!(kernels, 2, "the last norm and the head");
        model.forward(&all[i..=i], &mut second, Want::Last).unwrap();
    }
    // The other session has a graph of its own.
    assert_eq!(prepared(&fake.take_calls()), 0);
    // A prompt that needs more memory, and back.
    let mut third = State::new(model.config(), 600, KvType::F16).unwrap();
    model.forward(&all[..model.placement().batch + 1], &mut third, Want::Nothing).unwrap();
    fake.take_calls();
    let found = model.forward(&all[515..516], &mut first, Want::Last).unwrap();
    assert!(bits(&found) == bits(&cpu.forward(&all[515..516], &mut expected, Want::Last).unwrap()));
    assert_eq!(prepared(&fake.take_calls()), 1);
    // Back in the first span.
    let place = first.rewind(500);
    assert_eq!(place, expected.rewind(500));
    let found = model.forward(&all[place..=place], &mut first, Want::Last).unwrap();
    assert!(bits(&found) == bits(&cpu.forward(&all[place..=place], &mut expected, Want::Last).unwrap()));
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

#[test]
fn what_a_gpu_cannot_run_is_an_error_with_its_number_and_the_cpu_s_with_auto() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let fake = fake(Schedule::Late);
    let good = on_gpu(&container, &fake, 6, COPY, KvType::F16);
    let other = |change: fn(&mut Options)| {
        let mut options = good.clone();
        change(&mut options);
        options
    };
    let cases: [(Options, &str); 5] = [
        (other(|o| o.kv = KvType::F32), "f16 or q8_0"),
        (other(|o| o.arithmetic = yuan::model::Arithmetic::Float), "--float"),
        (other(|o| o.gpu.choice = Choice::Device(1)), "no such GPU"),
        (other(|o| o.gpu.memory = Some(yuan::pager::budget::Limit::Bytes(1000))), "bytes are needed"),
        (other(|o| o.context = 1 << 18), "bytes are needed"),
    ];
    for (mut options, says) in cases {
        let problem = Placement::new(&container, &options).expect_err(says).to_string();
        assert!(problem.contains(says) && problem.contains("--gpu off"), "{problem}");
        if options.gpu.choice == Choice::Device(0) && options.context < 1 << 18 {
            options.gpu.choice = Choice::Auto;
            assert!(Model::load(&container, &options).unwrap().gpu_use().is_none());
        }
    }
    // A session whose cache the kernels do not know runs on the CPU.
    let model = Model::load(&container, &good).unwrap();
    fake.take_calls();
    let cpu = Model::load(&container, &base(KvType::F16)).unwrap();
    assert!(logits(&model, &tokens(5), 3, KvType::F32) == logits(&cpu, &tokens(5), 3, KvType::F32));
    assert!(!fake.take_calls().iter().any(|c| matches!(c, Call::Launch { kernel: "heads_f16" })));
    let rows = common::folder();
    let exact = common::convert(&common::demo(), &common::exact(), &rows.path().join("rows.gguf"));
    let problem = Placement::new(&exact, &good).expect_err("experts in rows").to_string();
    assert!(problem.contains("tiles"), "{problem}");
}
