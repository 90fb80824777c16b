//! The same bits: whatever the number of threads, however the tokens are cut into calls.

mod common;

use common::paging;
use yuan::{
    config::{ModelConfig, RouterKind},
    container::Container,
    convert::Conversion,
    model::{
        Arithmetic, KvType, Model, Options as RunOptions, State, Want,
        bench::{Bench, Trunk},
    },
    pager::Paging,
    quantize::{DType, Options, Plan, Wishes, synth},
    session::exactness,
    tokenizer::Tokenizer,
};
use yuan_kernels::encode::best_encoders;

fn container(config: ModelConfig, options: &Options, folder: &tempfile::TempDir) -> Container {
    let path = folder.path().join("m.gguf");
    let plan = Plan::new(config.clone(), options).unwrap();
    let vocab = common::letters(config.vocab);
    Conversion::synth(plan, 5, &vocab).unwrap().write(&path, &|_| true).unwrap();
    Container::open(&path).unwrap()
}

fn load(container: &Container, threads: usize, arithmetic: Arithmetic) -> Model {
    Model::load(container, &RunOptions { threads, arithmetic, ..Default::default() }).unwrap()
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| i * 37 % 512).collect()
}

/// All logits of `tokens`, given to the model in pieces of these lengths (the last one again and again).
fn logits(model: &Model, tokens: &[u32], pieces: &[usize], kv: KvType) -> Vec<u32> {
    let mut state = State::new(model.config(), tokens.len(), kv).unwrap();
    let (mut out, mut at, mut i) = (Vec::new(), 0, 0);
    while at < tokens.len() {
        let n = pieces[i.min(pieces.len() - 1)].min(tokens.len() - at);
        out.extend(model.forward_one(&tokens[at..at + n], &mut state, Want::All).unwrap());
        (at, i) = (at + n, i + 1);
    }
    out.into_iter().map(f32::to_bits).collect()
}

fn geometries() -> [(ModelConfig, Options); 7] {
    let q4_0 = Options { experts: DType::Q4_0, dense: DType::Q6_K, ..Options::default() };
    let q3_k = Options { experts: DType::Q3_K, ..Options::default() };
    let q6_k = Options { experts: DType::Q6_K, ..Options::default() };
    let q8_0 = Options { experts: DType::Q8_0, ..Options::default() };
    let rows = Options { experts: DType::F16, dense: DType::Bf16, ..Options::default() };
    let linear = ModelConfig { router: RouterKind::Linear, ..synth::tiny() };
    let wide = ModelConfig { ffn: 1280, experts: 3, ..synth::tiny() };
    let dense = ModelConfig {
        architecture: yuan::config::Architecture::Dense,
        experts: 0,
        experts_used: 0,
        ffn: 768,
        ..synth::tiny()
    };
    [
        (synth::tiny(), Options::default()),
        (wide.clone(), q4_0),
        (wide, q8_0),
        (synth::tiny(), q3_k),
        (synth::tiny(), q6_k),
        (linear, rows),
        (dense, Options::default()),
    ]
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for (config, options) in geometries() {
        let folder = common::folder();
        let container = container(config.clone(), &options, &folder);
        let tokens = tokens(45);
        for pieces in [&[45][..], &[1]] {
            let one = logits(&load(&container, 1, Arithmetic::Integer), &tokens, pieces, KvType::F16);
            for (threads, threads_batch) in [(2, 0), (3, 0), (8, 0), (2, 3)] {
                let options = RunOptions { threads, threads_batch, ..Default::default() };
                let model = Model::load(&container, &options).unwrap();
                assert!(
                    logits(&model, &tokens, pieces, KvType::F16) == one,
                    "{threads} threads, {threads_batch} for batches, {config:?}"
                );
            }
        }
    }
}

/// Experts of three tiles, mapped and streamed: more threads than there are rows, tiles or experts to share.
#[test]
fn many_threads_give_the_same_bits_from_a_file_too() {
    let folder = common::folder();
    let container = paging::container(&folder);
    let (tokens, pieces) = (tokens(70), [48, 1, 20, 1]);
    let one = logits(&load(&container, 1, Arithmetic::Integer), &tokens, &pieces, KvType::F16);
    for (options, threads) in [paging::options(Paging::Mapped), paging::keeping(&container, 3)]
        .into_iter()
        .flat_map(|options| [16, 33, 64].map(|threads| (options.clone(), threads)))
    {
        let model = Model::load(&container, &RunOptions { threads, ..options }).unwrap();
        assert_eq!(model.threads(), threads);
        let mode = model.pager().mode();
        assert!(logits(&model, &tokens, &pieces, KvType::F16) == one, "{threads} threads, {}", mode.name());
    }
}

/// Few rows of logits at a time are those that a pass gives all at once.
#[test]
fn logits_of_hidden_states_are_those_of_the_pass() {
    for (config, options) in geometries() {
        let folder = common::folder();
        let model = load(&container(config.clone(), &options, &folder), 2, Arithmetic::Integer);
        let mut state = State::new(&config, 45, KvType::F16).unwrap();
        let hidden = model.forward_one(&tokens(45), &mut state, Want::Hidden).unwrap();
        assert_eq!(&hidden[44 * config.hidden..], state.hidden());
        let rows = hidden.chunks(7 * config.hidden).flat_map(|rows| model.logits(rows).unwrap());
        assert!(rows.map(f32::to_bits).eq(logits(&model, &tokens(45), &[45], KvType::F16)));
        assert!(model.logits(&hidden[1..]).is_err() && model.logits(&[]).is_err());
    }
}

/// Token by token, whole prompt, and every cut in two: the filter's state and the cache cross the borders.
#[test]
fn cached_equals_uncached_at_every_cut() {
    for (config, options) in geometries() {
        let folder = common::folder();
        let container = container(config, &options, &folder);
        let tokens = tokens(40);
        for arithmetic in [Arithmetic::Integer, Arithmetic::Float] {
            let model = load(&container, 2, arithmetic);
            let whole = logits(&model, &tokens, &[40], KvType::F32);
            let cuts: Vec<Vec<usize>> = match arithmetic {
                Arithmetic::Integer => {
                    (1..40).map(|cut| vec![cut, 40]).chain([vec![1], vec![3], vec![17]]).collect()
                }
                Arithmetic::Float => vec![vec![1, 40], vec![1], vec![20]],
            };
            for pieces in cuts {
                assert!(
                    logits(&model, &tokens, &pieces, KvType::F32) == whole,
                    "in pieces of {pieces:?}, {arithmetic:?}, {options:?}"
                );
            }
        }
    }
}

/// Contexts of several spans of the attention, in every type of the cache.
#[test]
fn long_contexts_agree_at_cuts_and_threads() {
    let folder = common::folder();
    let container = container(synth::tiny(), &Options::default(), &folder);
    let tokens = tokens(1030);
    for kv in KvType::SAMPLES {
        let whole = logits(&load(&container, 1, Arithmetic::Integer), &tokens, &[1030], kv);
        for (threads, pieces) in [(2, vec![511, 1]), (3, vec![1020, 1]), (2, vec![5, 512, 513])] {
            let model = load(&container, threads, Arithmetic::Integer);
            assert!(logits(&model, &tokens, &pieces, kv) == whole, "{kv:?}, {threads} threads, {pieces:?}");
        }
    }
}

/// Every length of prompt alone gives the row that the longer prompt has there.
#[test]
fn a_shorter_prompt_is_a_prefix() {
    let folder = common::folder();
    let model = load(&container(synth::tiny(), &Options::default(), &folder), 2, Arithmetic::Integer);
    let tokens = tokens(33);
    let whole = logits(&model, &tokens, &[33], KvType::F16);
    for n in 1..33 {
        assert!(logits(&model, &tokens[..n], &[n], KvType::F16) == whole[..n * 512], "{n} tokens");
    }
}

#[test]
fn a_refused_call_leaves_the_state_alone() {
    let folder = common::folder();
    let model = load(&container(synth::tiny(), &Options::default(), &folder), 1, Arithmetic::Integer);
    let mut state = State::new(model.config(), 4, KvType::F16).unwrap();
    assert!(model.forward_one(&[1, 512], &mut state, Want::Last).is_err(), "a token outside the vocabulary");
    assert!(model.forward_one(&[], &mut state, Want::Last).is_err());
    assert!(model.forward_one(&tokens(5), &mut state, Want::Last).is_err(), "more than the context holds");
    assert_eq!(state.position(), 0);
    let after = model.forward_one(&tokens(4), &mut state, Want::All).unwrap();
    assert_eq!(
        after.into_iter().map(f32::to_bits).collect::<Vec<_>>(),
        logits(&model, &tokens(4), &[4], KvType::F16)
    );
}

/// Matrices that a file has in rows become panels when it is loaded.
#[test]
fn panels_give_the_bits_of_rows() {
    const ROWS: usize = 48;
    let bench = Bench::new(2).unwrap();
    let noise = |i: usize| ((i * 2_654_435_761) >> 8 & 0xffff) as f32 / 32768.0 - 1.0;
    let encode = best_encoders();
    for (dtype, encode) in [
        (DType::Q4_0, encode.q4_0),
        (DType::Q3_K, encode.q3_k),
        (DType::Q4_K, encode.q4_k),
        (DType::Q6_K, encode.q6_k),
        (DType::Q8_0, encode.q8_0),
    ] {
        let weights: Vec<f32> = (0..ROWS * 512).map(noise).collect();
        let mut bytes = vec![0; dtype.row_bytes(weights.len()).unwrap()];
        encode(&weights, &mut bytes);
        let [rows, panels] =
            [false, true].map(|panels| Trunk::new(dtype, ROWS, 512, panels, &bytes).unwrap());
        for tokens in [1, 3, 17] {
            let x: Vec<f32> = (0..tokens * 512).map(|i| noise(i + 7)).collect();
            let bits = |w| bench.product(w, &x).iter().map(|y| y.to_bits()).collect::<Vec<_>>();
            assert!(bits(&rows) == bits(&panels), "{}, {tokens} tokens", dtype.name());
        }
    }
}

/// `yuan doctor` tells by these digests whether a machine computes as it should. They change with the arithmetic (`yuan::ARITHMETIC`) and with the encoders, and with nothing else.
#[test]
fn the_demo_model_answers_as_the_program_knows() {
    let folder = common::folder();
    let wishes = Wishes { experts: Some(DType::Q4_K), ..Wishes::default() };
    let (container, _) = common::convert_as(&common::demo(), &wishes, &folder.path().join("demo.gguf"));
    let tokenizer = Tokenizer::new(container.vocab().unwrap()).unwrap();
    for (kernels, threads) in yuan::kernel_names().into_iter().flat_map(|name| [(name, 1), (name, 3)]) {
        let options = RunOptions { threads, kernels: Some(kernels.into()), ..Default::default() };
        let model = Model::load(&container, &options).unwrap();
        assert_eq!(model.kernels(), kernels);
        let found = exactness::DEMO.map(|known| exactness::digest(&model, &tokenizer, known.prompt).unwrap());
        assert_eq!(found, exactness::DEMO.map(|known| known.digest), "{kernels}, {threads} threads");
        assert!(exactness::digest(&model, &tokenizer, "a").is_err(), "nothing is left to run together");
    }
}
