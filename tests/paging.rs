//! Experts that come and go: the same bits as from memory.

mod common;

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc::{RecvTimeoutError, channel},
    },
    time::Duration,
};

use common::paging::{
    Fault, config, container, faulty, keeping, logits, looking_ahead, options, resident, tokens,
};
use yuan::{
    config::ModelConfig,
    container::Container,
    convert::Conversion,
    machine::{
        budget::Limit,
        source::{DirectIo, Source},
    },
    model::{KvType, Model, Options, Placement, State, Want},
    pager::{
        Eviction, Hits, Mode, Paging, Settings,
        trace::{Trace, Traced},
    },
    quantize::{DType, Options as QuantOptions, Plan},
    session::{Engine, Session},
};

#[test]
fn every_way_of_paging_gives_the_same_bits() {
    let folder = common::folder();
    let container = container(&folder);
    let tokens = tokens(60);
    let wanted = logits(&resident(&container), &tokens, 40);
    for threads in [1, 2, 3] {
        for mode in [Paging::Mapped, Paging::Plain, Paging::Auto] {
            let model = Model::load(&container, &Options { threads, ..options(mode) }).unwrap();
            assert!(logits(&model, &tokens, 40) == wanted, "{mode:?}, {threads} threads");
        }
        for (keep, readers, direct_io, eviction) in [
            (0, 1, DirectIo::Auto, Eviction::Lfu),
            (1, 4, DirectIo::Off, Eviction::Lru),
            (3, 2, DirectIo::Auto, Eviction::Lfu),
            (10, 1, DirectIo::Off, Eviction::Lfu),
            (24, 3, DirectIo::Auto, Eviction::Lru),
        ] {
            let mut options = Options { threads, ..keeping(&container, keep) };
            (options.paging.readers, options.paging.direct_io) = (readers, direct_io);
            options.paging.eviction = eviction;
            let model = Model::load(&container, &options).unwrap();
            assert_eq!(model.pager().mode(), Mode::Streamed);
            for prompt in [40, 5, 1] {
                assert!(
                    logits(&model, &tokens, prompt) == wanted,
                    "keep {keep}, {readers} readers, {threads} threads, a prompt of {prompt}"
                );
            }
            // Experts were really read, and no more of them kept than there is room for.
            let usage = model.pager().usage();
            let misses = usage.prefill.misses + usage.decode.misses;
            assert_eq!(usage.bytes_read, misses * model.pager().expert_bytes() as u64);
            assert!(model.pager().hot().len() as u64 <= keep);
            assert_eq!(usage.retries, 0);
            match keep {
                // An LRU smaller than a token's experts never hits.
                0 | 1 => assert_eq!(usage.decode.hits, 0),
                24 => assert!(misses <= 24, "{misses} reads of 24 experts"),
                _ => assert!(usage.decode.misses > 24 && usage.decode.hits > 0, "{usage:?}"),
            }
        }
    }
}

/// A long prompt wants all experts of every layer: those of the next one are read while this one is computed. That changes neither bits
/// nor what the policy finds.
#[test]
fn a_long_prompt_reads_the_next_layer_ahead() {
    let folder = common::folder();
    let container = container(&folder);
    let tokens = tokens(90);
    let wanted = logits(&resident(&container), &tokens, 80);
    for keep in [0, 3, 10, 24] {
        let model = Model::load(&container, &keeping(&container, keep)).unwrap();
        model.pager().record();
        assert!(logits(&model, &tokens, 80) == wanted, "keep {keep}");
        let (usage, trace) = (model.pager().usage(), model.recorded());
        let replayed = trace.replay(Eviction::Lfu, keep as usize);
        assert_eq!((usage.prefill, usage.decode), (replayed.prefill, replayed.decode));
        assert!(usage.guesses.hits > 0 && model.pager().hot().len() as u64 <= keep, "{usage:?}");
        // What was not wanted after all is given up, some of it before it was read.
        let wanted = (usage.prefill.misses + usage.decode.misses) * model.pager().expert_bytes() as u64;
        let most = wanted + usage.guesses.misses * model.pager().expert_bytes() as u64;
        assert!((wanted..=most).contains(&usage.bytes_read), "{usage:?}");
    }
}

/// Guesses are counted apart: hits stay those of the policy, and every guess is right or wrong.
#[test]
fn looking_ahead_changes_neither_bits_nor_hits() {
    let folder = common::folder();
    let container = container(&folder);
    let tokens = tokens(60);
    let wanted = logits(&resident(&container), &tokens, 20);
    for (threads, readers, keep) in [(1, 1, 0), (2, 4, 3), (3, 2, 10), (2, 1, 24)] {
        let run = |mut options: Options| {
            (options.threads, options.paging.readers) = (threads, readers);
            let model = Model::load(&container, &options).unwrap();
            assert!(
                logits(&model, &tokens, 20) == wanted,
                "{threads} threads, {readers} readers, keep {keep}"
            );
            assert!(model.pager().hot().len() as u64 <= keep);
            model.pager().usage()
        };
        let (without, with) = (run(keeping(&container, keep)), run(looking_ahead(&container, keep)));
        assert_eq!((without.decode, without.prefill), (with.decode, with.prefill));
        assert_eq!(without.guesses, Hits::default());
        assert!(with.guesses.hits > 0 || keep == 24, "{with:?}");
    }
}

#[test]
fn experts_of_every_type_and_float_products_are_paged_too() {
    let tokens = tokens(20);
    for experts in [DType::Q3_K, DType::Q4_0, DType::Q6_K, DType::Q8_0] {
        let folder = common::folder();
        let path = folder.path().join("m.gguf");
        let types = QuantOptions { experts, ..QuantOptions::default() };
        let plan = Plan::new(ModelConfig { ffn: 300, ..config() }, &types).unwrap();
        Conversion::synth(plan, 6, &common::letters(512)).unwrap().write(&path, &|_| true).unwrap();
        let container = Container::open(&path).unwrap();
        for arithmetic in [yuan::model::Arithmetic::Integer, yuan::model::Arithmetic::Float] {
            let run = |options: Options| {
                let model = Model::load(&container, &Options { arithmetic, ..options }).unwrap();
                logits(&model, &tokens, 12)
            };
            assert!(
                run(options(Paging::Plain)) == run(keeping(&container, 4)),
                "{experts:?}, {arithmetic:?}"
            );
        }
    }
}

#[test]
fn a_prompt_reads_each_expert_once() {
    let folder = common::folder();
    let container = container(&folder);
    // With more memory a batch holds more of the prompt.
    let mut options = keeping(&container, 2);
    let Some(Limit::Bytes(bytes)) = &mut options.paging.memory else { unreachable!() };
    *bytes += 200 << 20;
    let placement = Placement::new(&container, &options).unwrap();
    assert!(placement.batch > 300, "{placement:?}");
    for (eviction, keep) in [(Eviction::Lfu, 0), (Eviction::Lfu, 5), (Eviction::Lru, 5)] {
        let source = Arc::new(Counting::default());
        let model = {
            let mut options = keeping(&container, keep);
            options.paging.eviction = eviction;
            Model::load_with(&container, &options, &|file| source.wrap(file)).unwrap()
        };
        let mut state = State::new(model.config(), 300, KvType::F16).unwrap();
        model.forward_one(&tokens(300), &mut state, Want::Last).unwrap();
        let usage = model.pager().usage();
        assert!(usage.prefill.misses <= 24 && usage.prefill.misses > 18, "{usage:?}");
        assert_eq!(source.reads.load(Relaxed), usage.prefill.misses as usize * 3);
        assert_eq!(model.pager().hot().len() as u64, keep);
    }
}

#[test]
fn a_session_runs_a_prompt_in_batches_that_fit_the_budget() {
    let folder = common::folder();
    let container = container(&folder);
    let wanted = logits(&resident(&container), &tokens(100), 100);
    let options = keeping(&container, 4);
    let engine = Engine::new(container, &options).unwrap();
    assert_eq!(engine.model().batch(), 32);
    let mut session = Session::new(engine, 100, KvType::F16).unwrap();
    let mut heard = Vec::new();
    let progress = |done| {
        heard.push(done);
        ControlFlow::Continue(())
    };
    session.extend(&tokens(100), progress).unwrap();
    assert_eq!(heard, [32, 64, 96, 100]);
    let last = session.logits().unwrap();
    assert!(last.iter().copied().map(f32::to_bits).eq(wanted[99 * 512..].iter().copied()));
}

#[test]
fn a_budget_too_small_names_the_smallest_that_works() {
    let folder = common::folder();
    let container = container(&folder);
    let mut options = keeping(&container, 0);
    let Some(Limit::Bytes(smallest)) = options.paging.memory else { unreachable!() };
    assert!(Model::load(&container, &options).is_ok());
    options.paging.memory = Some(Limit::Bytes(smallest - 1));
    let problem = Model::load(&container, &options).unwrap_err().to_string();
    assert!(problem.contains(&format!("--memory {smallest}")), "{problem}");
    // Keys, values and snapshots of the context count.
    options.paging.memory = Some(Limit::Bytes(smallest));
    (options.context, options.kv) = (1000, KvType::F32);
    let [long, none] = [1000, 0].map(|context| State::bytes(container.config(), KvType::F32, context));
    let smallest = smallest + long - none;
    let problem = Model::load(&container, &options).unwrap_err().to_string();
    assert!(problem.contains(&format!("--memory {smallest}")), "{problem}");
}

#[test]
fn what_fits_is_mapped_and_what_does_not_is_streamed() {
    let folder = common::folder();
    let path = folder.path().join("many.gguf");
    let plan = Plan::new(ModelConfig { experts: 64, ..config() }, &QuantOptions::default()).unwrap();
    Conversion::synth(plan, 5, &common::letters(512)).unwrap().write(&path, &|_| true).unwrap();
    let container = Container::open(&path).unwrap();
    let mode_of = |bytes: u64| {
        let paging = Settings { memory: Some(Limit::Bytes(bytes)), ..Settings::default() };
        Placement::new(&container, &Options { paging, ..Options::default() }).map(|p| p.mode).ok()
    };
    assert_eq!(mode_of(8 << 30), Some(Mode::Mapped));
    let placement = Placement::new(&container, &options(Paging::Streamed)).unwrap();
    assert_eq!(mode_of(placement.smallest), Some(Mode::Streamed));
    assert_eq!(mode_of(placement.smallest - 1), None);
    // Rows are no tiles: the page cache does what it can.
    let path = folder.path().join("rows.gguf");
    let types = QuantOptions { experts: DType::F16, ..QuantOptions::default() };
    let plan = Plan::new(config(), &types).unwrap();
    Conversion::synth(plan, 5, &common::letters(512)).unwrap().write(&path, &|_| true).unwrap();
    let rows = Container::open(&path).unwrap();
    assert_eq!(Placement::new(&rows, &options(Paging::Auto)).unwrap().mode, Mode::Plain);
    let problem = Model::load(&rows, &options(Paging::Streamed)).unwrap_err().to_string();
    assert!(problem.contains("yuan-quant"), "{problem}");
}

#[test]
fn a_replayed_trace_hits_as_often_as_the_engine_did() {
    let folder = common::folder();
    let container = container(&folder);
    let tokens = tokens(80);
    for (eviction, keep) in [(Eviction::Lfu, 7), (Eviction::Lfu, 15), (Eviction::Lru, 7), (Eviction::Lru, 0)]
    {
        let mut options = keeping(&container, keep);
        options.paging.eviction = eviction;
        let model = Model::load(&container, &options).unwrap();
        model.pager().record();
        logits(&model, &tokens, 30);
        let config = model.config();
        let traced = Traced {
            yuan_trace: 1,
            layers: config.layers,
            experts: config.experts,
            used: config.experts_used,
            expert_bytes: model.pager().expert_bytes() as u64,
            fixed_bytes: 0,
        };
        let trace = Trace { model: traced, requests: model.pager().recorded() };
        assert_eq!(trace.requests.len(), 3 * 51);
        let (replayed, usage) = (trace.replay(eviction, keep as usize), model.pager().usage());
        assert_eq!((replayed.prefill, replayed.decode), (usage.prefill, usage.decode));
        assert_eq!(replayed.misses.len(), 50);
        assert_eq!(trace.uses(), usage.uses);
        assert!(keep == 0 || usage.decode.hits > 0);
    }
}

/// Counts reads.
#[derive(Default)]
struct Counting {
    reads: AtomicUsize,
}

impl Counting {
    fn wrap(self: &Arc<Self>, file: Box<dyn Source>) -> Box<dyn Source> {
        let counting = self.clone();
        faulty(file, move |_, _| {
            counting.reads.fetch_add(1, Relaxed);
            Fault::None
        })
    }
}

#[test]
fn the_hot_experts_of_one_model_warm_the_next() {
    let folder = common::folder();
    let container = container(&folder);
    let tokens = tokens(60);
    let first = Model::load(&container, &keeping(&container, 9)).unwrap();
    let wanted = logits(&first, &tokens, 30);
    let hot = first.pager().hot();
    assert_eq!(hot.len(), 9);
    let second = Model::load(&container, &keeping(&container, 9)).unwrap();
    assert_eq!(second.pager().warm(&hot).unwrap(), 9);
    assert_eq!(second.pager().usage().bytes_read, 9 * second.pager().expert_bytes() as u64);
    let mut kept = second.pager().hot();
    kept.sort_unstable();
    let mut hot = hot;
    hot.sort_unstable();
    assert_eq!(kept, hot);
    assert!(logits(&second, &tokens, 30) == wanted);
    assert!(second.pager().usage().prefill.hits > 0);
    // Less room, strangers and experts that there are not.
    let small = Model::load(&container, &keeping(&container, 2)).unwrap();
    assert_eq!(small.pager().warm(&hot).unwrap(), 2);
    assert!(small.pager().warm(&[(9, 0)]).is_err() && small.pager().warm(&[(0, usize::MAX)]).is_err());
}

#[test]
fn sessions_on_several_threads_share_the_slots() {
    let folder = common::folder();
    let container = container(&folder);
    let wanted: Vec<_> = (0..3).map(|i| logits(&resident(&container), &tokens(30 + i)[i..], 10)).collect();
    for mode in [Paging::Streamed, Paging::Mapped] {
        let mut options = keeping(&container, 5);
        options.paging.mode = mode;
        let model = Model::load(&container, &options).unwrap();
        std::thread::scope(|scope| {
            for (i, wanted) in wanted.iter().enumerate() {
                let model = &model;
                scope.spawn(move || assert!(logits(model, &tokens(30 + i)[i..], 10) == *wanted));
            }
        });
    }
}

/// Every call of every session finds that the system may have dropped pages, while other sessions wait for them.
#[test]
fn mapped_sessions_go_on_when_pages_are_dropped() {
    fn counter() -> u64 {
        static FAULTS: AtomicU64 = AtomicU64::new(0);
        FAULTS.fetch_add(1, Relaxed)
    }
    let folder = common::folder();
    let container = container(&folder);
    let tokens = tokens(60);
    let wanted = Arc::new(logits(&resident(&container), &tokens, 10));
    let mut options = options(Paging::Mapped);
    (options.paging.major_faults, options.paging.readers) = (counter, 1);
    let model = Arc::new(Model::load(&container, &options).unwrap());
    let (done, heard) = channel();
    for _ in 0..4 {
        let (model, tokens, wanted, done) = (model.clone(), tokens.clone(), wanted.clone(), done.clone());
        std::thread::spawn(move || {
            for _ in 0..20 {
                done.send(logits(&model, &tokens, 10) == *wanted).unwrap();
            }
        });
    }
    drop(done);
    // A minute is for a machine that does much else; what hangs never comes.
    let mut rounds = 0;
    loop {
        match heard.recv_timeout(Duration::from_secs(60)) {
            Ok(same) => assert!(same),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("sessions hang after {rounds} rounds"),
        }
        rounds += 1;
    }
    assert_eq!(rounds, 80);
}

#[test]
fn hits_count_what_was_there() {
    assert_eq!(Hits { hits: 3, misses: 1 }.rate(), 0.75);
    assert_eq!(Hits::default().rate(), 1.0);
}
