//! Experts that come and go: the same bits as from memory, and what happens when reads fail.

mod common;

use std::{
    io,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use yuan::{
    Error,
    config::ModelConfig,
    container::{Bytes, Container, Conversion},
    model::{KvType, Model, Options, Placement, State, Want},
    pager::{
        Eviction, Hits, Mode, Paging, Settings,
        budget::Limit,
        source::{DirectIo, Source},
    },
    quantize::{DType, Options as QuantOptions, Plan, synth},
    session::Session,
};

/// 3 layers of 8 experts of 3 tiles.
fn config() -> ModelConfig {
    ModelConfig { layers: 3, experts: 8, ffn: 768, ..synth::tiny() }
}

fn container(folder: &tempfile::TempDir) -> Container {
    let path = folder.path().join("m.gguf");
    let plan = Plan::new(config(), &QuantOptions::default()).unwrap();
    Conversion::synth(plan, 5, &common::letters(512)).unwrap().write(&path, &|_| true).unwrap();
    Container::open(&path).unwrap()
}

/// The model in memory of its own, without a pager.
fn resident(container: &Container) -> Model {
    let bytes = Bytes::copy(&std::fs::read(container.path()).unwrap());
    let container = Container::parse(bytes, container.path()).unwrap();
    let model = Model::load(&container, &Options { threads: 2, ..Options::default() }).unwrap();
    assert_eq!(model.pager().mode(), Mode::Plain);
    model
}

fn options(mode: Paging) -> Options {
    Options { threads: 2, paging: Settings { mode, ..Settings::default() }, ..Options::default() }
}

/// Options that stream with `keep` experts in memory.
fn keeping(container: &Container, keep: u64) -> Options {
    let mut options = options(Paging::Streamed);
    let plan = Placement::new(container, &options).unwrap();
    options.paging.memory = Some(Limit::Bytes(plan.smallest + keep * plan.expert_bytes));
    assert_eq!(Placement::new(container, &options).unwrap().resident as u64, keep);
    options
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i * 31 + i * 7) % 512).collect()
}

/// All logits of `tokens`: a prompt of `prompt` tokens, then one by one.
fn logits(model: &Model, tokens: &[u32], prompt: usize) -> Vec<u32> {
    let mut state = State::new(model.config(), tokens.len(), KvType::F16).unwrap();
    let mut out = model.forward(&tokens[..prompt], &mut state, Want::All).unwrap();
    for token in &tokens[prompt..] {
        out.extend(model.forward(&[*token], &mut state, Want::All).unwrap());
    }
    out.into_iter().map(f32::to_bits).collect()
}

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

#[test]
fn experts_in_q4_0_and_float_products_are_paged_too() {
    let folder = common::folder();
    let path = folder.path().join("m.gguf");
    let types = QuantOptions { experts: DType::Q4_0, ..QuantOptions::default() };
    let plan = Plan::new(ModelConfig { ffn: 300, ..config() }, &types).unwrap();
    Conversion::synth(plan, 6, &common::letters(512)).unwrap().write(&path, &|_| true).unwrap();
    let container = Container::open(&path).unwrap();
    let tokens = tokens(20);
    for arithmetic in [yuan::model::Arithmetic::Integer, yuan::model::Arithmetic::Float] {
        let plain = Model::load(&container, &Options { arithmetic, ..options(Paging::Plain) }).unwrap();
        let streamed = Model::load(&container, &Options { arithmetic, ..keeping(&container, 4) }).unwrap();
        assert!(logits(&plain, &tokens, 12) == logits(&streamed, &tokens, 12));
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
        model.forward(&tokens(300), &mut state, Want::Last).unwrap();
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
    let model = Arc::new(Model::load(&container, &keeping(&container, 4)).unwrap());
    assert_eq!(model.batch(), 32);
    let mut session = Session::new(model, 100, KvType::F16).unwrap();
    let mut heard = Vec::new();
    let progress = |done| {
        heard.push(done);
        ControlFlow::Continue(())
    };
    let last = session.extend(&tokens(100), progress).unwrap();
    assert_eq!(heard, [32, 64, 96, 100]);
    let wanted = logits(&resident(&container), &tokens(100), 100);
    assert!(last.into_iter().map(f32::to_bits).eq(wanted[99 * 512..].iter().copied()));
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
    // The cache of keys and values counts.
    options.paging.memory = Some(Limit::Bytes(smallest));
    (options.context, options.kv) = (1000, KvType::F32);
    let kv = State::kv_bytes(container.config(), KvType::F32) as u64 * 1000;
    let problem = Model::load(&container, &options).unwrap_err().to_string();
    assert!(problem.contains(&format!("--memory {}", smallest + kv)), "{problem}");
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

/// What happens to a read.
enum Fault {
    None,
    Error(io::ErrorKind),
    /// Only half of it comes.
    Short,
    Delay(Duration),
}

/// A source whose `plan` says what happens to the n-th read at an offset.
struct Faulty<F> {
    file: Box<dyn Source>,
    reads: AtomicU64,
    plan: F,
}

fn faulty(
    file: Box<dyn Source>,
    plan: impl Fn(u64, u64) -> Fault + Send + Sync + 'static,
) -> Box<dyn Source> {
    Box::new(Faulty { file, reads: AtomicU64::new(0), plan })
}

impl<F: Fn(u64, u64) -> Fault + Send + Sync> Source for Faulty<F> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match (self.plan)(self.reads.fetch_add(1, Relaxed), offset) {
            Fault::None => self.file.read_at(buffer, offset),
            Fault::Error(kind) => Err(kind.into()),
            Fault::Short => {
                let half = buffer.len() / 2 / 4096 * 4096;
                self.file.read_at(&mut buffer[..half], offset)
            }
            Fault::Delay(time) => {
                std::thread::sleep(time);
                self.file.read_at(buffer, offset)
            }
        }
    }
}

/// A number that looks random.
fn hash(n: u64) -> u64 {
    n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40
}

#[test]
fn late_and_shuffled_tiles_change_nothing() {
    let folder = common::folder();
    let container = container(&folder);
    let tokens = tokens(30);
    let wanted = logits(&resident(&container), &tokens, 20);
    for threads in [1, 2] {
        let mut options = Options { threads, ..keeping(&container, 3) };
        options.paging.readers = 8;
        let late = |n: u64, _| Fault::Delay(Duration::from_micros(hash(n) % 700));
        let model = Model::load_with(&container, &options, &|file| faulty(file, late)).unwrap();
        assert!(logits(&model, &tokens, 20) == wanted, "{threads} threads");
        assert!(model.pager().usage().waited > Duration::ZERO);
    }
}

#[test]
fn a_read_that_fails_once_is_tried_again() {
    let folder = common::folder();
    let container = container(&folder);
    let tokens = tokens(30);
    let wanted = logits(&resident(&container), &tokens, 20);
    for kind in [0, 1] {
        let mut options = keeping(&container, 3);
        options.paging.readers = 1;
        let plan = move |n: u64, _| match (n % 5, kind) {
            (0, 0) => Fault::Short,
            (0, _) => Fault::Error(io::ErrorKind::Other),
            _ => Fault::None,
        };
        let model = Model::load_with(&container, &options, &|file| faulty(file, plan)).unwrap();
        assert!(logits(&model, &tokens, 20) == wanted);
        assert!(model.pager().usage().retries > 10);
    }
}

/// A drive that is broken for a while: the call fails, the state is as before it, and the same call succeeds later.
#[test]
fn a_read_that_fails_twice_fails_the_call_and_nothing_else() {
    let folder = common::folder();
    let container = container(&folder);
    let tokens = tokens(40);
    let wanted = logits(&resident(&container), &tokens, 20);
    for (threads, readers, keep) in [(1, 1, 0), (2, 4, 3), (2, 2, 9), (3, 4, 5)] {
        for fault in [true, false] {
            let broken = Arc::new(AtomicU64::new(0));
            let plan = {
                let broken = broken.clone();
                // While it is broken, reads of every seventh hash fail.
                move |_, offset| match broken.load(Relaxed) {
                    n if n > 0 && hash(offset + n).is_multiple_of(7) && fault => {
                        Fault::Error(io::ErrorKind::Other)
                    }
                    n if n > 0 && hash(offset + n).is_multiple_of(7) => Fault::Short,
                    _ => Fault::None,
                }
            };
            let mut options = Options { threads, ..keeping(&container, keep) };
            options.paging.readers = readers;
            let model = Model::load_with(&container, &options, &|file| faulty(file, plan.clone())).unwrap();
            let mut state = State::new(model.config(), 40, KvType::F16).unwrap();
            let (mut out, mut failures, mut at) = (Vec::new(), 0, 0);
            while at < tokens.len() {
                let call = &tokens[at..if at == 0 { 20 } else { at + 1 }];
                broken.store(1 + at as u64, Relaxed);
                let first = model.forward(call, &mut state, Want::All);
                broken.store(0, Relaxed);
                let logits = first.unwrap_or_else(|problem| {
                    assert!(matches!(problem, Error::Io { .. }), "{problem}");
                    failures += 1;
                    assert_eq!(state.position(), at);
                    model.forward(call, &mut state, Want::All).unwrap()
                });
                out.extend(logits.into_iter().map(f32::to_bits));
                at += call.len();
            }
            assert!(failures > 3, "{failures}");
            assert!(out == wanted, "{threads} threads, {readers} readers, keep {keep}");
        }
    }
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let folder = common::folder();
    let container = container(&folder);
    let copy = folder.path().join("short.gguf");
    std::fs::copy(container.path(), &copy).unwrap();
    let shrinking = Container::open(&copy).unwrap();
    let models = [
        Model::load(&shrinking, &options(Paging::Mapped)).unwrap(),
        Model::load(&shrinking, &keeping(&shrinking, 4)).unwrap(),
    ];
    let length = std::fs::metadata(&copy).unwrap().len();
    std::fs::File::options().write(true).open(&copy).unwrap().set_len(length / 2).unwrap();
    for model in models {
        let mut state = State::new(model.config(), 40, KvType::F16).unwrap();
        let problem = model.forward(&tokens(40), &mut state, Want::Last).unwrap_err();
        assert!(problem.to_string().contains("short.gguf"), "{problem}");
        assert_eq!(state.position(), 0);
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

#[test]
fn hits_count_what_was_there() {
    assert_eq!(Hits { hits: 3, misses: 1 }.rate(), 0.75);
    assert_eq!(Hits::default().rate(), 1.0);
}
