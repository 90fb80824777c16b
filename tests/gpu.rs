//! The model on an emulated GPU: the CPU's bits, choices and text wherever experts are, and the same sessions.

mod common;
#[path = "common/gpu.rs"]
mod gpu;

use std::{ops::ControlFlow, sync::Arc};

use common::{
    damage::{damage, is_damaged, overwrite},
    linear,
};
use gpu::{BOTH, COPY, NEVER, base, bits, demo, fake, go, logits, on_gpu, options, tokens, with_trunk};
use yuan::{
    config::RouterKind,
    container::Container,
    gpu::{
        Choice, Costs,
        fake::{Call, Schedule},
    },
    machine::budget::Limit,
    model::{KvType, Model, Options, Output, Placement, Sequence, State, Want},
    quantize::{self, DType},
    sampler::{Sampler, Settings},
    session::{Engine, Limits, Session},
    tokenizer::Special,
};

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
    let every = &PLACEMENTS[..];
    for (dtype, kv, placements) in [
        (DType::Q4_K, KvType::F16, every),
        (DType::Q4_0, KvType::Q8_0, every),
        (DType::Q3_K, KvType::F16, &every[2..3]),
        (DType::Q6_K, KvType::F16, &every[2..3]),
        (DType::Q8_0, KvType::F16, &every[2..3]),
    ] {
        let folder = common::folder();
        let container = demo(&folder, dtype);
        let cpu = Model::load(&container, &base(kv)).unwrap();
        for &(experts, costs, schedule) in placements {
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
                let hidden = model.forward_one(&tokens(20), &mut state, Want::Hidden).unwrap();
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

/// A GPU that has room for the embedding beside all experts is sent ids, for a prompt and in a token's graph.
#[test]
fn the_embedding_is_looked_up_where_it_lies() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let fake = fake(Schedule::Late);
    let mut options = on_gpu(&container, &fake, 64, COPY, KvType::F16);
    let room = |options: &Options| *Placement::new(&container, options).unwrap().gpu.room().unwrap();
    let without = room(&options);
    assert!(without.embedding == 0 && without.needs.embedding > 0);
    options.gpu.memory = Some(Limit::Bytes(without.budget + without.needs.embedding));
    assert_eq!(room(&options).taken(), without.budget + without.needs.embedding);
    let [cpu, gpu] = [base(KvType::F16), options].map(|options| Model::load(&container, &options).unwrap());
    fake.take_calls();
    let found = logits(&gpu, &tokens(23), 20, KvType::F16);
    let calls = fake.take_calls();
    assert!(found == logits(&cpu, &tokens(23), 20, KvType::F16));
    let embeds = |call: &&Call| matches!(call, Call::Launch { kernel } if kernel.starts_with("embed_"));
    assert_eq!(calls.iter().filter(embeds).count(), 1, "the prompt's; a token's is in the graph");
    let rows = |tokens: usize| 4 * tokens * gpu.config().hidden;
    let all = |call: &Call| matches!(call, Call::Upload { bytes, .. } if *bytes >= rows(20));
    assert!(!calls.iter().any(all), "{} bytes of rows are not sent", rows(20));
}

#[test]
fn a_linear_router_chooses_as_on_the_cpu() {
    let folder = linear::folder();
    let types = quantize::Options { experts: DType::Q4_K, dense: DType::Q8_0, rope: None, rope_base: None };
    let container = common::convert(folder.path(), &types, &folder.path().join("linear.gguf"));
    let cpu = Model::load(&container, &base(KvType::F16)).unwrap();
    assert_eq!(cpu.config().router, RouterKind::Linear);
    for (experts, costs, schedule) in PLACEMENTS {
        let options = on_gpu(&container, &fake(schedule), experts, costs, KvType::F16);
        let gpu = Model::load(&container, &options).unwrap();
        let [found, expected] = [&gpu, &cpu].map(|model| logits(model, &tokens(23), 20, KvType::F16));
        assert!(found == expected, "{experts} experts");
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

/// Where a choice looks at a few of the best logits only, these are ranked on the GPU, and no others leave it.
#[test]
fn choices_are_those_of_the_cpu_and_logits_stay_where_few_are_looked_at() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let fake = fake(Schedule::Late);
    let options = on_gpu(&container, &fake, 64, COPY, KvType::F16);
    let [cpu, gpu] = [base(KvType::F16), options].map(|o| Engine::open(container.path(), &o).unwrap());
    let vocab = gpu.model().config().vocab;
    let warm = Settings { temperature: 0.8, seed: Some(3), ..Settings::default() };
    let cases = [
        (Settings::default(), true),
        (Settings { top_k: 40, ..warm.clone() }, true),
        (Settings { top_k: 127, top_p: 0.9, min_p: 0.01, ..warm.clone() }, true),
        (Settings { top_k: 128, ..warm.clone() }, false),
        (Settings { top_p: 0.9, ..warm.clone() }, false),
        (Settings { top_k: 40, repeat_penalty: 1.2, ..warm }, false),
    ];
    for (settings, few) in cases {
        let chosen = [&cpu, &gpu].map(|engine| {
            let mut session = Session::new(engine.clone(), 100, KvType::F16).unwrap();
            let mut sampler = Sampler::new(settings.clone()).unwrap();
            let prompt = engine.tokenizer().encode("十五夜观灯 王维<sep>", Special::Parse);
            session.extend(&prompt[..prompt.len() - 1], go).unwrap();
            fake.take_calls();
            let limits = Limits { ignore_eod: true, ..Limits::tokens(8) };
            session.extend(&prompt[prompt.len() - 1..], go).unwrap();
            session.generate(&mut sampler, &limits, |_, _| ControlFlow::Continue(())).unwrap();
            let tokens = session.tokens().to_vec();
            // Whoever asks for all logits gets them.
            let token = session.sample(&mut sampler).unwrap();
            (tokens, token, bits(session.logits().unwrap()))
        });
        assert_eq!(chosen[0].0, chosen[1].0, "{settings:?}");
        assert!(chosen[0] == chosen[1], "{settings:?}");
        let calls = fake.take_calls();
        let ranked = calls.iter().filter(|c| matches!(c, Call::Launch { kernel: "top_k" })).count();
        let brought = |c: &&Call| matches!(c, Call::Download { bytes, .. } if *bytes == 4 * vocab);
        let all = calls.iter().filter(brought).count();
        // Of nine tokens the first was run before its choice was asked for; one is asked for once more.
        let launches = vocab.div_ceil(4096).min(2);
        assert_eq!((ranked, all), if few { (8 * launches, 2) } else { (0, 9) }, "{settings:?}");
    }
}

/// Wherever the damage shows: in the hidden states, in all logits, or in a single one.
#[test]
fn damaged_weights_are_an_error_on_a_gpu_too() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let whole = std::fs::read(container.path()).unwrap();
    let every = [Want::Last, Want::Best(3), Want::All, Want::Nothing, Want::Hidden];
    for (tensor, wants) in
        [("blk.0.attn_v", &every[..]), ("blk.1.attn_q", &every), ("output.weight", &every[..3])]
    {
        damage(&container, tensor);
        for experts in [64, 0] {
            let options = on_gpu(&container, &fake(Schedule::Early), experts, COPY, KvType::F16);
            let model = Model::load(&container, &options).unwrap();
            let mut state = State::new(model.config(), 64, KvType::F16).unwrap();
            for (n, want) in [1, 5].into_iter().flat_map(|n| wants.iter().map(move |want| (n, *want))) {
                is_damaged(model.forward_one(&tokens(n), &mut state, want));
                assert_eq!(state.position(), 0, "{tensor} {want:?}");
            }
        }
        overwrite(container.path(), 0, &whole);
    }
}

/// A logit that is not a number is ranked before all others, and is then an error. One with a sign, which no GPU makes, is ranked behind them.
#[test]
fn one_logit_that_is_not_a_number_is_an_error_or_ranked_last() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let whole = Model::load(&container, &base(KvType::F16)).unwrap();
    let state = || State::new(whole.config(), 64, KvType::F16).unwrap();
    let all = whole.forward_one(&tokens(5), &mut state(), Want::Last).unwrap();
    let mut others: Vec<_> = (0..).zip(all).filter(|t| t.0 != 7).collect();
    others.sort_by(|a: &(u32, f32), b| b.1.total_cmp(&a.1));
    let head = container.tensor("output.weight").unwrap();
    assert!(head.dtype == DType::Q8_0 && head.panels);
    // The scales of the first panel: of token 7.
    let at = head.bytes.file_offset().unwrap() + 14;
    for (scale, ranked) in [(0x7e00u16, false), (0xfe00, true)] {
        let path = folder.path().join(format!("{scale:x}.gguf"));
        std::fs::copy(container.path(), &path).unwrap();
        overwrite(&path, at, &scale.to_le_bytes());
        let container = Container::open(&path).unwrap();
        let options = on_gpu(&container, &fake(Schedule::Early), 64, COPY, KvType::F16);
        let [cpu, gpu] = [base(KvType::F16), options].map(|o| Model::load(&container, &o).unwrap());
        for model in [&cpu, &gpu] {
            is_damaged(model.forward_one(&tokens(5), &mut state(), Want::Last));
        }
        let (tokens, mut state) = (tokens(5), state());
        let mut best = [Sequence { tokens: &tokens, drafted: 0, state: &mut state, want: Want::Best(3) }];
        match gpu.forward(&mut best).remove(0) {
            Ok(best) => assert!(ranked && best == Output::Best(others[..3].to_vec())),
            error => {
                assert!(!ranked);
                is_damaged(error);
            }
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
        out.extend([&gpu, &cpu][i % 2].forward_one(piece, &mut state, Want::All).unwrap());
    }
    let mut copy = state.clone();
    assert!(bits(&out) == logits(&cpu, &tokens, 20, KvType::F16));
    let next = [&mut state, &mut copy].map(|s| bits(&gpu.forward_one(&[7], s, Want::Last).unwrap()));
    assert!(next[0] == next[1]);
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
        (other(|o| o.gpu.memory = Some(yuan::machine::budget::Limit::Bytes(1000))), "bytes are needed"),
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
