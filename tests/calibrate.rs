//! Calibration: what is summed up is what the model computes with, a killed run loses nothing, and a conversion by importance is nearer to the original.

mod common;

use std::{fs, ops::ControlFlow, path::Path, sync::Arc, time::Duration};

use common::fixture;
use tempfile::TempDir;
use yuan::{
    calibrate::{
        Moments::{self, ByExpert, ByLayer},
        Work, Writing, calibrate, write,
    },
    checkpoint::{Checkpoint, vocab::read_vocab},
    container::{Container, ExpertView, imatrix::Imatrix},
    convert::{Conversion, ImportanceFile},
    error::Error,
    model::{Arithmetic, KvType, Model, Options as RunOptions, Stage, Want},
    quantize::{DType, Options, Plan},
    tokenizer::{Special, Tokenizer},
};

fn demo() -> Checkpoint {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-model");
    Checkpoint::open(&folder).expect("the demo model")
}

/// A container of the demo model in these types.
fn convert(experts: DType, dense: DType, importance: Option<&ImportanceFile>, path: &Path) -> Container {
    let checkpoint = demo();
    let vocab = read_vocab(checkpoint.folder(), Some(checkpoint.config())).unwrap();
    let options = Options { experts, dense, rope: None, rope_base: None };
    let plan = Plan::new(checkpoint.config().clone(), &options).unwrap();
    let conversion = Conversion::of_checkpoint(plan, &checkpoint, &vocab, b"test", importance).unwrap();
    conversion.write(path, &|_| true).unwrap();
    Container::open(path).unwrap()
}

fn load(container: &Container, arithmetic: Arithmetic) -> Arc<Model> {
    common::load(container, RunOptions { threads: 2, arithmetic, ..Default::default() })
}

/// The documents of a file as tokens.
fn documents(file: &Path, container: &Container) -> Vec<Vec<u32>> {
    let tokenizer = Tokenizer::new(container.vocab().unwrap()).unwrap();
    let text = fs::read_to_string(file).unwrap();
    let ids = |document: &str| {
        let mut ids = tokenizer.encode(document, Special::Parse);
        ids.extend(tokenizer.eod());
        ids
    };
    text.split_terminator("\n<eod>\n").map(ids).collect()
}

fn work(documents: Vec<Vec<u32>>, moments: Option<(Moments, usize)>) -> Work {
    Work {
        datasets: vec!["calibration.txt".into()],
        documents,
        moments,
        kv: KvType::F32,
        identity: b"test".to_vec(),
        save_every: Duration::ZERO,
    }
}

fn training_text(container: &Container) -> Option<Vec<Vec<u32>>> {
    Some(documents(&fixture("calibration.txt")?, container))
}

fn go_on(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Sums of the inputs as a probe sees them, one document at a time.
#[test]
fn sums_are_those_of_the_inputs() {
    let folder = TempDir::new().unwrap();
    let container = convert(DType::Bf16, DType::Bf16, None, &folder.path().join("m.gguf"));
    let Some(documents) = training_text(&container) else { return };
    let documents: Vec<Vec<u32>> = documents.into_iter().take(12).collect();
    let model = load(&container, Arithmetic::Float);
    let path = folder.path().join("importance.gguf");
    calibrate(&model, &work(documents.clone(), Some((ByLayer, 9))), &path, &mut go_on).unwrap();
    let sums = Imatrix::open(&path).unwrap();

    let (mut values, mut products, mut chosen, mut previous) =
        (vec![0.0; 256], 0.0, [0.0; 32], vec![0.0; 256]);
    for document in &documents {
        let mut state = model.state(document.len(), KvType::F32).unwrap();
        let mut probe = |stage, layer, rows: &[f32]| match (stage, layer) {
            (Stage::InputNorm, 1) => {
                for row in rows.chunks_exact(256) {
                    values.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
                    products += f64::from(row[3]) * f64::from(row[200]);
                }
                for row in rows.chunks_exact(256).rev().skip(1) {
                    previous.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
                }
            }
            (Stage::Chosen(expert), 1) => chosen[expert] += rows.len() as f32,
            _ => {}
        };
        model.forward_probed(document, &mut state, Want::Nothing, &mut probe).unwrap();
    }
    let near = |found: &[f32], wanted: &[f64]| {
        found.iter().zip(wanted).all(|(f, w)| (f64::from(*f) - w).abs() <= 1e-4 * w.abs() + 1e-6)
    };
    let v = &sums.entries["blk.1.attn_v.weight"];
    let tokens: usize = documents.iter().map(Vec::len).sum();
    assert_eq!((v.counts[0], v.cols), (tokens as f32, 256));
    assert!(near(&v.sums, &values), "squares");
    let gram = v.gram.as_ref().unwrap().block(0, 0);
    let diagonal: Vec<f32> = (0..256).map(|i| gram[i * 257]).collect();
    assert!(
        near(&diagonal, &values) && near(&[gram[3 * 256 + 200], gram[200 * 256 + 3]], &[products; 2]),
        "moments"
    );
    let routing = &sums.entries["blk.1.routing"];
    let gram = routing.gram.as_ref().unwrap().block(0, 0);
    let diagonal: Vec<f64> = (0..256).map(|i| f64::from(gram[i * 257])).collect();
    assert_eq!((routing.counts[0], routing.cols), (tokens as f32, 256));
    assert!(near(&routing.sums, &diagonal) && diagonal.iter().all(|d| *d > 0.0), "what decides on experts");
    let conv = &sums.entries["blk.1.conv1.weight"];
    assert!(near(&conv.sums[..256], &previous) && near(&conv.sums[256..], &values), "pairs");
    assert_eq!(sums.entries["blk.1.ffn_gate_exps.weight"].counts, chosen);
    assert_eq!(sums.entries["blk.1.ffn_down_exps.weight"].counts, chosen);
    assert_eq!(chosen.iter().sum::<f32>(), 2.0 * tokens as f32);
}

/// Experts in tiles show what experts in rows do.
#[test]
fn tiles_show_the_neurons_of_rows() {
    let folder = TempDir::new().unwrap();
    let sums = [DType::Bf16, DType::Q8_0].map(|experts| {
        let container = convert(experts, DType::Bf16, None, &folder.path().join("m.gguf"));
        let documents = training_text(&container)?.into_iter().take(12).collect();
        let path = folder.path().join("importance.gguf");
        let model = load(&container, Arithmetic::Integer);
        Some(calibrate(&model, &work(documents, Some((ByLayer, 9))), &path, &mut go_on).unwrap())
    });
    let [Some(rows), Some(tiles)] = sums else { return };
    let (rows, tiles) =
        (&rows.entries["blk.0.ffn_down_exps.weight"], &tiles.entries["blk.0.ffn_down_exps.weight"]);
    assert_eq!(rows.counts, tiles.counts);
    let distance = |a: &[f32], b: &[f32]| {
        let square = |x: f32| f64::from(x) * f64::from(x);
        let off: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
        (off / a.iter().map(|a| square(*a)).sum::<f64>()).sqrt()
    };
    assert!(distance(&rows.sums, &tiles.sums) < 0.01);
    let floats = |entry: &yuan::container::imatrix::Entry| entry.gram.as_ref().unwrap().floats().to_vec();
    assert!(distance(&floats(rows), &floats(tiles)) < 0.01);
}

#[test]
fn a_killed_calibration_gives_the_same_file() {
    let folder = TempDir::new().unwrap();
    let container = convert(DType::Q8_0, DType::Q8_0, None, &folder.path().join("m.gguf"));
    let Some(documents) = training_text(&container) else { return };
    // Two passes a round, and with second moments of one layer at a time three rounds.
    let model = load(&container, Arithmetic::Integer);
    let documents: Vec<Vec<u32>> = documents.into_iter().take(20).collect();
    for moments in [None, Some((ByLayer, 1)), Some((ByExpert, 2))] {
        let work = work(documents.clone(), moments);
        let whole = folder.path().join("whole.gguf");
        calibrate(&model, &work, &whole, &mut go_on).unwrap();
        let (mut runs, mut tokens) = (0, 0);
        let path = folder.path().join("killed.gguf");
        loop {
            runs += 1;
            // Of each run one pass, behind what there is.
            let (mut told, mut heard) = (0, 0);
            let result = calibrate(&model, &work, &path, &mut |n| {
                told += 1;
                heard += n;
                if told == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            tokens = heard.max(tokens);
            match result {
                Ok(_) => break,
                Err(Error::Cancelled) => {
                    assert!(!path.exists() && folder.path().join("killed.gguf.partial").exists())
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert!(runs > 1 && tokens == work.tokens(2), "{runs} runs, {tokens} tokens");
        assert!(fs::read(&whole).unwrap() == fs::read(&path).unwrap(), "{moments:?}");
        assert!(!folder.path().join("killed.gguf.partial").exists());
        fs::remove_file(&path).unwrap();
    }
    // What another run has left is not continued.
    let path = folder.path().join("other.gguf");
    let stop = &mut |_| ControlFlow::Break(());
    calibrate(&model, &work(documents[1..].to_vec(), None), &path, stop).unwrap_err();
    let mut first = None;
    calibrate(&model, &work(documents, None), &path, &mut |n| {
        first.get_or_insert(n);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(first, Some(0));
}

/// Mean divergences of what models predict from what another does, over some documents.
fn divergences(models: &[Arc<Model>], reference: &Model, documents: &[Vec<u32>]) -> Vec<f64> {
    let (mut sums, mut tokens) = (vec![0.0; models.len()], 0.0);
    for document in documents {
        let predict = |model: &Model| -> Vec<Vec<f64>> {
            let mut state = model.state(document.len(), KvType::F32).unwrap();
            let logits = model.forward_one(document, &mut state, Want::All).unwrap();
            logits.chunks_exact(model.config().vocab).take(document.len() - 1).map(log_softmax).collect()
        };
        let wanted = predict(reference);
        tokens += wanted.len() as f64;
        for (model, sum) in models.iter().zip(&mut sums) {
            for (p, q) in predict(model).iter().zip(&wanted) {
                *sum += q.iter().zip(p).map(|(q, p)| q.exp() * (q - p)).sum::<f64>();
            }
        }
    }
    sums.iter().map(|sum| sum / tokens).collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    logits.iter().map(|l| f64::from(l - max) - sum.ln()).collect()
}

// Parts of the divergence that may be left. Seen were 0.99, 0.83 and 0.79 of 0.00406.
const BY_SQUARES: f64 = 1.0;
const BY_LAYER: f64 = 0.88;
const BY_EXPERT: f64 = 0.84;

/// On held-out text, calibrated on training text: the search by sums of squares, and error feedback by second moments.
#[test]
fn importance_brings_a_model_nearer_to_the_original() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let exact = convert(DType::Bf16, DType::Bf16, None, &path("bf16.gguf"));
    let Some(text) = training_text(&exact) else { return };
    let reference = load(&exact, Arithmetic::Integer);
    let held_out = documents(&demo().folder().join("heldout.txt"), &exact);
    let held_out: Vec<Vec<u32>> = held_out[..20].iter().chain(&held_out[58..140]).cloned().collect();

    let importance = |moments, name: &str| {
        calibrate(&reference, &work(text.clone(), moments), &path(name), &mut go_on).unwrap();
        ImportanceFile::open(&path(name), exact.config()).unwrap()
    };
    let by_layer = importance(Some((ByLayer, 9)), "layer.gguf");
    let by_expert = importance(Some((ByExpert, 9)), "expert.gguf");
    // As llama.cpp's files are.
    let mut squares = Imatrix::open(&path("layer.gguf")).unwrap();
    squares.entries.values_mut().for_each(|entry| entry.gram = None);
    let squares = ImportanceFile::new(squares, &path("layer.gguf"), exact.config()).unwrap();
    let models = [None, Some(&squares), Some(&by_layer), Some(&by_expert)].map(|importance| {
        let container = convert(DType::Q4_K, DType::Bf16, importance, &path("q4.gguf"));
        load(&container, Arithmetic::Integer)
    });
    let found = divergences(&models, &reference, &held_out);
    println!("experts in q4_k: plain, by squares, by moments of layers, and of experts: {found:.6?}");
    let [plain, by_squares, by_layer, by_expert] = found[..] else { panic!("four models") };
    assert!(by_squares < BY_SQUARES * plain, "{found:?}");
    assert!(by_layer < BY_LAYER * plain, "{found:?}");
    assert!(by_expert < BY_EXPERT * plain, "{found:?}");
}

/// What the model writes goes on with the beginnings, ends where it should, and is the same again, whoever else is written.
#[test]
fn written_text_is_the_same_again() {
    let folder = TempDir::new().unwrap();
    let container = convert(DType::Q4_K, DType::Q8_0, None, &folder.path().join("m.gguf"));
    let model = load(&container, Arithmetic::Integer);
    let tokenizer = Tokenizer::new(container.vocab().unwrap()).unwrap();
    let beginnings: Vec<Vec<u32>> = ["Psalms 151:1-4<sep>", "春日山中 李白<sep>", "And"]
        .iter()
        .map(|text| tokenizer.encode(text, Special::Parse))
        .cycle()
        .take(18)
        .collect();
    let writing = Writing { beginnings, most: 60, ends: tokenizer.ends().collect(), kv: KvType::F16 };
    let (mut told, eod) = (0, tokenizer.eod().unwrap());
    let written = write(&model, &writing, &mut |n| {
        told += n;
        ControlFlow::Continue(())
    })
    .unwrap();
    let mut new = 0;
    for (page, beginning) in written.iter().zip(&writing.beginnings) {
        assert!(page.starts_with(beginning) && page.len() <= 60);
        assert!(page.len() == 60 || page.ends_with(&[eod]));
        assert!(!page[beginning.len()..page.len() - 1].contains(&eod));
        new += (page.len() - beginning.len()) as u64;
    }
    assert_eq!((written.len(), told), (18, new));
    // Pages with the same beginning are others; the first ones are what they are alone.
    assert!(written[0] != written[3] && written[1] != written[4]);
    let alone = Writing { beginnings: writing.beginnings[..2].to_vec(), ..writing.clone() };
    assert_eq!(write(&model, &alone, &mut go_on).unwrap(), written[..2]);
    let stopped = write(&model, &writing, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Cancelled)));
}

#[test]
fn threads_change_no_byte() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let exact = convert(DType::Bf16, DType::Bf16, None, &path("bf16.gguf"));
    let Some(text) = training_text(&exact) else { return };
    let text: Vec<Vec<u32>> = text.into_iter().take(40).collect();
    let calibrated = [1, 3].map(|threads| {
        let options = RunOptions { threads, ..Default::default() };
        let model = common::load(&exact, options);
        calibrate(&model, &work(text.clone(), Some((ByExpert, 9))), &path("importance.gguf"), &mut go_on)
            .unwrap();
        fs::read(path("importance.gguf")).unwrap()
    });
    assert!(calibrated[0] == calibrated[1], "the file of importances");
    let importance = ImportanceFile::open(&path("importance.gguf"), exact.config()).unwrap();
    for (experts, dense) in [(DType::Q4_K, DType::Q8_0), (DType::Q4_0, DType::Q6_K)] {
        let files = [1, 3].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| convert(experts, dense, Some(&importance), &path("q.gguf")));
            fs::read(path("q.gguf")).unwrap()
        });
        assert!(files[0] == files[1], "{} and {}", experts.name(), dense.name());
        let container = Container::open(&path("q.gguf")).unwrap();
        container.verify(&|_| true).unwrap();
        // Standard blocks: exported and packed again, they are the same.
        Conversion::export(&container).unwrap().write(&path("standard.gguf"), &|_| true).unwrap();
        let standard = Container::open(&path("standard.gguf")).unwrap();
        let again = Conversion::repack(&standard, &Options::default()).unwrap();
        again.write(&path("again.gguf"), &|_| true).unwrap();
        let again = Container::open(&path("again.gguf")).unwrap();
        for expert in 0..32 {
            let tiles = [&container, &again].map(|container| match container.expert(1, expert).unwrap() {
                ExpertView::Tiles { bytes, .. } => bytes,
                ExpertView::Rows { .. } => panic!("experts in rows"),
            });
            assert!(tiles[0][..] == tiles[1][..], "expert {expert}");
        }
    }
}
